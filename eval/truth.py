"""Is the model's world true? Effects, words, events, dreams, long rollouts and questions.

python -m eval.truth --model babyai --out runs/truth
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from eval.babyai.player import Player
from eval.findings import Findings, Section
from eval.report import load, machine, with_steps
from eval.world.dream import LEVELS as DREAM_LEVELS
from eval.world.dream import compare, play_both
from eval.world.effects import evaluate_effects, evaluate_swaps, make_cases, matrix
from eval.world.openloop import ROOMS, ModelRoller, evaluate_loops, make_loops
from eval.world.questions import ModelAnswerer, evaluate_questions, make_questions
from eval.world.words import (
    described_frames,
    evaluate_captions_drawn,
    evaluate_events,
    evaluate_missions,
    hidden_starts,
    make_events,
)
from eval.world.worlds import DreamtWorlds, ModelDrawer, Start, Worlds, starts_of
from unified.command import command

Part = Literal["effects", "swap", "events", "words", "missions", "dream", "loop", "questions"]
PARTS: tuple[Part, ...] = (
    "effects",
    "swap",
    "events",
    "words",
    "missions",
    "dream",
    "loop",
    "questions",
)
EVALUATION_SEEDS = 1_000_000
SPEAKS = ("events", "words")
"""Parts in which the world speaks."""
UNSUPPORTED = (
    "Not supported: this model was never taught words of the world (its vocabulary has no <world>)."
)


@dataclass(frozen=True, kw_only=True)
class TruthArguments:
    """Compare one model's world with the real one, on seeds that training never saw."""

    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    out: Path = Path("runs/truth")
    """Folder for truth.json, truth.md and truth.html."""
    parts: tuple[Part, ...] = PARTS
    """What to evaluate."""
    cases: int = 20
    """Cases of each effect and event; the other parts have as many more or fewer."""
    seed: int = 1_500_000
    """First environment seed; those below 1,000,000 belong to training."""
    num_inference_steps: int | None = None
    """Denoise steps of a frame; None is the model's own number."""
    long: bool = False
    """Open loop to frame 256 instead of 64."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""


def evaluate(
    arguments: TruthArguments, on_part: Callable[[Findings], object] | None = None
) -> Findings:
    """Runs the parts.

    Args:
        arguments: What to evaluate.
        on_part: Called with what was found so far whenever a part is done.

    Raises:
        ValueError: If the model is missing, there are no cases, the seeds were trained on, or the
            device cannot be used.
    """
    if arguments.seed < EVALUATION_SEEDS:
        raise ValueError(
            f"seed={arguments.seed} belongs to training; use {EVALUATION_SEEDS} or more"
        )
    if arguments.cases < 1:
        raise ValueError(f"cases={arguments.cases} must be at least 1; 20 is usual")
    model, processor = load(arguments.model, arguments.device)
    player = Player(model, processor)
    arguments = with_steps(arguments, model)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
    }
    settings["parameters"] = sum(p.numel() for p in model.parameters())
    findings = Findings({**settings, "machine": machine()})
    chosen: list[Part] = [part for part in PARTS if part in arguments.parts]
    bar = tqdm(chosen, desc="truth")
    for part in bar:
        bar.set_description(part)
        start = time.perf_counter()
        if part in SPEAKS and model.config.world_token_id is None:
            findings.sections[part] = Section(part.capitalize(), note=UNSUPPORTED)
        else:
            findings.sections[part] = _RUNS[part](player, arguments)
        findings.seconds[part] = time.perf_counter() - start
        if on_part is not None:
            on_part(findings)
    return findings


def _drawer(player: Player, arguments: TruthArguments, label: str) -> ModelDrawer:
    return ModelDrawer(player, num_inference_steps=arguments.num_inference_steps, label=label)


def _effects(player: Player, arguments: TruthArguments) -> Section:
    cases = make_cases(arguments.cases, arguments.seed)
    return evaluate_effects(cases, _drawer(player, arguments, "effects"))


def _swap(player: Player, arguments: TruthArguments) -> Section:
    cells = matrix()[:: max(1, 10 // arguments.cases)]
    cases = make_cases(max(1, arguments.cases // 10), arguments.seed, cells)
    return evaluate_swaps(cases, _drawer(player, arguments, "task swapped"))


def _events(player: Player, arguments: TruthArguments) -> Section:
    events = make_events(arguments.cases, arguments.seed)
    return evaluate_events(events, _drawer(player, arguments, "events"))


def _words(player: Player, arguments: TruthArguments) -> Section:
    described = described_frames(4 * arguments.cases, arguments.seed)
    drawers = {
        f"{steps} denoise steps": ModelDrawer(player, num_inference_steps=steps, label="words")
        for steps in sorted({arguments.num_inference_steps or 16, 16})
    }
    return evaluate_captions_drawn(described, drawers)


def _missions(player: Player, arguments: TruthArguments) -> Section:
    steps = arguments.num_inference_steps
    shown, hidden = [], []
    for level in DREAM_LEVELS:
        starts = starts_of(level, 4 * arguments.cases, arguments.seed)
        shown += starts
        hidden += hidden_starts(starts)[: max(2, arguments.cases // 2)]
    asked = [replace(start, view=None) for start in shown]
    section = evaluate_missions(
        hidden,
        shown,
        DreamtWorlds(player, hidden, num_inference_steps=steps),
        DreamtWorlds(player, asked, num_inference_steps=steps),
        max_steps=30,
    )
    if player.model.config.world_token_id is None:
        section.note += " This model has no words of the world: the task alone opens its worlds."
    return section


def _dream(player: Player, arguments: TruthArguments) -> Section:
    count = max(2, round(1.6 * arguments.cases))
    starts = [s for level in DREAM_LEVELS for s in starts_of(level, count, arguments.seed)]
    steps = arguments.num_inference_steps

    def dreams(starts: list[Start]) -> Worlds:
        return DreamtWorlds(player, starts, num_inference_steps=steps)

    return compare(play_both(player, starts, dreams))


def _loop(player: Player, arguments: TruthArguments) -> Section:
    horizon = 256 if arguments.long else 64
    count = max(2, arguments.cases // 2)
    loops = [
        loop
        for behaviour in ROOMS
        for loop in make_loops(behaviour, count, arguments.seed, horizon)
    ]
    roller = ModelRoller(player, num_inference_steps=arguments.num_inference_steps)
    return evaluate_loops(loops, roller)


def _questions(player: Player, arguments: TruthArguments) -> Section:
    questions = make_questions(arguments.cases, arguments.seed)
    return evaluate_questions(questions, ModelAnswerer(player))


_RUNS: dict[Part, Callable[[Player, TruthArguments], Section]] = {
    "effects": _effects,
    "swap": _swap,
    "events": _events,
    "words": _words,
    "missions": _missions,
    "dream": _dream,
    "loop": _loop,
    "questions": _questions,
}


def main() -> None:
    """Command line."""
    arguments = tyro.cli(TruthArguments, description=__doc__)
    with command("eval.truth"):
        findings = evaluate(arguments, lambda so_far: so_far.save(arguments.out))
    print(findings.markdown())
    total = sum(findings.seconds.values())
    print(f"{total:.0f} s; saved in {arguments.out}/truth.json, truth.md and truth.html")


if __name__ == "__main__":
    main()
