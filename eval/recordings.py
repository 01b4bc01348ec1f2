"""Evaluate a model on recorded episodes, without the environment that they are from.

python -m eval.recordings --model runs/arm/model --data runs/arm-data/held-out --out runs/arm/eval

As a simulator: PSNR and SSIM of the next frame and of rollouts, over all pixels and where frames
differ. As an inverse model: the action between two frames. As an agent: whether it would have done
what was recorded. `data.prepare split` holds episodes out before training. `index.html` shows all.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from data.dataset import EpisodeDataset
from eval.babyai.player import Player
from eval.comparison import Comparison, ComparisonArguments, Recording, compare
from eval.pages.gallery import write_gallery
from eval.report import load, machine, plain, with_steps
from unified.command import command
from unified.files import atomic_path, write_json
from unified.roles.agent import action_space_of, frame_size


@dataclass(frozen=True, kw_only=True)
class RecordingsArguments(ComparisonArguments):
    """Evaluate a model on recorded episodes."""

    data: Path
    """Folder with episodes that training never saw, see `data.prepare split`."""
    out: Path = Path("runs/recordings")
    """Folder for report.json, report.md, frames.png, rollouts.mp4 and index.html."""
    episodes: int = 32
    """Episodes, evenly spread over the folder."""
    frames: int = 64
    """Frames of each that are looked at."""


@dataclass
class RecordingsReport:
    """What was found, and with what."""

    settings: dict[str, Any]
    found: Comparison = field(default_factory=Comparison)

    def table(self) -> str:
        """All figures as a Markdown table."""
        return self.found.table()

    def save(self, folder: Path) -> None:
        """Writes the report, its pictures and its page, each whole or not at all."""
        figures = {name: vars(value) for name, value in self.found.estimates().items()}
        write_json(folder / "report.json", plain({"settings": self.settings, "figures": figures}))
        with atomic_path(folder / "report.md") as draft:
            draft.write_text(self.table() + "\n")
        write_gallery(folder, "Model and recording", self.found, self.table())


def evaluate(arguments: RecordingsArguments) -> RecordingsReport:
    """Runs everything; what is found is in `arguments.out` as soon as a part is done.

    Raises:
        ValueError: If model or data are missing or do not fit each other, or a number is out of
            range.
    """
    arguments.check("episodes", "frames")
    data = EpisodeDataset(arguments.data)
    model, processor = load(arguments.model, arguments.device)
    arguments = with_steps(arguments, model)
    recordings = read_recordings(data, arguments.episodes, arguments.frames)
    height, width = frame_size(model, processor)
    shape = recordings[0].views[0].frame.shape[:2]
    if shape != (height, width):
        raise ValueError(
            f"the frames of {arguments.data} are {shape[0]}x{shape[1]}, this model's are "
            f"{height}x{width} (height x width); import the data in that size"
        )
    longest = max(len(recording.views) for recording in recordings)
    if longest < arguments.context_frames + arguments.horizon:
        raise ValueError(
            f"no episode has the {arguments.context_frames + arguments.horizon} frames of a "
            f"rollout, the longest has {longest}; lower context_frames or horizon, or raise frames"
        )
    settings: dict[str, Any] = dict(vars(arguments))
    settings["parameters"] = sum(p.numel() for p in model.parameters())
    settings["evaluated"] = len(recordings)
    report = RecordingsReport({**settings, "machine": machine()})
    player, space = Player(model, processor), action_space_of(processor)
    compare(player, recordings, report.found, space, arguments, lambda: report.save(arguments.out))
    return report


def read_recordings(data: EpisodeDataset, episodes: int, frames: int) -> list[Recording]:
    """Episodes evenly spread over a folder, those with two frames or more.

    Raises:
        ValueError: If there are none.
    """
    usable = [i for i in range(len(data)) if data.lengths[i] > 1]
    if not usable:
        raise ValueError(f"{data.folder} has no episode of two frames or more to evaluate on")
    count = min(episodes, len(usable))
    chosen = [usable[i * len(usable) // count] for i in range(count)]
    return [Recording.read(data, index, frames) for index in chosen]


def main() -> None:
    """Command line."""
    arguments = tyro.cli(RecordingsArguments, description=__doc__)
    with command("eval.recordings"):
        report = evaluate(arguments)
    print(report.table())
    print(f"\nsaved in {arguments.out}; look at {arguments.out}/index.html")


if __name__ == "__main__":
    main()
