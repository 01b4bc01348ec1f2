"""Evaluate a model in the Gymnasium environment that its data was recorded in, on unseen seeds.

python -m eval.environment --model runs/arm/model --data runs/arm-data --out runs/arm/eval

As an agent: success, beside the policy that was recorded and random actions. As a simulator: PSNR
and SSIM of the next frame and of rollouts, between what the codec can draw at best and what
repeating the last frame gives. `index.html` shows all; data that no environment is known of are
evaluated by `eval.recordings`.
"""

from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from data.dataset import read_info
from data.sources.gymnasium import GymnasiumRecorder, load_policy, told_task
from eval.babyai.agent import TEMPERATURE
from eval.babyai.player import Player
from eval.comparison import Comparison, ComparisonArguments, Recording, compare
from eval.pages.gallery import write_gallery
from eval.report import load, machine, plain, with_steps
from eval.seeds import DEVELOPMENT_SEEDS
from eval.statistics import Estimate, wilson_interval
from unified.command import command
from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_path, write_json
from unified.modeling import UnifiedModel
from unified.roles.agent import Agent, action_space_of


@dataclass(frozen=True, kw_only=True)
class EnvironmentArguments(ComparisonArguments):
    """Evaluate a model as agent and simulator in any Gymnasium environment."""

    data: Path
    """Folder written by `data.record`; it says which environment, policy and tasks."""
    out: Path = Path("runs/environment")
    """Folder for report.json, report.md, frames.png, rollouts.mp4 and index.html."""
    agent_episodes: int = 64
    """Episodes that the agent plays; so many the policy and random actions, too."""
    episodes: int = 32
    """Recorded episodes that the simulator is compared with."""
    parallel: int = 16
    """Environments side by side."""
    temperature: float = TEMPERATURE
    """Temperature of the agent's tokens; 0 takes the likeliest."""
    first_seed: int = DEVELOPMENT_SEEDS.start
    """First environment seed; those below 1,000,000 belong to training."""


@dataclass
class EnvironmentReport:
    """What was measured in an environment, figure by figure.

    Attributes:
        settings: Options of the run, the model's size and the machine.
        success: Who played -> task -> won, of how many whose end is known.
        unknown: Who played -> ends that nobody knows, which count nowhere.
        found: The simulator beside recorded episodes.
    """

    settings: dict[str, Any]
    success: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    found: Comparison = field(default_factory=Comparison)

    def begin(self, who: str) -> None:
        """Somebody plays, and has not ended an episode yet."""
        self.success[who], self.unknown[who] = {}, 0

    def count(self, who: str, task: str | None, outcome: str | None) -> None:
        """Counts the end of an episode; one that nobody knows is neither won nor lost."""
        if outcome is None:
            self.unknown[who] += 1
            return
        cell = self.success[who].setdefault(task or "no task", [0, 0])
        cell[0] += outcome == "success"
        cell[1] += 1

    def estimates(self) -> dict[str, Estimate]:
        """Every figure with its interval."""
        played = {}
        for who, tasks in self.success.items():
            if not tasks:  # all ends are unknown
                continue
            cells = {
                **dict(sorted(tasks.items())),
                "all": [sum(c) for c in zip(*tasks.values(), strict=True)],
            }
            for task, (won, of) in cells.items():
                played[f"success/{who}/{task}"] = wilson_interval(won, of)
        return {**played, **self.found.estimates()}

    def table(self) -> str:
        """All figures as Markdown tables."""
        played, who = self.estimates(), list(self.success)
        if not who:
            return self.found.table()
        lines = [f"| success | {' | '.join(who)} |", "|---" * (len(who) + 1) + "|"]
        tasks = sorted({task for told in self.success.values() for task in told})
        lines += [
            f"| {task} | "
            + " | ".join(str(played.get(f"success/{name}/{task}", "")) for name in who)
            + " |"
            for task in (*tasks, *(["all"] if tasks else []))
        ]
        unknown = [f"{count} of {name}" for name, count in self.unknown.items() if count]
        if unknown:
            lines += [
                "",
                f"How episodes ended is unknown for {', '.join(unknown)}: nobody said what a "
                "success is. Record with --outcome to count them.",
            ]
        return "\n".join([*lines, "", self.found.table()])

    def save(self, folder: Path) -> None:
        """Writes report.json, report.md, pictures and a page, each whole or not at all."""
        content = {"settings": self.settings, "figures": self.estimates()}
        write_json(folder / "report.json", plain(content))
        with atomic_path(folder / "report.md") as draft:
            draft.write_text(self.table() + "\n")
        write_gallery(folder, "Model and environment", self.found, self.table())


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
            "that no environment is known to play in; eval.recordings needs none"
        )
    if arguments.first_seed < DEVELOPMENT_SEEDS.start:
        raise ValueError(
            f"first_seed={arguments.first_seed} belongs to training; use "
            f"{DEVELOPMENT_SEEDS.start} or more"
        )
    arguments.check("agent_episodes", "episodes", "parallel")
    model, processor = load(arguments.model, arguments.device)
    arguments = with_steps(arguments, model)
    settings: dict[str, Any] = dict(vars(arguments))
    settings["parameters"] = sum(p.numel() for p in model.parameters())
    settings["recorder"] = info["recorder"]
    report = EnvironmentReport({**settings, "machine": machine()})
    recorder = _recorder(arguments.data, dict(info["recorder"]))
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.episodes)
    recordings = [
        Recording.of(recorder.record(seed)) for seed in tqdm(seeds, desc="record", leave=False)
    ]
    player, space = Player(model, processor), action_space_of(processor)
    compare(player, recordings, report.found, space, arguments, lambda: report.save(arguments.out))
    for policy in dict.fromkeys((recorder.policy, "random")):
        with closing(replace(recorder, policy=policy, noise=0.0)) as calm:
            play_policy(calm, report, arguments)
        report.save(arguments.out)
    play_agent(model, processor, recorder, report, arguments)
    recorder.close()
    report.save(arguments.out)
    return report


def _recorder(folder: Path, options: dict[str, Any]) -> GymnasiumRecorder:
    unknown = sorted(options.keys() - {option.name for option in fields(GymnasiumRecorder)})
    if unknown:
        raise ValueError(
            f"{folder} was recorded by another version, with {', '.join(unknown)}, which this one "
            "does not know; record it anew, or use eval.recordings, which needs no environment"
        )
    size = options.get("size")
    return GymnasiumRecorder(**{**options, "size": size and tuple(size)})


def play_policy(
    recorder: GymnasiumRecorder, report: EnvironmentReport, arguments: EnvironmentArguments
) -> None:
    """Success of the recorded policy and of random actions, to compare the agent with."""
    report.begin(recorder.policy)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.agent_episodes)
    for seed in tqdm(seeds, desc=recorder.policy, leave=False):
        observation, info = recorder.environment.reset(seed=seed)
        recorder.environment.action_space.seed(seed)
        policy = load_policy(recorder.policy, recorder.environment)
        task = recorder.task or told_task(observation, info)
        outcome: str | None = "ongoing"
        judge = recorder.judge()
        for _ in range(recorder.max_steps):
            observation, reward, terminated, truncated, info = recorder.environment.step(
                policy(observation)
            )
            outcome = judge(float(reward), terminated, truncated, info, observation)
            if terminated or truncated or outcome in ("success", "failure"):
                break
        report.count(recorder.policy, task, outcome)


def play_agent(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    recorder: GymnasiumRecorder,
    report: EnvironmentReport,
    arguments: EnvironmentArguments,
) -> None:
    """The model plays, several environments at a time."""
    report.begin("model")
    count = min(arguments.parallel, arguments.agent_episodes)
    recorders = [replace(recorder) for _ in range(count)]
    envs = [one.environment for one in recorders]
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
        instructions = [recorder.task or told_task(*first) for first in begun]
        judges = [recorder.judge(env) for _, env in wave]
        alive = list(range(len(wave)))
        for step in range(recorder.max_steps):
            frames = [recorders[i].view() for i in alive]
            actions = agent.act(frames, [instructions[i] for i in alive])
            going = []
            for row, (i, action) in enumerate(zip(alive, actions, strict=True)):
                taken = agent.environment_action(action)
                seen, reward, terminated, truncated, info = wave[i][1].step(taken)
                outcome = judges[i](float(reward), terminated, truncated, info, seen)
                is_over = terminated or truncated or outcome in ("success", "failure")
                if not is_over and step < recorder.max_steps - 1:
                    going.append(row)
                else:
                    report.count("model", instructions[i], outcome)
            if not going:
                break
            if len(going) < len(alive):
                agent.keep(going)
            alive = [alive[row] for row in going]
    for one in recorders:
        one.close()


def main() -> None:
    """Command line."""
    arguments = tyro.cli(EnvironmentArguments, description=__doc__)
    with command("eval.environment"):
        report = evaluate(arguments)
    print(report.table())
    print(f"\nsaved in {arguments.out}")


if __name__ == "__main__":
    main()
