"""Conversations -> training batches, for any transformers `Trainer`."""

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence
from unified.model.flow import NoiseSchedule
from unified.model.plan import collate, plan_training, span_ranges


class Collator:
    """Lays out `Sequence`s for training: words and actions to predict, and frames to denoise.

    Every frame but a row's first is copied once, noisy, and learned from the clean ones before it.
    Rows are padded to the longest, or to `length`.
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
        """Makes its own random generator.

        Args:
            processor: Makes tokens and latents of the conversations.
            config: The model's.
            noise: How noise levels are drawn; None is `NoiseSchedule()`.
            length: Tokens of every row, so that shapes never change; None is the longest row's.
            seed: Of the noise levels.
        """
        self.processor = processor
        self.config = config
        self.noise = noise or NoiseSchedule()
        self.length = length
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, sequences: list[Sequence]) -> dict[str, Tensor]:
        """Inputs of `UnifiedModel.forward` with labels, one row for each conversation.

        Raises:
            ValueError: If a conversation is longer than `length`, or cannot be told.
        """
        rows = []
        for sequence in sequences:
            stream = self.processor.stream(sequence)
            count = len(stream.latents)
            spans = span_ranges(count, "frame", first_frame=min(1, count - 1) if count else 0)
            levels = self.noise.sample((len(spans), count), self.generator)
            rows.append(plan_training(stream, self.config, spans=spans, noise_levels=levels))
        return collate(rows, self.config, self.length or max(map(len, rows)))
