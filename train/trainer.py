"""Common to all runs: options, transformers' Trainer with our rows and figures, checkpoints."""

import math
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from data.dataset import read_latents_info
from train.recipes import Recipe
from train.rows.mixture import Mixture
from unified.bf16 import warn_of_emulated_bf16
from unified.command import chosen_device
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.model.collator import (
    NoisyRow,
    collate_noisy,
    generator_of,
    loss_weights,
    noise_of,
)
from unified.model.flops import batch_flops, peak_flops

COMPLETE = "complete"
NOISE_BINS = 4
LOSSES = ("token_loss", "flow_loss", "motion_loss")


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Options of any run."""

    data: Path
    """Folder written by `data.prepare`."""
    out: Path
    """Run folder: checkpoints, logs, samples, and what was trained."""
    steps: int | None = None
    """Optimiser steps, instead of the recipe's."""
    rows: int | None = None
    """Rows of a batch on each device, instead of the recipe's."""
    accumulation: int = 1
    """Batches of a step, where a device has no room for all rows at once."""
    learning_rate: float | None = None
    """Peak learning rate, instead of the recipe's."""
    seed: int = 0
    """Seed of weights, rows and noise."""
    resume: bool = False
    """Go on from the newest complete checkpoint in `out`."""
    save_seconds: int = 300
    """Time between checkpoints."""
    log_steps: int = 20
    """Greatest number of steps between log lines; short runs have eight lines."""
    sample_steps: int = 500
    """Steps between small evaluations with a picture, in `out/samples`; 0 for none."""
    compile: bool = False
    """Compile the layers except attention: about a fifth faster, after half a minute."""
    bf16: bool = False
    """bfloat16 autocast: for GPUs, and for processors that compute in it."""
    device: str | None = None
    """`cpu` or `cuda`; CUDA where there is one if not given."""
    workers: int = 1
    """Processes that make rows."""

    def adjust(self, recipe: Recipe) -> Recipe:
        """The recipe with what was asked for instead."""
        names = ("steps", "rows", "learning_rate")
        given = {name: getattr(self, name) for name in names}
        return replace(recipe, **{k: v for k, v in given.items() if v is not None})


class NoisyRows(Dataset[NoisyRow]):
    """The rows of a mixture with their noise, which seed and number decide as well."""

    def __init__(self, mixture: Mixture):
        """Wraps a mixture; rows are made when they are asked for."""
        self.mixture = mixture

    def __len__(self) -> int:
        """Rows of the whole run."""
        return len(self.mixture)

    def __getitem__(self, index: int) -> NoisyRow:
        """Row `index`."""
        row = self.mixture[index]
        return NoisyRow(row, noise_of(row, generator_of(self.mixture.seed, index)))


class RowCollator:
    """Packed rows to a batch of one static shape."""

    def __init__(self, config: UnifiedConfig, row_length: int):
        """Pads every row to `row_length`."""
        self.config = config
        self.row_length = row_length

    def __call__(self, rows: list[NoisyRow]) -> dict[str, torch.Tensor]:
        """Makes a batch of rows with their noise."""
        return collate_noisy(rows, self.config, self.row_length)


class UnifiedTrainer(Trainer):
    """Trainer that reads rows in order and logs the losses apart, the flow loss by noise.

    Losses are means over all rows of a step, however they are cut into batches and processes. It
    logs throughput too: frames, tokens and operations a second, and on a known GPU how much of what
    that could do they are. Figures are of all processes.
    """

    rows_type = NoisyRows
    collator_type = RowCollator

    def __init__(self, *args: Any, mixture: Mixture, **kwargs: Any):
        """`mixture` gives the rows, and knows the model's config, however the model is wrapped."""
        collator = self.collator_type(mixture.config, mixture.mixture.row_length)
        rows = self.rows_type(mixture)
        super().__init__(*args, train_dataset=rows, data_collator=collator, **kwargs)
        self.unified_config = mixture.config
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self.clock = time.perf_counter()

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        """In order: the rows themselves are random."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(dataset, NoisyRows)
        return SequentialSampler(dataset)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step, each told what all of them weigh, in all processes."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            weights = torch.stack([loss_weights(batch) for batch in batches]).sum(0).to(device)
            total = self._sum(weights)
            # Trainer divides by the number of batches, and takes the mean over processes.
            share = total / (len(batches) * self.accelerator.num_processes)
            for batch in batches:
                rows = len(batch["input_ids"])
                batch["loss_totals"] = (share / rows).expand(rows, 3)
        return batches, count

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums values over all processes."""
        summed = self.accelerator.reduce(values, "sum")
        assert isinstance(summed, torch.Tensor)
        return summed

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's loss; remembers its parts for the next log line."""
        output = model(**inputs)
        if not torch.isfinite(output.loss):
            raise ValueError(
                f"the loss is {output.loss.item()} at step {self.state.global_step}; lower the "
                "learning rate, or look for NaN in the latents"
            )
        if "loss_totals" in inputs:  # not in an evaluation
            self._record(inputs, output)
        return (output.loss, output) if return_outputs else output.loss

    def _record(self, inputs: dict[str, torch.Tensor], output: Any) -> None:
        with torch.no_grad():
            is_there = (inputs["loss_totals"].sum(0) > 0).tolist()
            for name, is_learned in zip(LOSSES, is_there, strict=True):
                loss = getattr(output, name)
                if loss is not None:
                    self._add(name, loss.item(), int(is_learned))
            ids = inputs["input_ids"]
            config = self.unified_config
            self.counts["frames"] += int((ids == config.frame_token_id).sum())
            self.counts["tokens"] += ids.numel()
            self.counts["flops"] += batch_flops(config, ids, inputs["visible"])
            is_noisy = inputs["flow_weights"] > 0
            levels, errors = inputs["noise_levels"][is_noisy], output.flow_error[is_noisy]
            bins = (levels * NOISE_BINS).floor().clamp(max=NOISE_BINS - 1)
            bins[levels == 1] = NOISE_BINS
            for i in range(NOISE_BINS + 1):
                chosen = errors[bins == i]
                name = f"flow_error/noise_{i / NOISE_BINS:g}" + ("+" if i < NOISE_BINS else "")
                self._add(name, float(chosen.sum()), len(chosen))

    def _add(self, name: str, total: float, count: int) -> None:
        self.sums[name] += total
        self.counts[name] += count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds our figures to a training log line; what nothing was counted for is left out."""
        if "loss" in logs:
            now = time.perf_counter()
            seconds, self.clock = max(now - self.clock, 1e-9), now
            names = sorted(self.counts)
            figures = [[self.sums.get(name, 0.0), self.counts[name]] for name in names]
            # In float32 on the device, since not every device and back end adds float64.
            added = self._sum(torch.tensor(figures, device=self.args.device)).tolist()
            found = dict(zip(names, added, strict=True))
            for name in ("frames", "tokens"):
                logs[f"{name}_per_second"] = round(found.pop(name, (0, 0))[1] / seconds, 1)
            speed = found.pop("flops", (0, 0))[1] / seconds
            logs["teraflops"] = round(speed / 1e12, 4)
            peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
            if peak:
                logs["mfu"] = round(speed / (peak * self.accelerator.num_processes), 4)
            for name, (total, count) in found.items():
                if count:
                    logs[name] = round(total / count, 5)
            self.sums.clear()
            self.counts.clear()
        super().log(logs, start_time)


class SaveByTime(TrainerCallback):
    """Asks for a checkpoint every so many seconds, and marks it once it is a complete one.

    So it goes behind the callbacks that write something to a checkpoint.
    """

    def __init__(self, seconds: float):
        """The first one comes after `seconds`."""
        self.seconds = seconds
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Sets `should_save` when it is time, by the clock of the first process."""
        is_time = time.monotonic() - self.last >= self.seconds
        if args.world_size > 1:
            told = broadcast(torch.tensor([float(is_time)], device=args.device))
            assert isinstance(told, torch.Tensor)
            is_time = bool(told.item())
        if is_time:
            self.last = time.monotonic()
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the mark, once every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; one that was cut off half-written does not count."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)


def checkpoint_to_resume(arguments: RunArguments) -> Path | None:
    """The newest complete checkpoint, if the run shall go on from it.

    Those that were cut off half-written go: the trainer would count them among those to keep, and
    throw away the whole one.

    Raises:
        ValueError: If there is one, and nobody asked to go on.
    """
    checkpoint = newest_checkpoint(arguments.out)
    if checkpoint is not None and not arguments.resume:
        raise ValueError(
            f"{arguments.out} holds {checkpoint.name} of an earlier run; add --resume to go on "
            "from it, or choose another --out"
        )
    state = PartialState()
    if state.is_main_process:
        for folder in arguments.out.glob("checkpoint-*"):
            if not (folder / COMPLETE).exists():
                shutil.rmtree(folder)
        if checkpoint is not None:
            print(f"going on from {checkpoint}")
    state.wait_for_everyone()  # nobody looks after somebody has begun to write
    return checkpoint


def check_codec(data: Path, processor: UnifiedProcessor) -> None:
    """Refuses latents that another codec made.

    Raises:
        ValueError: If they are another codec's.
    """
    assert processor.codec is not None
    theirs = (read_latents_info(data) or {}).get("codec")
    if theirs != processor.codec.fingerprint:
        raise ValueError(
            f"the latents of {data} were made by codec {theirs}, not "
            f"{processor.codec.fingerprint}; rerun python -m data.prepare latents --data {data} "
            "with the codec you train with"
        )


def rows_of_run(options: TrainingArguments) -> int:
    """Rows that all processes read, so that nobody reads one twice."""
    batches = options.max_steps * options.gradient_accumulation_steps * options.world_size
    return batches * options.train_batch_size


def training_arguments(arguments: RunArguments, recipe: Recipe) -> TrainingArguments:
    """The Trainer's options.

    Raises:
        ValueError: If the device cannot be used.
    """
    if arguments.device not in (None, "cpu", "cuda"):
        raise ValueError(
            f"--device {arguments.device!r}: training takes cpu or cuda; choose among several GPUs "
            "with CUDA_VISIBLE_DEVICES"
        )
    device = chosen_device(arguments.device)
    if arguments.accumulation < 1:
        raise ValueError(f"accumulation {arguments.accumulation} must be at least 1")
    if arguments.bf16:
        warn_of_emulated_bf16(device)
    return TrainingArguments(
        output_dir=str(arguments.out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.rows,
        gradient_accumulation_steps=arguments.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": math.ceil(recipe.steps * recipe.decay_share),
            "decay_type": "linear",
        },
        warmup_steps=min(recipe.warmup_steps, recipe.steps // 10),
        weight_decay=recipe.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=max(1, min(arguments.log_steps, recipe.steps // 8)),
        save_strategy="steps",
        save_steps=max(recipe.steps, 1),
        save_total_limit=2,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_num_workers=arguments.workers,
        dataloader_prefetch_factor=4 if arguments.workers else None,
        dataloader_persistent_workers=arguments.workers > 0,
        seed=arguments.seed,
        bf16=arguments.bf16,
        use_cpu=device == "cpu",
    )
