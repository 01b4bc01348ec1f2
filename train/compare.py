"""LoRA, full finetuning or from scratch, and how many episodes: what each gives, in one table.

python -m train.compare --level PutNextLocal --data DIR --out runs/compare

Every cell is one `train.finetune` run and one `eval.run` on the level's held-out seeds, all with
the same number of steps. What is finished is kept, so that an interrupted comparison goes on.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from eval.run import EvalArguments, evaluate
from train.finetune import FinetuneArguments, train
from unified.command import command
from unified.files import atomic_path

Method = Literal["lora", "full", "scratch"]
COLUMNS = {
    "success": "agent: success",
    "tiles": "next frame: determined tiles",
    "changed": "of those that changed",
    "rollout": "rollout: tiles at frame 16",
}


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Compare ways to adapt a model to a level of BabyAI that it does not know."""

    level: str
    """The level, whose held-out seeds are evaluated."""
    data: Path
    """Folder with its recorded episodes."""
    out: Path
    """Folder for the runs and the table."""
    model: str = "babyai"
    """Base model: folder, hub id, or embedded name."""
    methods: tuple[Method, ...] = ("lora", "full", "scratch")
    """Ways to adapt that are compared."""
    episodes: tuple[int, ...] = (50, 200, 1000)
    """Numbers of training episodes."""
    steps: int = 400
    """Optimiser steps of each run."""
    rows: int | None = None
    """Rows of each step, instead of the recipe's."""
    lora_rank: int = 8
    """Rank of the adapters."""
    agent_episodes: int = 128
    """Episodes that the agent plays."""
    eval_episodes: int = 24
    """Episodes for all other figures."""
    bf16: bool = False
    """Train in bfloat16 (autocast)."""
    compile: bool = False
    """Train with compiled layers."""
    device: str | None = None
    """`cpu` or `cuda`, to train and evaluate on; CUDA where there is one if not given."""
    seed: int = 0
    """Seed of all runs."""


def compare(arguments: CompareArguments) -> str:
    """Runs what is missing, and returns the table of all that is finished in `out`, as Markdown."""
    _evaluated(arguments, arguments.model, "base")
    for count in sorted(arguments.episodes, reverse=True):
        for method in arguments.methods:
            name = f"{method}-{count}"
            out = arguments.out / name
            folder = out / ("adapter" if method == "lora" else "model")
            if not (folder / "check.json").exists():
                train(
                    FinetuneArguments(
                        model=arguments.model,
                        method=method,
                        data=arguments.data,
                        out=out,
                        episodes=count,
                        steps=arguments.steps,
                        rows=arguments.rows,
                        lora_rank=arguments.lora_rank,
                        seed=arguments.seed,
                        bf16=arguments.bf16,
                        compile=arguments.compile,
                        device=arguments.device,
                        sample_steps=0,
                        resume=True,
                    )
                )
            _evaluated(arguments, str(folder), name)
            with atomic_path(arguments.out / "compare.md") as draft:
                draft.write_text(_table(arguments.out) + "\n")
    return _table(arguments.out)


def _evaluated(arguments: CompareArguments, model: str, name: str) -> None:
    """Measures a model on the level, once."""
    folder = arguments.out / f"eval-{name}"
    if not (folder / "report.json").exists():
        evaluate(
            EvalArguments(
                model=model,
                out=folder,
                levels=(arguments.level,),
                parts=("agent", "next", "rollout"),
                agent_episodes=arguments.agent_episodes,
                episodes=arguments.eval_episodes,
                seed=arguments.seed,
                device=arguments.device,
            )
        ).save(folder)


def _table(out: Path) -> str:
    """What was measured in `out`, in this run and in earlier ones."""
    lines = [f"| | episodes | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    cells = [folder.name.split("-")[1:] for folder in out.glob("eval-*-*")]
    order = {method: place for place, method in enumerate(get_args(Method))}
    found = sorted(cells, key=lambda cell: (-int(cell[1]), order[cell[0]]))
    for method, count in [("base", "-"), *found]:
        folder = out / (f"eval-{method}-{count}" if count != "-" else "eval-base")
        if (folder / "report.json").exists():
            figures = _figures(folder)
            shown = [_shown(figures[name]) for name in COLUMNS]
            lines.append(f"| {method} | {count} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _figures(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    shares = report["shares"]["all"]
    return {
        "success": report["agent"][0]["success"],
        "tiles": shares["next/determined/model"],
        "changed": shares["next/changed/model"],
        "rollout": shares["rollout/16/determined/model"],
    }


def _shown(estimate: dict[str, float]) -> str:
    low, high = estimate["low"], estimate["high"]
    return f"{100 * estimate['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Command line."""
    with command("train.compare"):
        print(compare(tyro.cli(CompareArguments, description=__doc__)))


if __name__ == "__main__":
    main()
