"""What looking ahead is worth: success of an agent that imagines futures before it acts.

python -m eval.planning --model babyai --levels PickupLoc --plans 4 16

The floor is the same agent without planning, on the same seeds. The cost stands beside each row:
passes of the model for an action, at most, all futures in one batch.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from eval.babyai.agent import TEMPERATURE, AgentResult, evaluate_agent
from eval.report import load, machine, plain
from eval.seeds import DEVELOPMENT_SEEDS
from unified.command import command
from unified.files import atomic_path, write_json
from unified.roles.planning import PlanOptions


@dataclass(frozen=True, kw_only=True)
class PlanningArguments:
    """Measure what looking ahead is worth."""

    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    out: Path = Path("runs/planning")
    """Folder for report.json and report.md."""
    levels: tuple[str, ...] = ("PickupLoc", "OpenDoor")
    """BabyAI levels to play."""
    plans: tuple[int, ...] = (4, 16)
    """Numbers of futures before each action."""
    horizon: int = 8
    """Most actions of a future."""
    discount: float = 0.95
    """Factor on the worth of a success for each step until then."""
    num_inference_steps: int = 2
    """Denoise steps of an imagined frame."""
    episodes: int = 64
    """Episodes of each level, side by side."""
    max_steps: int = 64
    """Steps after which an episode has failed."""
    first_seed: int = DEVELOPMENT_SEEDS.start
    """First environment seed; those below 1,000,000 belong to training."""
    temperature: float = TEMPERATURE
    """Temperature of the agent's own actions."""
    seed: int = 0
    """Seed of the model's noise."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""


@dataclass(frozen=True)
class Played:
    """One level with one number of futures; 0 is without planning."""

    level: str
    futures: int
    passes: int
    seconds: float
    result: AgentResult


def evaluate(arguments: PlanningArguments) -> list[Played]:
    """Plays; what is found is in `arguments.out` after each level.

    Raises:
        ValueError: If the model or a level is missing, or a number is out of range.
    """
    for name in ("episodes", "max_steps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
    if arguments.first_seed < DEVELOPMENT_SEEDS.start:
        raise ValueError(
            f"first_seed={arguments.first_seed} belongs to training; use "
            f"{DEVELOPMENT_SEEDS.start} or more"
        )
    plans = {
        futures: PlanOptions(
            futures=futures,
            horizon=arguments.horizon,
            discount=arguments.discount,
            num_inference_steps=arguments.num_inference_steps,
        )
        for futures in arguments.plans
    }
    model, processor = load(arguments.model, arguments.device)
    played: list[Played] = []
    for level in arguments.levels:
        for futures, plan in {0: None, **plans}.items():
            start = time.monotonic()
            result = evaluate_agent(
                model,
                processor,
                level,
                episodes=arguments.episodes,
                first_seed=arguments.first_seed,
                temperature=arguments.temperature,
                max_steps=arguments.max_steps,
                plan=plan,
                seed=arguments.seed,
            )
            seconds = time.monotonic() - start
            passes = futures * arguments.horizon * (arguments.num_inference_steps + 2)
            played.append(Played(level, futures, passes, seconds, result))
            save(played, arguments)
    return played


def table(played: list[Played]) -> str:
    """The figures in Markdown."""
    lines = [
        "| level | futures | passes for an action, at most | success | steps | seconds in all |",
        "|---|---|---|---|---|---|",
    ]
    for one in played:
        steps = "" if one.result.steps is None else f"{one.result.steps:.1f}"
        lines.append(
            f"| {one.level} | {one.futures or 'none'} | {one.passes} | {one.result.success} | "
            f"{steps} | {one.seconds:.0f} |"
        )
    return "\n".join(lines)


def save(played: list[Played], arguments: PlanningArguments) -> None:
    """Writes report.json and report.md, each whole or not at all."""
    settings: dict[str, Any] = {**vars(arguments), "machine": machine()}
    content = {"settings": settings, "played": [vars(one) for one in played]}
    write_json(arguments.out / "report.json", plain(content))
    with atomic_path(arguments.out / "report.md") as draft:
        draft.write_text(table(played) + "\n")


def main() -> None:
    """Command line."""
    arguments = tyro.cli(PlanningArguments, description=__doc__)
    with command("eval.planning"):
        played = evaluate(arguments)
    print(table(played))
    print(f"\nsaved in {arguments.out}")


if __name__ == "__main__":
    main()
