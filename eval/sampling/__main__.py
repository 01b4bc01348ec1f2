"""Samplers side by side: `python -m eval.sampling --models babyai --steps 1 2 4 --solvers euler`.

Every combination of model, solver, steps, time grid, guidance, memory and schedule rolls the same
worlds out under the same true actions, from its own frames (see `eval.world.openloop`). What the
past determines is compared with the truth. What comes into view for the first time has no one
truth, so its legality is counted, and how far the frequencies of what is drawn there are from those
of the environment: a sampler that always draws the likeliest thing has the tiles right and the
frequencies wrong.
"""

import itertools
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from eval.babyai.player import Player
from eval.babyai.tiles import legal_tiles, read_frame, sprites
from eval.report import load, machine
from eval.sampling.pictures import sheet
from eval.statistics import Estimate, ratio_over_episodes
from eval.truth import EVALUATION_SEEDS
from eval.world.openloop import Loop, ModelRoller, make_loops, mapped_frame
from unified.command import command
from unified.files import atomic_path, write_json
from unified.sampling.diffusion.guidance import read_guidance
from unified.sampling.diffusion.solvers import read_solver
from unified.sampling.futures import read_schedule
from unified.sampling.options import Options

HORIZONS = (1, 16, 64)
"""Frames at which tiles are counted."""
_OBJECTS = ("ball", "box", "key", "door")


@dataclass(frozen=True, kw_only=True)
class SamplingArguments:
    """Compare samplers on seeds that training never saw."""

    models: tuple[str, ...] = ("babyai",)
    """Folders, hub ids, or embedded names."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Denoise steps of a frame."""
    solvers: tuple[str, ...] = ("euler",)
    """See `unified.sampling.diffusion.solvers`."""
    time_grids: tuple[str, ...] = ("uniform",)
    """Where the steps lie, see `unified.sampling.diffusion.schedules`."""
    guidance: tuple[str, ...] = ("text=1",)
    """Scales, such as text=1 action=2 action=1.5,history=1.2."""
    memories: tuple[str, ...] = ("window",)
    """What stays of frames that are past."""
    schedules: tuple[str, ...] = ("autoregressive",)
    """How frames are drawn together, eight at a time: chunked:frames=4, pyramid, full,
    bidirectional."""
    loops: int = 12
    """Worlds of each kind of actor, the handler and the expert."""
    frames: int = 64
    """Of each world."""
    seed: int = 1_700_000
    """First environment seed; those below 1,000,000 belong to training."""
    out: Path = Path("runs/sampling")
    """Folder for sampling.json and sampling.md."""
    picture: Path | None = None
    """PNG file for schedules as matrices, and a frame as it loses its noise."""
    device: str | None = None
    """Where the models run, such as cpu or cuda; None is a GPU where there is one."""


@dataclass(frozen=True)
class Setting:
    """One way to draw frames."""

    model: str
    solver: str
    steps: int
    time_grid: str
    guidance: str
    memory: str
    schedule: str

    def options(self) -> dict[str, Any]:
        """Options of `Session.run`, checked."""
        told = {
            "solver": self.solver,
            "num_inference_steps": self.steps,
            "time_grid": self.time_grid,
            "guidance_scale": read_guidance(self.guidance),
        }
        Options(**told)
        return {**told, "schedule": self.schedule}

    def name(self) -> str:
        """As a row's label: what differs from the usual."""
        usual = {"time_grid": "uniform", "guidance": "text=1", "memory": "window"}
        usual["schedule"] = "autoregressive"
        rest = [value for key, value in asdict(self).items() if usual.get(key) not in (None, value)]
        return " ".join([Path(self.model).name, f"{self.steps}", self.solver, *rest])


@dataclass
class Figures:
    """What one setting reached.

    Attributes:
        tiles: Frame -> share of determined tiles that are right.
        objects: Likewise, of objects and doors.
        legal: Share of tiles that are legal.
        variation: Total variation between the sprites drawn where something comes into view for the
            first time, and those of the environment; 0 is equal, 1 is disjoint.
        seconds: Of the machine for each frame, all worlds in one batch.
    """

    tiles: dict[int, Estimate] = field(default_factory=dict)
    objects: dict[int, Estimate] = field(default_factory=dict)
    legal: Estimate | None = None
    variation: float = 0.0
    seconds: float = 0.0


def measure(loops: list[Loop], ids: np.ndarray, frames: np.ndarray | None = None) -> Figures:
    """Compares drawn sprites with the environment.

    Args:
        loops: The worlds.
        ids: `(N, T, 7, 7)`, sprites of what was drawn.
        frames: `(N, T, 56, 56, 3)` uint8, to see whether they are legal; None leaves that out.
    """
    kinds = np.array([sprite.kind for sprite in sprites()])
    figures = Figures()
    for horizon in [h for h in HORIZONS if h <= ids.shape[1]]:
        for found, members in ((figures.tiles, None), (figures.objects, _OBJECTS)):
            hits, totals = [], []
            for number, loop in enumerate(loops):
                truth = loop.views[horizon - 1].sprites
                mask = loop.classes[horizon - 1].determined
                mask = mask if members is None else mask & np.isin(kinds[truth], members)
                hits.append(int((ids[number, horizon - 1] == truth)[mask].sum()))
                totals.append(int(mask.sum()))
            if sum(totals):
                found[horizon] = ratio_over_episodes(hits, totals)
    drawn: Counter[int] = Counter()
    true: Counter[int] = Counter()
    for number, loop in enumerate(loops):
        for step, (view, classes) in enumerate(zip(loop.views, loop.classes, strict=True)):
            drawn.update(ids[number, step][classes.revealed].tolist())
            true.update(view.sprites[classes.revealed].tolist())
    figures.variation = total_variation(drawn, true)
    if frames is not None:
        legal = [[int(legal_tiles(frame).sum()) for frame in row] for row in frames]
        figures.legal = ratio_over_episodes(
            [sum(row) for row in legal], [49 * len(row) for row in legal]
        )
    return figures


def total_variation(first: Counter[Any], second: Counter[Any]) -> float:
    """Half the sum of absolute differences between two sets of frequencies.

    >>> total_variation(Counter([1, 1, 2]), Counter([1, 2, 2]))
    0.3333333333333333
    """
    total, other = max(first.total(), 1), max(second.total(), 1)
    keys = first.keys() | second.keys()
    return sum(abs(first[key] / total - second[key] / other) for key in keys) / 2


def noise_of_variation(loops: list[Loop]) -> float:
    """The total variation between two halves of the worlds: what equal frequencies would show."""
    halves: list[Counter[int]] = [Counter(), Counter()]
    for number, loop in enumerate(loops):
        for view, classes in zip(loop.views, loop.classes, strict=True):
            halves[number % 2].update(view.sprites[classes.revealed].tolist())
    return total_variation(*halves)


def compare(arguments: SamplingArguments) -> dict[str, Figures]:
    """Rolls every setting out; results are on disk after each.

    Raises:
        ValueError: If a model, an option or the seeds cannot be used.
    """
    if arguments.seed < EVALUATION_SEEDS:
        raise ValueError(f"seed={arguments.seed} belongs to training; use {EVALUATION_SEEDS} or up")
    if arguments.loops < 2 or arguments.frames < 1:
        raise ValueError(
            f"loops={arguments.loops} and frames={arguments.frames} must be at least 2 and 1"
        )
    a = arguments
    choices = (a.models, a.solvers, a.steps, a.time_grids, a.guidance, a.memories, a.schedules)
    settings = [Setting(*choice) for choice in itertools.product(*choices)]
    for setting in settings:
        setting.options()
        read_solver(setting.solver)
        read_schedule(setting.schedule)
    players = {name: Player(*load(name, arguments.device)) for name in arguments.models}
    loops = [
        loop
        for behaviour in ("handler", "expert")
        for loop in make_loops(behaviour, arguments.loops, arguments.seed, arguments.frames)
    ]
    if arguments.picture is not None:
        with atomic_path(arguments.picture) as draft:
            picture = sheet(players[arguments.models[0]], loops[0])
            Image.fromarray(picture).save(draft, format="PNG", optimize=True)
    found: dict[str, Figures] = {}
    mapped = [[mapped_frame(loop, step) for step in range(arguments.frames)] for loop in loops]
    found["floor: a map of what was seen"] = measure(loops, np.array(mapped))
    for setting in tqdm(settings, desc="sampling"):
        player = players[setting.model]
        roll = ModelRoller(player, memory=setting.memory, **setting.options())
        frames = roll(loops)
        figures = measure(loops, read_frame(frames)[0], frames)
        figures.seconds = roll.seconds
        found[setting.name()] = figures
        save(arguments, found, noise_of_variation(loops))
    return found


def table(found: dict[str, Figures], noise: float) -> str:
    """Markdown: a row for each setting."""
    horizons = sorted({h for figures in found.values() for h in figures.tiles})
    heads = [f"tiles at {h} (objects)" for h in horizons]
    lines = [
        "| model, steps, solver | "
        + " | ".join(heads)
        + f" | legal | variation of the new ({noise:.3f} between halves) | ms a frame |",
        "|---" * (len(heads) + 4) + "|",
    ]
    for name, figures in found.items():
        cells = [
            f"{_percent(figures.tiles.get(h))} ({_percent(figures.objects.get(h), short=True)})"
            for h in horizons
        ]
        seconds = f"{1000 * figures.seconds:.0f}" if figures.seconds else ""
        cells += [_percent(figures.legal), f"{figures.variation:.3f}", seconds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(estimate: Estimate | None, *, short: bool = False) -> str:
    if estimate is None:
        return ""
    value = f"{100 * estimate.value:.1f}"
    return value if short else f"{value} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def save(arguments: SamplingArguments, found: dict[str, Figures], noise: float) -> None:
    """Writes sampling.json and sampling.md."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(asdict(arguments), default=str))
    content = {name: asdict(figures) for name, figures in found.items()}
    write_json(
        arguments.out / "sampling.json",
        {**settings, "machine": machine(), "noise_of_variation": noise, "found": content},
    )
    on = ", ".join(f"{name} {value}" for name, value in machine().items())
    told = (
        f"{2 * arguments.loops} worlds, seeds from {arguments.seed}, {arguments.frames} frames, "
        f"each from the model's own; {on}. In brackets 95 % intervals over worlds."
    )
    with atomic_path(arguments.out / "sampling.md") as draft:
        draft.write_text(f"{told}\n\n{table(found, noise)}\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    arguments = tyro.cli(SamplingArguments, description=__doc__)
    with command("eval.sampling"):
        compare(arguments)
        print((arguments.out / "sampling.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
