"""Train a model from nothing: `python -m train.pretrain --recipe babyai --data DIR --codec DIR`.

Or from a language model, whose words it keeps (`--recipe babyai-smollm2 --language-model DIR`).
The training loop is in `train.trainer`. This file makes the model and keeps the averaged weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from transformers import AutoTokenizer, TrainerCallback, set_seed

from data.dataset import EpisodeDataset
from train.heard import heard
from train.optimizer import MuonAdamW
from train.recipes import RECIPES, Recipe
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
from unified.configuration import UnifiedConfig
from unified.conversation.lexicon import Lexicon
from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_folder
from unified.media.action_space import ActionSpace
from unified.media.codec import FrameCodec
from unified.model import language
from unified.modeling import UnifiedModel
from unified.pretrained import resolve_checkpoint

EMA_FILE = "ema.safetensors"
ADAPTER_RATE = 0.2
"""Learning rate of a language model's adapters, relative to that of the added layers."""


@dataclass(frozen=True, kw_only=True)
class PretrainArguments(RunArguments):
    """Train a model from nothing, by a recipe."""

    codec: Path
    """Codec folder; the one the latents were made with."""
    recipe: str = "babyai"
    """Name of a recipe in `train/recipes.py`."""
    tokenizer: Path = Path("tokenizers_cfg/text")
    """Tokenizer folder."""
    actions: Path = Path("tokenizers_cfg/actions/babyai.json")
    """Action space."""
    init: str | None = None
    """Start from the weights of this model instead of random ones."""
    language_model: str | None = None
    """Folder or hub id of the Llama-, Qwen- or SmolLM2-like decoder of a recipe that wants one; it
    brings its own tokenizer."""
    gguf_file: str | None = None
    """Its file in that folder, if it is one in GGUF."""


class AveragedWeights(TrainerCallback):
    """Exponential moving average of the weights, saved with every checkpoint."""

    def __init__(self, model: torch.nn.Module, decay: float):
        """Starts at the model's weights."""
        self.decay = decay
        self.average = AveragedModel(model, multi_avg_fn=self._blend)

    @torch.no_grad()
    def _blend(self, averages: Any, weights: Any, count: Any) -> None:
        """Over the last tenth of the steps or `1 / (1 - decay)` of them, whichever is less.

        Otherwise a run shorter than that would keep most of the weights it started from.
        """
        decay = min(self.decay, (1 + int(count)) / (10 + int(count)))
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1 - decay)

    @property
    def model(self) -> UnifiedModel:
        """The model with the averaged weights; adapters, if there are any, are in it."""
        module: Any = self.average.module
        return module if isinstance(module, UnifiedModel) else module.get_base_model()

    def _trained(self) -> dict[str, torch.Tensor]:
        return {n: p.data for n, p in self.average.module.named_parameters() if p.requires_grad}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the average; in the beginning it forgets faster."""
        source = kwargs["model"]
        self.average.update_parameters(getattr(source, "_orig_mod", source))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the average, which is the same in all processes."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        tensors = {name: tensor.contiguous() for name, tensor in self._trained().items()}
        save_file({**tensors, "n_averaged": self.average.n_averaged}, folder / EMA_FILE)

    def load(self, folder: Path) -> None:
        """Reads the average back."""
        tensors = load_file(folder / EMA_FILE)
        self.average.n_averaged.copy_(tensors.pop("n_averaged"))
        for name, parameter in self._trained().items():
            parameter.copy_(tensors[name])


def build(arguments: PretrainArguments, recipe: Recipe) -> tuple[UnifiedModel, UnifiedProcessor]:
    """The model, random, from `init` or from a language model, and its processor."""
    codec = FrameCodec.from_pretrained(arguments.codec)
    actions = ActionSpace.from_config(arguments.actions)
    if arguments.language_model is not None:
        gguf: dict[str, Any] = {"gguf_file": arguments.gguf_file} if arguments.gguf_file else {}
        source: Any = arguments.language_model
        processor = UnifiedProcessor.from_language_model(
            source, action_space=actions, codec=codec, **gguf
        )
        return UnifiedModel.from_language_model(
            source, processor, **gguf, **recipe.model
        ), processor
    processor = UnifiedProcessor(
        tokenizer=AutoTokenizer.from_pretrained(arguments.tokenizer),
        codec=codec,
        action_space=actions,
        latent_patch_size=recipe.model.get("latent_patch_size", 1),
    )
    if arguments.init:
        model = UnifiedModel.from_pretrained(arguments.init)
        model.config.made_for = processor.fingerprints()
        return model, processor
    config = UnifiedConfig(**{**processor.config_fields(), **recipe.model})
    processor.latent_grid = (config.latent_grid[0], config.latent_grid[1])
    return UnifiedModel(config), processor


def trainable(model: UnifiedModel, processor: UnifiedProcessor, recipe: Recipe) -> Any:
    """The model as it is trained: as a whole, or with adapters on its language model."""
    if recipe.lora_rank is None:
        return model
    from peft import get_peft_model

    own = processor.config_fields()["text_token_ids"][1]
    return get_peft_model(model, language.language_lora(model, own, recipe.lora_rank))  # pyright: ignore[reportArgumentType]


def optimizer_of(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW where adapters and pretrained weights are trained, else Muon."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.lora_rank is None:
        return MuonAdamW(model.named_parameters(), lr=rate, weight_decay=decay)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    adapters = [parameter for name, parameter in trained if ".lora_" in name]
    others = [parameter for name, parameter in trained if ".lora_" not in name]
    # What everybody says in English goes through the adapters too, and has to be kept.
    groups = [{"params": others}, {"params": adapters, "lr": rate * ADAPTER_RATE}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=decay)


def train(arguments: PretrainArguments) -> Path:
    """Runs the recipe and returns the folder of the trained model.

    Raises:
        ValueError: If the recipe is unknown, the data have no latents, they are another codec's, or
            `out` holds another run.
    """
    if arguments.recipe not in RECIPES:
        raise ValueError(f"recipe {arguments.recipe!r} is unknown; use one of {', '.join(RECIPES)}")
    recipe = arguments.adjust(RECIPES[arguments.recipe]())
    if (recipe.lora_rank is None) != (arguments.language_model is None):
        raise ValueError(
            f"recipe {arguments.recipe!r} "
            + (
                "wants none, leave out --language-model"
                if recipe.lora_rank is None
                else "wants a language model; give --language-model FOLDER"
            )
        )
    options = training_arguments(arguments, recipe)
    set_seed(arguments.seed)
    model, processor = build(arguments, recipe)
    episodes = EpisodeDataset(arguments.data, require_latents=True)
    check_codec(arguments.data, processor)
    model.is_compiled = arguments.compile
    dataset = Mixture(
        episodes,
        processor,
        model.config,
        recipe.mixture,
        num_rows=rows_of_run(options),
        seed=arguments.seed,
    )
    before = Lexicon.read(Path(resolve_checkpoint(arguments.init))) if arguments.init else None
    is_language = arguments.language_model is not None
    if before is not None or not arguments.init:  # else nobody knows what was heard before
        processor.lexicon = heard(episodes, dataset.mixture, before, knows_words=is_language)
    checkpoint = checkpoint_to_resume(arguments)
    trained = trainable(model, processor, recipe)
    average = AveragedWeights(trained, recipe.ema_decay)
    if checkpoint is not None:
        average.load(checkpoint)
    samples = Samples(
        average.model,
        processor,
        episodes,
        arguments.out / "samples",
        arguments.sample_steps,
    )
    trainer = UnifiedTrainer(
        model=trained,
        args=options,
        mixture=dataset,
        callbacks=[average, SaveByTime(arguments.save_seconds), samples],
        optimizers=(optimizer_of(trained, recipe), None),
    )
    parameters = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    print(f"{parameters:,} trained parameters, {len(episodes):,} episodes, {recipe.steps:,} steps")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    module: Any = average.average.module
    found = average.model if recipe.lora_rank is None else module.merge_and_unload()
    return save_trained(trainer, found, processor, arguments.out / "model")


def save_trained(
    trainer: UnifiedTrainer, model: UnifiedModel, processor: UnifiedProcessor, out: Path
) -> Path:
    """Writes a model and its processor, from the first process; all wait, and get the folder."""
    if trainer.is_world_process_zero():
        with atomic_folder(out) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        print(f"trained model: {out}")
    trainer.accelerator.wait_for_everyone()
    return out


def main() -> None:
    """Command line."""
    with command("train.pretrain"):
        train(tyro.cli(PretrainArguments, description=__doc__))


if __name__ == "__main__":
    main()
