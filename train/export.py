"""Publish a trained model: half precision, with its model card.

python -m train.export --model runs/pretrain/model --report runs/eval/report.json
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from unified.command import command
from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_folder
from unified.modeling import UnifiedModel

MAX_MEGABYTES = 20

CARD = """---
license: apache-2.0
library_name: transformers
tags: [world-model, agent, transfusion, babyai]
---

# {name}

One transformer of {parameters:,} parameters that is both the agent and the world of BabyAI: it
reads a task, sees 56x56 frames, speaks and acts, draws the next frame, names the action between
two frames, and imagines whole episodes.

- **Data**: {data}
- **Recipe**: {recipe}
- **Cost**: {cost}
- **Weights**: float16 safetensors, {weights:.1f} MB (the whole folder {megabytes:.1f} MB),
  averaged over the last steps (EMA).

## Scores

By `python -m eval.run --agent-episodes {agent_episodes} --episodes {episodes}` (of each level, for
the agent and for the rest) on environment seeds from {first_seed:,} up, which training never
saw{seeds},
with {num_inference_steps} denoise steps. The agent says its subgoal before it acts, and samples at
temperature {temperature}.
A tile is *determined* when the frames before it and the actions leave one possibility; what comes
into view for the first time is scored apart. Floors are the best simple rules there are.

{table}

Measured on: {machine}.

## Limits

It knows small BabyAI rooms and nothing else: {levels}. Its words are BabyAI's. What enters the
view for the first time is made up.
"""

SEEDS = {
    True: " and which were looked at in this one run, of the weights as they are here",
    False: " but on which checkpoints and settings were chosen",
}
"""What the card says of the seeds, by whether `eval.run --final` measured on them."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a model in half precision with its card."""

    model: Path
    """Trained model folder."""
    report: Path
    """report.json of `eval.run` on that model; report.md lies beside it."""
    out: Path
    """Folder to write, replaced as a whole."""
    data: str = (
        "12,000 episodes a level of GoToRedBall, GoToLocal, PickupLoc, OpenDoor (the bot: expert, "
        "noisy, random) and of Clutter, a cluttered room walked through (environment seeds 0 to "
        "11,999 each)"
    )
    """For the card."""
    recipe: str
    """For the card."""
    cost: str
    """For the card."""


def export(arguments: ExportArguments) -> Path:
    """Writes the folder, whole or not at all.

    Raises:
        ValueError: If the report is missing, or the weights are too large for the package.
    """
    if not arguments.report.exists():
        raise ValueError(f"{arguments.report} does not exist; run python -m eval.run first")
    settings: dict[str, Any] = json.loads(arguments.report.read_text())["settings"]
    model = UnifiedModel.from_pretrained(str(arguments.model))
    processor = UnifiedProcessor.from_pretrained(str(arguments.model))
    with atomic_folder(arguments.out) as draft:
        model.half().save_pretrained(draft)
        processor.save_pretrained(draft)
        megabytes = sum(f.stat().st_size for f in draft.rglob("*") if f.is_file()) / 1e6
        if megabytes > MAX_MEGABYTES:
            raise ValueError(
                f"{arguments.model} takes {megabytes:.1f} MB, more than {MAX_MEGABYTES}; shrink it"
            )
        facts = {
            "name": f"{arguments.out.name} (Unified)",
            "data": arguments.data,
            "recipe": arguments.recipe,
            "cost": arguments.cost,
            "megabytes": megabytes,
            "weights": sum(f.stat().st_size for f in draft.glob("*.safetensors")) / 1e6,
            "seeds": SEEDS[bool(settings.get("final"))],
            "table": arguments.report.with_suffix(".md").read_text().strip(),
        }
        try:
            levels = ", ".join(settings["levels"])
            card = CARD.format(**{**settings, "levels": levels}, **facts)
        except KeyError as error:
            raise ValueError(
                f"{arguments.report} does not tell {error}; run python -m eval.run again"
            ) from error
        (draft / "README.md").write_text(card)
    return arguments.out


def main() -> None:
    """Command line."""
    with command("train.export"):
        print(f"exported: {export(tyro.cli(ExportArguments, description=__doc__))}")


if __name__ == "__main__":
    main()
