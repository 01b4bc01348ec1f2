"""Teach a trained model to take few denoise steps: `python -m train.distill --init babyai ...`.

The model is told how far a step goes, by an embedding that says nothing at first. On a part of the
noisy frames it then learns one large step from two steps of half the size, which the average of its
own weights takes (or a frozen copy of them). All else is trained as before, so the model after is
of one family with the model before: it still takes many small steps, and acts.

Letters: B rows, L tokens, C latent size; `s` the noise level, `d` how far the step goes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional
from transformers import set_seed

from data.dataset import EpisodeDataset
from train.pretrain import AveragedWeights, optimizer_of, save_trained
from train.recipes import RECIPES
from train.rows.mixture import Mixture
from train.samples import Samples
from train.trainer import (
    NoisyRows,
    RowCollator,
    RunArguments,
    SaveByTime,
    UnifiedTrainer,
    check_codec,
    checkpoint_to_resume,
    rows_of_run,
    training_arguments,
)
from unified.command import command
from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_folder
from unified.model.collator import NoisyRow, generator_of
from unified.model.flow import add_noise, to_sample
from unified.modeling import UnifiedModel
from unified.pretrained import resolve_checkpoint

Method = Literal["shortcut", "psd", "consistency", "progressive"]
SMALLEST = 1 / 8
"""Size of the steps that the model takes as it did before, without being told."""
LEARNED: dict[str, list[int]] = {
    "shortcut": [1, 2, 4],
    "psd": [1, 2, 3, 4, 5, 6, 7, 8],
    "consistency": [1],
    "progressive": [1, 2, 4],
}
"""Method -> numbers of equal steps that the model has learned to take."""


@dataclass(frozen=True, kw_only=True)
class DistillArguments(RunArguments):
    """Teach a trained model to take few denoise steps."""

    init: str
    """The trained model: a folder, or an embedded name."""
    method: Method = "shortcut"
    """shortcut: a step of 1/4, 1/2 or 1 is two of half its size (arXiv:2410.12557). psd: the same
    for steps of any size from any level (progressive self-distillation, arXiv:2505.18825).
    consistency: any level leads to the end of the path that passes there (arXiv:2303.01469).
    progressive: the same as shortcut by a frozen copy, small steps first (arXiv:2202.00512)."""
    recipe: str = "babyai-events"
    """Recipe in `train/recipes.py` whose rows are learned."""
    share: float = 0.5
    """Part of the noisy frames that teach large steps; the others are learned as before."""


@dataclass(frozen=True)
class StepRow(NoisyRow):
    """A row with step sizes, `(L,)` in [0, 1]; 0 is learned as before."""

    step_sizes: Tensor | None = None


def draw_step(method: str, progress: float, generator: torch.Generator) -> tuple[float, float]:
    """Level and size of a step to learn.

    Args:
        method: Of distillation.
        progress: How far the run is, in [0, 1).
        generator: Decides.

    Returns:
        `s` in (0, 1], and `d` in (0, s].
    """
    if method == "consistency":
        level = int(torch.randint(1, round(1 / SMALLEST) + 1, (), generator=generator)) * SMALLEST
        return level, level
    if method == "psd" and torch.rand((), generator=generator) < 0.5:
        level = 1 - 0.95 * float(torch.rand((), generator=generator))
        return level, level * (1 - 0.9 * float(torch.rand((), generator=generator)))
    power = int(torch.randint(0, 3, (), generator=generator))
    if method == "progressive":
        power = 2 - min(int(3 * progress), 2)
    size = 2.0**-power
    return size * int(torch.randint(1, 2**power + 1, (), generator=generator)), size


class StepRows(NoisyRows):
    """Rows in which a part of the noisy frames stands at the beginning of a large step.

    Attributes:
        method: Of distillation.
        share: Of the noisy frames.
    """

    method: str = "shortcut"
    share: float = 0.5

    def __getitem__(self, index: int) -> StepRow:
        """Row `index`; seed and number decide it."""
        noisy = super().__getitem__(index)
        generator = generator_of(self.mixture.seed, index, 1)
        row, n = noisy.row, self.mixture.config.frame_tokens
        levels, sizes = row.noise_levels.clone(), torch.zeros_like(row.noise_levels)
        latents = (row.input_ids == self.mixture.config.latent_token_id).nonzero()[:, 0]
        for frame in latents.view(-1, n):
            if not bool((row.flow_weights[frame] > 0).any()):
                continue
            if torch.rand((), generator=generator) >= self.share:
                continue
            progress = index / max(len(self), 1)
            levels[frame], sizes[frame] = draw_step(self.method, progress, generator)
        row = replace(row, noise_levels=levels)
        return StepRow(row, noisy.noise, noisy.loss_totals, step_sizes=sizes)


class StepCollator(RowCollator):
    """A batch with step sizes."""

    def __call__(self, rows: list[NoisyRow]) -> dict[str, Tensor]:
        """Collates."""
        batch = super().__call__(rows)
        sizes = [row.step_sizes for row in rows if isinstance(row, StepRow)]
        padded = [
            functional.pad(size, (0, self.row_length - len(size)))
            for size in sizes
            if size is not None
        ]
        batch["step_sizes"] = torch.stack(padded)
        return batch


See = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From noisy latents `(B, L, C)`, levels and told step sizes `(B, L, 1)` to clean latents."""


def two_half_steps(
    see: See, noisy: Tensor, levels: Tensor, sizes: Tensor, smallest: float
) -> Tensor:
    """What one step has to say is clean, so that it leads where two of half its size lead.

    With x-prediction f and v = (z - f) / s: v' at s, z' = z - d/2 v', v'' at s - d/2, and the
    target is z - s (v' + v'') / 2 (arXiv:2410.12557, equation 5, in levels that fall).

    Args:
        see: The teacher.
        noisy: z, `(B, L, C)`.
        levels: s, `(B, L, 1)`.
        sizes: d, likewise.
        smallest: Half steps up to this size are not told.
    """
    half = sizes / 2
    told = torch.where(half > smallest, half, 0.0)
    first = _velocity(noisy, see(noisy, levels, told), levels)
    middle, below = noisy - half * first, levels - half
    second = _velocity(middle, see(middle, below, told), below)
    return noisy - levels * (first + second) / 2


def end_of_path(see: See, noisy: Tensor, levels: Tensor, sizes: Tensor, smallest: float) -> Tensor:
    """What the teacher says at the next level of its own path (arXiv:2303.01469, algorithm 3).

    Arguments as in `two_half_steps`; a small step leads to the next level.
    """
    clean = see(noisy, levels, torch.zeros_like(levels))
    below = (levels - smallest).clamp(min=0)
    nearer = noisy - (levels - below) * _velocity(noisy, clean, levels)
    return torch.where(below > 0, see(nearer, below, below), clean)


def _velocity(noisy: Tensor, clean: Tensor, levels: Tensor) -> Tensor:
    return (noisy - clean) / levels.clamp(min=1e-6)


@torch.no_grad()
def retarget(teacher: UnifiedModel, method: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch whose large steps have the teacher's targets in the place of clean latents.

    Latents and noise are exchanged for a pair that makes the same noisy latents, so every
    prediction type and every loss is as before.
    """
    levels, sizes = inputs["noise_levels"][..., None], inputs["step_sizes"][..., None]
    noisy = add_noise(inputs["latents"], inputs["noise"], levels)
    plan = {name: inputs[name] for name in ("input_ids", "position_ids", "visible", "path")}
    is_large = sizes > 0

    def see(latents: Tensor, level: Tensor, size: Tensor) -> Tensor:
        # Other latents stay as the student sees them.
        latents, level = torch.where(is_large, latents, noisy), torch.where(is_large, level, levels)
        output = teacher(
            **plan, latents=latents, noise_levels=level[..., 0], step_sizes=size[..., 0]
        )
        kind = teacher.config.prediction_type
        return to_sample(output.prediction.float(), latents, level, kind)

    find = end_of_path if method == "consistency" else two_half_steps
    target = find(see, noisy, levels, sizes, 0.0 if method == "psd" else SMALLEST)
    latents = torch.where(is_large, target, inputs["latents"])
    noise = (noisy - (1 - levels) * latents) / levels.clamp(min=1e-6)
    return {**inputs, "latents": latents, "noise": torch.where(is_large, noise, inputs["noise"])}


class DistillTrainer(UnifiedTrainer):
    """Trainer whose large steps are taught by an average or a frozen copy of the weights."""

    rows_type = StepRows
    collator_type = StepCollator

    def __init__(self, *args: Any, method: str, share: float, teacher: "Teacher", **kwargs: Any):
        """See `DistillArguments`."""
        super().__init__(*args, **kwargs)
        assert isinstance(self.train_dataset, StepRows)
        self.train_dataset.method, self.train_dataset.share = method, share
        self.method, self.teacher = method, teacher

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's loss, with the teacher's targets."""
        progress = self.state.global_step / max(self.state.max_steps, 1)
        inputs = retarget(self.teacher.at(progress), self.method, inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


class Teacher:
    """Who takes the two small steps: the average, or a copy of it that is frozen for a stage."""

    def __init__(self, average: AveragedWeights, is_frozen: bool, folder: Path):
        """`folder` keeps the frozen copies, for runs that are resumed."""
        self.average, self.is_frozen, self.folder = average, is_frozen, folder
        self._stage: int | None = None
        self._copy: UnifiedModel | None = None

    def at(self, progress: float) -> UnifiedModel:
        """The teacher when the run is so far, in [0, 1)."""
        if not self.is_frozen:
            return self.average.model
        stage = min(int(3 * progress), 2)
        if stage != self._stage:
            folder = self.folder / f"stage-{stage}"
            if not (folder / "model.safetensors").exists():
                with atomic_folder(folder) as draft:
                    self.average.model.save_pretrained(draft)
            device = self.average.model.device
            self._copy = UnifiedModel.from_pretrained(folder).eval()
            torch.nn.Module.to(self._copy, device)
            self._stage = stage
        assert self._copy is not None
        return self._copy


def with_step_sizes(source: str) -> UnifiedModel:
    """A trained model that can be told how far a step goes; as it is, it does not listen.

    Raises:
        ValueError: If it is no model of rectified flow.
    """
    trained = UnifiedModel.from_pretrained(source)
    if trained.config.noise_path != "rectified":
        raise ValueError(
            f"{source} has noise_path={trained.config.noise_path!r}; large steps are learned on "
            "the straight path, 'rectified'"
        )
    if trained.config.step_size_embedding:
        return trained
    config = trained.config.to_dict()
    model = UnifiedModel(type(trained.config)(**{**config, "step_size_embedding": True}))
    missing, unknown = model.load_state_dict(trained.state_dict(), strict=False)
    assert not unknown
    assert all(name.startswith("step_size_embedding.") for name in missing), missing
    model.tie_weights()
    return model


def train(arguments: DistillArguments) -> Path:
    """Distils a model and returns the folder of the result.

    Raises:
        ValueError: If the recipe or the share makes no sense, the data are another codec's, or
            `out` holds another run.
    """
    if arguments.recipe not in RECIPES:
        raise ValueError(f"recipe {arguments.recipe!r} is unknown; use one of {', '.join(RECIPES)}")
    if not (math.isfinite(arguments.share) and 0 < arguments.share <= 1):
        raise ValueError(f"share={arguments.share} must be above 0 and at most 1")
    recipe = arguments.adjust(RECIPES[arguments.recipe]())
    options = training_arguments(arguments, recipe)
    set_seed(arguments.seed)
    source = resolve_checkpoint(arguments.init)
    processor = UnifiedProcessor.from_pretrained(source)
    model = with_step_sizes(source)
    model.config.learned_steps = LEARNED[arguments.method]
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
    checkpoint = checkpoint_to_resume(arguments)
    average = AveragedWeights(model, recipe.ema_decay)
    if checkpoint is not None:
        average.load(checkpoint)
    teacher = Teacher(average, arguments.method == "progressive", arguments.out / "teachers")
    samples = Samples(
        average.model, processor, episodes, arguments.out / "samples", arguments.sample_steps
    )
    trainer = DistillTrainer(
        model=model,
        args=options,
        mixture=dataset,
        method=arguments.method,
        share=arguments.share,
        teacher=teacher,
        callbacks=[average, SaveByTime(arguments.save_seconds), samples],
        optimizers=(optimizer_of(model, recipe), None),
    )
    print(
        f"{arguments.method}: {recipe.steps:,} steps of {recipe.rows} rows, from {arguments.init}"
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return save_trained(trainer, average.model, processor, arguments.out / "model")


def main() -> None:
    """Command line."""
    with command("train.distill"):
        train(tyro.cli(DistillArguments, description=__doc__))


if __name__ == "__main__":
    main()
