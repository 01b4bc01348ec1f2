"""Evaluate one model as agent, simulator, inverse model, speaker and dreamer, on unseen seeds.

python -m eval.run --model babyai --out runs/eval
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from eval.babyai.agent import TEMPERATURE, evaluate_agent
from eval.babyai.episodes import LEVELS, lasting_episodes, recorded_episodes
from eval.babyai.joint import evaluate_joint
from eval.babyai.language import evaluate_captions
from eval.babyai.player import Player
from eval.babyai.simulator import (
    evaluate_codec,
    evaluate_inverse,
    evaluate_next_frame,
    evaluate_rollout,
)
from eval.babyai.tally import Tally
from eval.report import Report, load, machine, with_steps
from eval.seeds import first_seed
from unified.command import command

Part = Literal["codec", "agent", "next", "rollout", "inverse", "caption", "joint"]
PARTS: tuple[Part, ...] = ("codec", "agent", "next", "rollout", "inverse", "caption", "joint")


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Evaluate one model on BabyAI seeds that training never saw."""

    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    out: Path = Path("runs/eval")
    """Folder for report.json and report.md."""
    levels: tuple[str, ...] = LEVELS
    """BabyAI levels."""
    parts: tuple[Part, ...] = PARTS
    """Parts of the evaluation."""
    agent_episodes: int = 128
    """Episodes per level that the agent plays."""
    episodes: int = 24
    """Episodes per level for all other figures."""
    max_steps: int = 64
    """Steps after which an agent's episode counts as failed."""
    context_frames: int = 4
    """True frames before a rollout."""
    horizon: int = 16
    """Frames of a rollout."""
    max_turns: int = 8
    """Frames of an imagined episode."""
    num_inference_steps: int | None = None
    """Denoise steps of a frame; None is the model's own number."""
    temperature: float = TEMPERATURE
    """Temperature of the agent's tokens; 0 takes the likeliest, and may turn in circles."""
    think: bool = True
    """Whether the agent says what it is about to do before it acts."""
    joint_temperature: float = 1.0
    """Temperature of imagined actions."""
    first_seed: int | None = None
    """First environment seed, from 1,000,000 on; see `eval/seeds.py`."""
    final: bool = False
    """The final run of a release: on seeds that were never looked at, of the weights as they ship
    (float16)."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""
    seed: int = 0
    """Seed of the model's noise."""


def evaluate(arguments: EvalArguments) -> Report:
    """Runs the parts and returns the report.

    Raises:
        ValueError: If the model is missing, a level is unknown, or the seeds were trained on.
    """
    arguments = replace(
        arguments, first_seed=first_seed(arguments.first_seed, final=arguments.final)
    )
    model, processor = load(arguments.model, arguments.device)
    if arguments.final:
        model.half().float()  # as `train.export` writes them
    player = Player(model, processor)
    arguments = with_steps(arguments, model)
    settings = {name: _plain(value) for name, value in vars(arguments).items()}
    settings["parameters"] = sum(p.numel() for p in model.parameters())
    report = Report({**settings, "machine": machine()})
    for level in arguments.levels:
        _evaluate_level(player, level, arguments, report)
    return report


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _evaluate_level(player: Player, level: str, arguments: EvalArguments, report: Report) -> None:
    parts, count, seed = arguments.parts, arguments.episodes, arguments.seed
    begin = arguments.first_seed
    assert begin is not None
    steps = arguments.num_inference_steps
    tally = Tally()
    with _timed(report, "agent"):
        if "agent" in parts:
            result = evaluate_agent(
                player.model,
                player.processor,
                level,
                episodes=arguments.agent_episodes,
                first_seed=begin,
                temperature=arguments.temperature,
                think=arguments.think,
                max_steps=arguments.max_steps,
                seed=seed,
            )
            report.agents.append(result)
    with _timed(report, "episodes"):
        episodes = recorded_episodes(level, count, begin)
    if "codec" in parts:
        with _timed(report, "codec"):
            evaluate_codec(player, episodes, tally)
    if "next" in parts:
        with _timed(report, "next"):
            answers = evaluate_next_frame(
                player, episodes, tally, num_inference_steps=steps, seed=seed
            )
        report.outcome.merge(answers)
    if "rollout" in parts:
        with _timed(report, "rollout"):
            length = arguments.context_frames + arguments.horizon - 1
            evaluate_rollout(
                player,
                lasting_episodes(level, count, begin, length),
                tally,
                context_frames=arguments.context_frames,
                horizon=arguments.horizon,
                num_inference_steps=steps,
                seed=seed,
            )
    if "inverse" in parts:
        with _timed(report, "inverse"):
            report.inverse.merge(evaluate_inverse(player, episodes, seed=seed))
    if "caption" in parts:
        with _timed(report, "caption"):
            report.misses += evaluate_captions(player, episodes, tally)
    if "joint" in parts:
        with _timed(report, "joint"):
            imagined = evaluate_joint(
                player,
                episodes,
                tally,
                max_turns=arguments.max_turns,
                temperature=arguments.joint_temperature,
                num_inference_steps=steps,
                seed=seed,
            )
        report.imagined.merge(imagined)
    report.tally.merge(tally)
    report.levels[level] = tally


@contextmanager
def _timed(report: Report, part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report.seconds[part] = report.seconds.get(part, 0.0) + time.perf_counter() - start


def main() -> None:
    """Command line."""
    arguments = tyro.cli(EvalArguments, description=__doc__)
    with command("eval.run"):
        report = evaluate(arguments)
    report.save(arguments.out)
    print(report.table())
    total = sum(report.seconds.values())
    print(f"\n{total:.0f} s; saved in {arguments.out}/report.json and report.md")


if __name__ == "__main__":
    main()
