"""Conversations -> training batches, for any transformers `Trainer`.

Nothing here depends on how a run is cut into processes, batches and restarts: noise is a function
of (seed, epoch, row), and losses are divided by what a row weighs in the whole training set.
"""

import hashlib
import warnings
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import TrainerCallback

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence
from unified.model.flow import NoiseSchedule
from unified.model.plan import TrainingRow, collate, plan_training, span_ranges

MEASURED_ROWS = 64
"""Rows, evenly spaced, over which the weight of a row is averaged."""


@dataclass(frozen=True)
class NoisyRow:
    """A conversation laid out for training, with its noise: what `TrainingRows` gives.

    Attributes:
        row: Tokens, labels and noise levels.
        noise: `(L, latent_size)` float32, standard normal.
        loss_totals: `(3,)` float32, see `UnifiedModel.forward`; None divides by the batch's own.
    """

    row: TrainingRow
    noise: Tensor
    loss_totals: Tensor | None = None


class Collator:
    """Lays out `Sequence`s for training: words and actions to predict, and frames to denoise.

    Every frame but a row's first is copied once, noisy, and learned from the clean ones before it.
    Rows are padded to the longest, or to `length`. For training, wrap the conversations::

        collator = Collator(processor, model.config)
        rows = collator.rows(sequences)
        Trainer(..., train_dataset=rows, data_collator=collator, callbacks=[rows])
    """

    def __init__(
        self,
        processor: UnifiedProcessor,
        config: UnifiedConfig,
        *,
        noise: NoiseSchedule | None = None,
        length: int | None = None,
        seed: int = 0,
    ):
        """Sets the options; noise is drawn when a row is laid out.

        Args:
            processor: Makes tokens and latents of the conversations.
            config: The model's.
            noise: How noise levels are drawn; None is `NoiseSchedule()`.
            length: Tokens of every row, so that shapes never change; None is the longest row's.
            seed: Of the noise.
        """
        self.processor = processor
        self.config = config
        self.noise = noise or NoiseSchedule()
        self.length = length
        self.seed = seed
        self._has_warned = False

    def rows(self, sequences: Any) -> "TrainingRows":
        """A training set whose rows know their number and their epoch; see `TrainingRows`.

        Args:
            sequences: Conversations: a list, or any dataset with a length.
        """
        return TrainingRows(sequences, self)

    def __call__(self, rows: list[Sequence] | list[NoisyRow]) -> dict[str, Tensor]:
        """Inputs of `UnifiedModel.forward` with labels, one row for each conversation.

        A bare `Sequence` gets noise that its content decides, the same whenever it is asked for.
        That is what an evaluation wants.

        Raises:
            ValueError: If a conversation is longer than `length`, or cannot be told.
        """
        for row in rows:
            if not isinstance(row, NoisyRow | Sequence):
                raise ValueError(
                    f"a row is a {type(row).__name__}; give conversations as `Sequence` of segments"
                )
        noisy = [row if isinstance(row, NoisyRow) else self._bare(row) for row in rows]
        longest = max(len(row.row) for row in noisy)
        return collate_noisy(noisy, self.config, self.length or longest)

    def lay_out(self, sequence: Sequence, *key: int, totals: Tensor | None = None) -> NoisyRow:
        """One conversation with noise that `seed` and the key decide, and nothing else."""
        return self._with_noise(self.processor.stream(sequence), (self.seed, *key), totals)

    def _with_noise(self, stream: Any, key: tuple[int, ...], totals: Tensor | None) -> NoisyRow:
        generator = generator_of(*key)
        count = len(stream.latents)
        spans = span_ranges(count, "frame", first_frame=min(1, count - 1) if count else 0)
        levels = self.noise.sample((len(spans), count), generator)
        row = plan_training(stream, self.config, spans=spans, noise_levels=levels)
        return NoisyRow(row, noise_of(row, generator), totals)

    def _bare(self, sequence: Sequence) -> NoisyRow:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "conversations without numbers have the same noise in every epoch, and their loss "
                "is divided by the weights of one batch: right for evaluation; to train, give "
                "train_dataset=rows and callbacks=[rows], with rows = collator.rows(sequences)",
                stacklevel=3,
            )
        stream = self.processor.stream(sequence)
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (stream.input_ids, stream.targets, stream.latents):
            digest.update(tensor.contiguous().numpy().tobytes())
        return self._with_noise(stream, (self.seed, int.from_bytes(digest.digest())), None)


class TrainingRows(Dataset[NoisyRow], TrainerCallback):
    """Numbered conversations: row i of epoch e has noise of (seed, e, i), whoever asks for it.

    It is a callback too: with several processes, `Trainer` tells the epoch to callbacks alone.

    Attributes:
        loss_totals: `(3,)` float32. Weights of labels and latents, and number of measured motions,
            that a row has on average. Losses are divided by them, not by those of one batch: so
            the gradient of a step is the same however its rows are split.
    """

    def __init__(self, sequences: Items[Sequence] | Dataset[Sequence], collator: Collator):
        """Lays out up to `MEASURED_ROWS` rows, to see what they weigh.

        Raises:
            ValueError: If there are none.
        """
        self.sequences: Any = sequences
        self.collator = collator
        # In shared memory, so that workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        count = len(self.sequences)
        if not count:
            raise ValueError("the training set holds no conversation; give at least one")
        measured = sorted({i * count // MEASURED_ROWS for i in range(MEASURED_ROWS)})
        sums = torch.stack([loss_weights(self._row(i, 0).row) for i in measured])
        mean = sums.mean(0)
        self.loss_totals: Tensor = torch.where(mean > 0, mean, 1.0)

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.sequences)

    def __getitem__(self, index: int) -> NoisyRow:
        """Row `index` of the epoch that was last told."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(index, int(self._epoch), self.loss_totals)

    def _row(self, index: int, epoch: int, totals: Tensor | None = None) -> NoisyRow:
        return self.collator.lay_out(self.sequences[index], epoch, index, totals=totals)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0 up; `Trainer` does it, a training loop of your own has to."""
        self._epoch.fill_(epoch)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by `Trainer`: sets the epoch."""
        self.set_epoch(int(state.epoch or 0))


def generator_of(*key: int) -> torch.Generator:
    """A generator that integers >= 0 decide."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def noise_of(row: TrainingRow, generator: torch.Generator) -> Tensor:
    """`(L, latent_size)` standard normal; a longer padding changes none of it."""
    return torch.randn(row.latents.shape, generator=generator)


def loss_weights(row: TrainingRow | dict[str, Tensor]) -> Tensor:
    """What a row or a batch weighs in each loss: labels, latents, measured motions; `(3,)`."""
    fields = row if isinstance(row, dict) else vars(row)
    is_known = fields["motions"].isfinite().all(-1)
    parts = (fields["label_weights"], fields["flow_weights"], is_known)
    return torch.stack([part.sum(dtype=torch.float32) for part in parts])


def collate_noisy(rows: list[NoisyRow], config: UnifiedConfig, length: int) -> dict[str, Tensor]:
    """`collate`, with the noise and what the losses are divided by.

    Raises:
        ValueError: If a row is longer than `length`.
    """
    batch = collate([row.row for row in rows], config, length)
    padded = [functional.pad(row.noise, (0, 0, 0, length - len(row.noise))) for row in rows]
    batch["noise"] = torch.stack(padded)
    totals = [row.loss_totals for row in rows if row.loss_totals is not None]
    if len(totals) == len(rows):
        batch["loss_totals"] = torch.stack(totals)
    return batch
