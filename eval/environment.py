"""Evaluate a model in the Gymnasium environment that its data was recorded in, on unseen seeds.

python -m eval.environment --model runs/arm/model --data runs/arm-data --out runs/arm/eval

As an agent: success, beside the policy that was recorded and random actions. As a simulator: PSNR
and SSIM of the next frame and of rollouts, between what the codec can draw at best and what
repeating the last frame gives. `frames.png` shows rollouts beside the truth.
"""

import json
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from data.dataset import read_info
from data.episode import EpisodeRecord, decode_png
from data.sources.gymnasium import GymnasiumRecorder, load_policy, told_task
from eval.babyai.agent import TEMPERATURE
from eval.babyai.episodes import EVALUATION_SEED
from eval.babyai.player import Player, first_frames
from eval.babyai.tally import psnr
from eval.report import machine
from eval.statistics import Estimate, balanced_accuracy, mean_over_episodes, wilson_interval
from unified.command import chosen_device, command
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import action_segment
from unified.files import atomic_path, write_json
from unified.model.modeling import UnifiedModel
from unified.roles.agent import Agent


@dataclass(frozen=True, kw_only=True)
class EnvironmentArguments:
    """Evaluate a model as agent and simulator in any Gymnasium environment."""

    model: str
    """Folder, hub id, or embedded name."""
    data: Path
    """Folder written by `data.record`; it says which environment, policy and tasks."""
    out: Path = Path("runs/environment")
    """Folder for report.json, report.md and frames.png."""
    agent_episodes: int = 64
    """Episodes that the agent plays; so many the policy and random actions, too."""
    episodes: int = 32
    """Recorded episodes that the simulator is compared with."""
    parallel: int = 16
    """Environments side by side."""
    context_frames: int = 4
    """True frames before a rollout."""
    horizon: int = 16
    """Frames of a rollout."""
    num_inference_steps: int = 4
    """Denoise steps of a frame."""
    temperature: float = TEMPERATURE
    """Of the agent's tokens; 0 takes the likeliest."""
    first_seed: int = EVALUATION_SEED
    """First environment seed; those below 1,000,000 belong to training."""
    seed: int = 0
    """Of the model's own noise."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""


@dataclass(frozen=True)
class Moment:
    """What was seen, what led there (None at first), and the outcome."""

    frame: np.ndarray
    action: str | None
    outcome: str


@dataclass(frozen=True)
class Recording:
    """One episode of the environment."""

    task: str | None
    seed: int
    views: list[Moment]

    @classmethod
    def of(cls, record: EpisodeRecord) -> "Recording":
        """Decodes what the recorder gave."""
        task = " ".join(s.text for s in record.segments if s.role == "task" and s.text)
        views: list[Moment] = []
        action: str | None = None
        for segment in record.segments:
            if segment.kind == "action":
                action = segment.action
            elif segment.frame is not None:
                views.append(Moment(decode_png(segment.frame), action, str(segment.outcome)))
        return cls(task or None, record.seed, views)


@dataclass
class EnvironmentReport:
    """What was found.

    Attributes:
        settings: Options of the run, the model's size and the machine.
        success: Who played -> task -> won, of how many.
        quality: Figure (such as next/psnr/model) -> episode -> its values.
        outcome: True and given outcomes of next frames.
        frames: Rows to look at: the truth, the model's rollout, and so on.
    """

    settings: dict[str, Any]
    success: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    quality: dict[str, dict[int, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    outcome: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    frames: list[np.ndarray] = field(default_factory=list)

    def score(self, figure: str, episode: int, frame: np.ndarray, truth: np.ndarray) -> None:
        """Compares a frame with the true one."""
        self.quality[f"{figure}/psnr"][episode].append(psnr(frame, truth))
        self.quality[f"{figure}/ssim"][episode].append(ssim(frame, truth))

    def estimates(self) -> dict[str, Estimate]:
        """Every figure with its interval."""
        found = {}
        for who, tasks in self.success.items():
            cells = {**tasks, "all": [sum(c) for c in zip(*tasks.values(), strict=True)]}
            for task, (won, of) in cells.items():
                found[f"success/{who}/{task}"] = wilson_interval(won, of)
        for figure, episodes in self.quality.items():
            found[figure] = mean_over_episodes(list(episodes.values()), np.random.default_rng(0))
        if self.outcome[0]:
            found["next/outcome"] = balanced_accuracy(*self.outcome)
        return found

    def table(self) -> str:
        """Two tables in Markdown; of rollouts the frames 1, 2, 4, and so on."""
        found = self.estimates()
        who = list(self.success)
        lines = [f"| success | {' | '.join(who)} |", "|---" * (len(who) + 1) + "|"]
        tasks = [*next(iter(self.success.values()), {}), "all"] if who else []
        lines += [
            f"| {task} | {' | '.join(str(found[f'success/{name}/{task}']) for name in who)} |"
            for task in tasks
        ]
        ways = ("model", "repeat", "codec")
        lines += ["", "| frames | model | last frame repeated | codec |", "|---|---|---|---|"]
        seen = {figure.rsplit("/", 2)[0] for figure in self.quality}
        horizons = sorted(int(name.split("/")[1]) for name in seen - {"next"})
        horizons = [h for h in horizons if h & (h - 1) == 0]  # 1, 2, 4, ...; the report has all
        for name in ["next", *(f"rollout/{h}" for h in horizons)] if seen else []:
            label = "next frame" if name == "next" else f"rollout, frame {name.split('/')[1]}"
            for measure, unit in (("psnr", " dB"), ("ssim", "")):
                cells = [_number(found[f"{name}/{way}/{measure}"], unit) for way in ways]
                lines.append(f"| {label}: {measure.upper()} | {' | '.join(cells)} |")
        if "next/outcome" in found:
            lines += ["", f"Outcome of the next frame, balanced accuracy: {found['next/outcome']}"]
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Writes report.json, report.md and frames.png, each whole or not at all."""
        figures = {name: vars(value) for name, value in self.estimates().items()}
        content = {"settings": self.settings, "figures": figures}
        write_json(folder / "report.json", json.loads(json.dumps(content, default=vars)))
        with atomic_path(folder / "report.md") as draft:
            draft.write_text(self.table() + "\n")
        if self.frames:
            image = Image.fromarray(np.concatenate(self.frames))
            with atomic_path(folder / "frames.png") as draft:
                image.save(draft, format="PNG")


def _number(estimate: Estimate, unit: str) -> str:
    digits = 2 if unit else 3
    low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
    return f"{estimate.value:.{digits}f}{unit} [{low}, {high}]"


def ssim(frame: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of two `(H, W, 3)` uint8 frames (Wang et al. 2004), 1 if equal."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = [torch.from_numpy(np.array(x)).movedim(-1, 0)[None].float() for x in (frame, truth)]
    found: Any = structural_similarity_index_measure(pair[0], pair[1], data_range=255.0)
    return float(found)


def evaluate(arguments: EnvironmentArguments) -> EnvironmentReport:
    """Runs everything; what is found is in `arguments.out` as soon as a part is done.

    Raises:
        ValueError: If model or data are missing, the data were not recorded in a Gymnasium
            environment, or a number is out of range.
    """
    info = read_info(arguments.data)
    if "recorder" not in info:
        raise ValueError(
            f"{arguments.data} was not written by data.record (source {info.get('source')!r}), so "
            "that no environment is known to play in"
        )
    if arguments.first_seed < EVALUATION_SEED:
        raise ValueError(
            f"first_seed={arguments.first_seed} belongs to training; use {EVALUATION_SEED} or more"
        )
    for name in ("agent_episodes", "episodes", "parallel", "context_frames", "horizon"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
    model = UnifiedModel.from_pretrained(arguments.model).eval()
    processor = UnifiedProcessor.from_pretrained(arguments.model)
    torch.nn.Module.to(model, chosen_device(arguments.device))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    settings["parameters"] = sum(p.numel() for p in model.parameters())
    settings["recorder"] = info["recorder"]
    report = EnvironmentReport({**settings, "machine": machine()})
    options = dict(info["recorder"])
    options["size"] = options["size"] and tuple(options["size"])
    recorder = GymnasiumRecorder(**options)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.episodes)
    recordings = [
        Recording.of(recorder.record(seed)) for seed in tqdm(seeds, desc="record", leave=False)
    ]
    player = Player(model, processor)
    compare_next(player, recordings, report, arguments)
    report.save(arguments.out)
    compare_rollouts(player, recordings, report, arguments)
    report.save(arguments.out)
    for policy in dict.fromkeys((options["policy"], "random")):
        with closing(replace(recorder, policy=policy, noise=0.0)) as calm:
            play_policy(calm, report, arguments)
        report.save(arguments.out)
    play_agent(model, processor, recorder, report, arguments)
    recorder.close()
    report.save(arguments.out)
    return report


def compare_next(
    player: Player,
    recordings: list[Recording],
    report: EnvironmentReport,
    arguments: EnvironmentArguments,
) -> None:
    """Every next frame and its outcome, from the true history."""
    alive = list(range(len(recordings)))
    session = player.start(recordings, arguments.seed)
    longest = max(len(recording.views) for recording in recordings)
    for step in tqdm(range(1, longest), desc="next frame", leave=False):
        going = [row for row, i in enumerate(alive) if len(recordings[i].views) > step]
        if len(going) < len(alive):
            session, alive = session.fork(going), [alive[row] for row in going]
        views = [recordings[i].views[step] for i in alive]
        session.append([player.stream(action_segment(view.action)) for view in views])
        reply = session.fork().run("forward", num_inference_steps=arguments.num_inference_steps)
        drawn = first_frames(player.replies(reply))
        told = player.encode(views)
        pairs = zip(alive, views, player.pixels(drawn), player.pixels(told), strict=True)
        for i, view, pixels, coded in pairs:
            before = recordings[i].views[step - 1].frame
            for way, frame in (("model", pixels), ("repeat", before), ("codec", coded)):
                report.score(f"next/{way}", i, frame, view.frame)
        report.outcome[0].extend(view.outcome for view in views)
        report.outcome[1].extend(str(frame.outcome) for frame in drawn)
        session.append([player.stream(frame) for frame in told])


def compare_rollouts(
    player: Player,
    recordings: list[Recording],
    report: EnvironmentReport,
    arguments: EnvironmentArguments,
) -> None:
    """Frames generated one from the other under the recorded actions, after a true context."""
    context = arguments.context_frames
    alive = [i for i, recording in enumerate(recordings) if len(recording.views) > context]
    if not alive:
        return
    session = player.start([recordings[i] for i in alive], arguments.seed)
    for step in range(1, context):
        views = [recordings[i].views[step] for i in alive]
        frames = player.encode(views)
        turns = zip(views, frames, strict=True)
        session.append([player.stream(action_segment(view.action), f) for view, f in turns])
    shown = {i: [recordings[i].views[context - 1].frame] for i in alive[:4]}
    for h in tqdm(range(1, arguments.horizon + 1), desc="rollout", leave=False):
        going = [row for row, i in enumerate(alive) if len(recordings[i].views) >= context + h]
        if not going:
            break
        if len(going) < len(alive):
            session, alive = session.fork(going), [alive[row] for row in going]
        views = [recordings[i].views[context + h - 1] for i in alive]
        session.append([player.stream(action_segment(view.action)) for view in views])
        reply = session.run("forward", num_inference_steps=arguments.num_inference_steps)
        drawn = player.pixels(first_frames(player.replies(reply)))
        coded = player.pixels(player.encode(views))
        for i, view, pixels, best in zip(alive, views, drawn, coded, strict=True):
            known = recordings[i].views[context - 1].frame
            for way, frame in (("model", pixels), ("repeat", known), ("codec", best)):
                report.score(f"rollout/{h}/{way}", i, frame, view.frame)
            if i in shown:
                shown[i].append(pixels)
    for i, frames in shown.items():
        truth = [view.frame for view in recordings[i].views[context - 1 :]]
        for row in (truth, frames):
            blank = [np.zeros_like(row[0])] * (arguments.horizon + 1)
            report.frames.append(np.concatenate([*row, *blank][: arguments.horizon + 1], axis=1))


def play_policy(
    recorder: GymnasiumRecorder, report: EnvironmentReport, arguments: EnvironmentArguments
) -> None:
    """What a policy reaches without a frame: above and below the agent."""
    tasks: dict[str, list[int]] = {}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.agent_episodes)
    for seed in tqdm(seeds, desc=recorder.policy, leave=False):
        observation, info = recorder.made.reset(seed=seed)
        recorder.made.action_space.seed(seed)
        policy = load_policy(recorder.policy, recorder.made)
        task = recorder.task or told_task(observation, info)
        outcome = "ongoing"
        for _ in range(recorder.max_steps):
            observation, reward, terminated, truncated, info = recorder.made.step(
                policy(observation)
            )
            outcome = recorder.outcome(float(reward), terminated, info)
            if outcome != "ongoing" or truncated:
                break
        _count(tasks, task, outcome)
    report.success[recorder.policy] = dict(sorted(tasks.items()))


def play_agent(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    recorder: GymnasiumRecorder,
    report: EnvironmentReport,
    arguments: EnvironmentArguments,
) -> None:
    """The model plays, several environments at a time."""
    tasks: dict[str, list[int]] = {}
    count = min(arguments.parallel, arguments.agent_episodes)
    recorders = [replace(recorder) for _ in range(count)]
    envs = [one.made for one in recorders]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.agent_episodes)
    for start in tqdm(range(0, len(seeds), count), desc="agent", leave=False):
        wave = list(zip(seeds[start : start + count], envs, strict=False))
        generators = [torch.Generator().manual_seed(arguments.seed + seed) for seed, _ in wave]
        agent = Agent(
            model,
            processor,
            temperature=arguments.temperature,
            think=False,
            generator=generators,
        )
        begun = [env.reset(seed=seed) for seed, env in wave]
        told = [recorder.task or told_task(*first) for first in begun]
        alive = list(range(len(wave)))
        for step in range(recorder.max_steps):
            frames = [recorders[i].view() for i in alive]
            actions = agent.act(frames, [told[i] for i in alive])
            going = []
            for row, (i, action) in enumerate(zip(alive, actions, strict=True)):
                taken = agent.environment_action(action)
                _, reward, terminated, truncated, info = wave[i][1].step(taken)
                outcome = recorder.outcome(float(reward), terminated, info)
                if outcome == "ongoing" and not truncated and step < recorder.max_steps - 1:
                    going.append(row)
                else:
                    _count(tasks, told[i], outcome)
            if not going:
                break
            if len(going) < len(alive):
                agent.keep(going)
            alive = [alive[row] for row in going]
    for one in recorders:
        one.close()
    report.success["model"] = dict(sorted(tasks.items()))


def _count(tasks: dict[str, list[int]], task: str | None, outcome: str) -> None:
    cell = tasks.setdefault(task or "no task", [0, 0])
    cell[0] += outcome == "success"
    cell[1] += 1


def main() -> None:
    """Command line."""
    arguments = tyro.cli(EnvironmentArguments, description=__doc__)
    with command("eval.environment"):
        report = evaluate(arguments)
    print(report.table())
    print(f"\nsaved in {arguments.out}")


if __name__ == "__main__":
    main()
