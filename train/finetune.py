"""Adapt a trained model to your data: `python -m train.finetune --model babyai --data DIR`.

With LoRA what comes out is an adapter, a small folder that `UnifiedModel.from_pretrained` loads
like a model. Afterwards the model has to answer for a few of its training episodes, so that nobody
takes a loss that fell for a model that learned.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from transformers import set_seed

from data.dataset import LATENTS_INFO_FILE, EpisodeDataset
from data.latents import write_latents
from train.check import Check, ask, same_weights
from train.heard import heard
from train.optimizer import MuonAdamW
from train.recipes import Recipe, finetune
from train.rows.mixture import Mixture
from train.samples import Samples
from train.trainer import (
    RunArguments,
    SaveByTime,
    UnifiedTrainer,
    check_codec,
    checkpoint_to_resume,
    rows_of_run,
    training_arguments,
)
from unified.command import command
from unified.conversation.processing import ACTIONS_FILE, UnifiedProcessor
from unified.files import atomic_folder, atomic_path, write_json
from unified.media.action_space import ActionSpace
from unified.media.actions import NamedActions
from unified.media.codec import FrameCodec
from unified.model.adapters import PRESETS, Preset, fingerprint, lora_config, save_adapter
from unified.modeling import UnifiedModel

WHAT = {
    "lora": "LoRA adapter of rank {rank} for",
    "full": "All weights, trained on from those of",
    "scratch": "All weights, trained from random ones, in the shape of",
}
CARD = """---
library_name: peft
base_model: {base}
tags: [world-model, agent, transfusion, lora]
---

# {title}

{what} `{base}` (weights {fingerprint}), preset `{preset}`: {trainable:,} trained parameters of
{total:,}, {steps:,} steps on {episodes:,} episodes of {levels}.

```python
from unified.modeling import UnifiedModel
from unified.conversation.processing import UnifiedProcessor

model = UnifiedModel.from_pretrained("{out}")
processor = UnifiedProcessor.from_pretrained("{out}")
```

## Did it work?

{table}

{verdict}
"""


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(RunArguments):
    """Adapt a trained model to recorded episodes, by LoRA or as a whole."""

    model: str = "babyai"
    """Model to start from: folder, hub id, or embedded name."""
    method: Literal["lora", "full", "scratch"] = "lora"
    """An adapter; all weights; or all weights from random ones, to see what the start is worth."""
    preset: Preset = "both"
    """What to learn: agent (words and actions), world (frames and outcomes), or both."""
    actions: Path | None = None
    """Action space of the data (JSON); `action_space.json` in the data folder if not given, and if
    there is none, the model's."""
    codec: Path | None = None
    """Codec of the data (from `train.codec`), if the model's own cannot draw its frames."""
    lora_rank: int = 8
    """Rank of the adapter."""
    lora_alpha: float | None = None
    """Scale of the adapter, times 1 / rank; twice the rank if not given."""
    lora_dropout: float = 0.0
    """Dropout in front of the adapter."""
    episodes: int | None = None
    """Only the first so many episodes of the data."""
    check_episodes: int = 16
    """Training episodes on which the result is checked; 0 checks nothing."""


def train(arguments: FinetuneArguments) -> Path:
    """Runs, checks, and returns the folder of the adapter or the model.

    Raises:
        ValueError: If the preset is unknown, model or data are missing or do not fit, or `out`
            holds another run.
    """
    if arguments.preset not in PRESETS:
        raise ValueError(f"preset {arguments.preset!r} is unknown; use {', '.join(PRESETS)}")
    is_lora = arguments.method == "lora"
    recipe = arguments.adjust(finetune(arguments.preset, is_lora=is_lora))
    options = training_arguments(arguments, recipe)
    set_seed(arguments.seed)
    model = UnifiedModel.from_pretrained(arguments.model)
    processor = UnifiedProcessor.from_pretrained(arguments.model)
    base_fingerprint = fingerprint(model)
    if arguments.codec is not None:
        codec = FrameCodec.from_pretrained(arguments.codec)
        processor = processor.with_codec(codec)
        found, known = codec.latent_channels, model.config.latent_channels
        if is_lora and found != known:
            raise ValueError(
                f"{arguments.codec} has {found} channels, the model {known}; use --method full, or "
                "train a codec with as many channels"
            )
    actions = arguments.actions or arguments.data / ACTIONS_FILE
    if arguments.actions or actions.exists():
        space = ActionSpace.from_config(actions)
        if not _is_part(space, processor.action_space):
            processor = processor.with_action_space(space)
    with options.main_process_first(local=False):
        prepare_latents(arguments.data, processor, options.device)
    episodes = EpisodeDataset(arguments.data, require_latents=True)
    grid = _grid(episodes, processor)
    if grid != tuple(model.config.latent_grid):
        print(f"frames of {grid[0]} x {grid[1]} tokens, the base had {model.config.latent_grid}")
    model.adopt(processor, grid)
    if not is_lora:
        model.fold_adopted()
        model.config.made_for = processor.fingerprints()
    if arguments.method == "scratch":
        model = UnifiedModel(model.config)
    model.is_compiled = arguments.compile
    mixture = replace(recipe.mixture, num_episodes=arguments.episodes)
    if not episodes.has_captions:
        mixture = replace(mixture, describe_share=0.0, imagine_share=0.0)
    dataset = Mixture(
        episodes,
        processor,
        model.config,
        mixture,
        num_rows=rows_of_run(options),
        seed=arguments.seed,
    )
    if not dataset.hears_world and episodes.speaks_world:
        print(
            f"{arguments.model} has no words of the world: parts in which the data's world speaks "
            "are left out (babyai-world hears them)"
        )
    checkpoint = checkpoint_to_resume(arguments)
    trained: Any = model
    if is_lora:
        from peft import get_peft_model

        lora = {
            "rank": arguments.lora_rank,
            "alpha": arguments.lora_alpha,
            "dropout": arguments.lora_dropout,
        }
        trained = get_peft_model(model, lora_config(model, arguments.preset, **lora))  # pyright: ignore[reportArgumentType]
    trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trained.parameters())
    print(
        f"{trainable:,} of {total:,} parameters are trained ({100 * trainable / total:.1f} %), on "
        f"{len(dataset.chosen):,} episodes, for {recipe.steps:,} steps"
    )
    if processor.lexicon is not None:  # else nobody knows what the base heard before
        processor.lexicon = heard(episodes, dataset.mixture, processor.lexicon)
    folder = arguments.out / "samples"
    trainer = UnifiedTrainer(
        model=trained,
        args=options,
        mixture=dataset,
        callbacks=[
            SaveByTime(arguments.save_seconds),
            Samples(model, processor, episodes, folder, arguments.sample_steps),
        ],
        optimizers=(_optimizer(trained, recipe, is_lora), None),
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    out = arguments.out / ("adapter" if is_lora else "model")
    if not trainer.is_world_process_zero():
        trainer.accelerator.wait_for_everyone()
        return out
    if is_lora:
        environment = {"source": episodes.info.get("source"), "levels": episodes.levels}
        save_adapter(trained, processor, out, base=arguments.model, environment=environment)
    else:
        with atomic_folder(out) as draft:
            model.save_pretrained(draft)
            processor.save_pretrained(draft)
    facts = {
        "title": out.parent.name,
        "what": WHAT[arguments.method].format(rank=arguments.lora_rank),
        "base": arguments.model,
        "fingerprint": base_fingerprint,
        "preset": arguments.preset,
        "trainable": trainable,
        "total": total,
        "steps": recipe.steps,
        "episodes": len(dataset.chosen),
        "levels": ", ".join(episodes.levels),
        "out": out.name,
    }
    if arguments.check_episodes:
        check = self_check(arguments, dataset, out, trainer)
        _report(check, facts, out)
    print(f"{'adapter' if is_lora else 'model'}: {out}")
    trainer.accelerator.wait_for_everyone()
    return out


def _is_part(space: ActionSpace, whole: ActionSpace | None) -> bool:
    """Whether data merely use some of the named actions that the model has."""
    if not isinstance(space, NamedActions) or not isinstance(whole, NamedActions):
        return False
    return set(space.names) <= set(whole.names)


def prepare_latents(data: Path, processor: UnifiedProcessor, device: torch.device) -> None:
    """Encodes the frames with the model's codec, if they are not encoded yet.

    Raises:
        ValueError: If there is no codec, or the latents are another codec's.
    """
    if processor.codec is None:
        raise ValueError("the model has no codec, so that it cannot read frames; give one that has")
    if not (data / LATENTS_INFO_FILE).exists():
        write_latents(data, processor.codec, device=str(device))
        processor.codec.to("cpu")
    check_codec(data, processor)


def _grid(episodes: EpisodeDataset, processor: UnifiedProcessor) -> tuple[int, int]:
    """Rows and columns of a frame's tokens."""
    assert episodes.latents is not None
    height, width = episodes.latents.shape[2:]
    side = processor.latent_patch_size
    if height % side or width % side:
        raise ValueError(
            f"latents of {height} x {width} cannot be cut into patches of {side} x {side}; record "
            "frames of another size"
        )
    return height // side, width // side


def _optimizer(model: torch.nn.Module, recipe: Recipe, is_lora: bool) -> torch.optim.Optimizer:
    """AdamW for adapters, whose matrices are thin; for a whole model what it was trained with."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if is_lora:
        adapted = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(adapted, lr=rate, betas=(0.9, 0.95), weight_decay=decay)
    return MuonAdamW(model.named_parameters(), lr=rate, weight_decay=decay)


def self_check(
    arguments: FinetuneArguments, dataset: Mixture, out: Path, trainer: UnifiedTrainer
) -> Check:
    """Asks the base and what lies in `out` about training episodes."""
    history, device = trainer.state.log_history, trainer.args.device
    count = min(arguments.check_episodes, len(dataset.chosen))
    step = len(dataset.chosen) / count
    indices = [int(dataset.chosen[int(i * step)]) for i in range(count)]
    base = UnifiedModel.from_pretrained(arguments.model).eval()
    found = UnifiedModel.from_pretrained(out).eval()
    # Of actions and sizes that are new to the base it knows nothing, and has to guess.
    base.adopt(dataset.processor, _grid(dataset.episodes, dataset.processor))
    if arguments.method != "lora":
        base.fold_adopted()
    answers = [
        ask(torch.nn.Module.to(model, device), dataset.processor, dataset.episodes, indices)  # pyright: ignore[reportArgumentType]
        for model in (base, found)
    ]
    return Check(
        *answers,
        token_loss=_first_and_last(history, "token_loss"),
        flow_loss=_first_and_last(history, "flow_loss"),
        is_changed=not same_weights(base, found),
    )


def _first_and_last(history: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """A loss at the first log line, and over the last quarter of them: single lines are noisy."""
    losses = [line[name] for line in history if name in line] or [0.0]
    last = losses[-max(1, len(losses) // 4) :]
    return losses[0], sum(last) / len(last)


def _report(check: Check, facts: dict[str, Any], out: Path) -> None:
    """Prints the check, and writes it beside the weights: check.json and the card."""
    warnings = check.warnings()
    verdict = "\n".join(f"**Warning**: {w}" for w in warnings) or "Yes: it knows its own episodes."
    print(f"\n{check.table()}\n\n{verdict}\n")
    content = json.loads(json.dumps(check, default=vars))
    write_json(out / "check.json", {**content, "warnings": warnings})
    with atomic_path(out / "README.md") as draft:
        draft.write_text(CARD.format(**facts, table=check.table(), verdict=verdict))


def main() -> None:
    """Command line."""
    with command("train.finetune"):
        train(tyro.cli(FinetuneArguments, description=__doc__))


if __name__ == "__main__":
    main()
