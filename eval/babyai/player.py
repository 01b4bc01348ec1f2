"""Telling true episodes to a session, and reading back what it replies."""

from collections.abc import Sequence as Rows
from typing import Protocol

import numpy as np
import torch

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Kind, Segment, Sequence, frame_segment, text_segment
from unified.conversation.stream import TokenStream
from unified.modeling import UnifiedModel
from unified.sampling.generation import Generation, Session


class Seen(Protocol):
    """What was seen at one moment of an episode, and the outcome then."""

    @property
    def frame(self) -> np.ndarray:
        """`(H, W, 3)` uint8."""
        ...

    @property
    def outcome(self) -> str | None:
        """ongoing, success or failure; None if nobody knows."""
        ...


class Played(Protocol):
    """An episode that really happened."""

    @property
    def task(self) -> str | None:
        """In words, if there are any."""
        ...

    @property
    def views(self) -> Rows[Seen]:
        """What was seen, from the first frame on."""
        ...

    @property
    def seed(self) -> int:
        """Of the environment; the model's noise follows it."""
        ...


class Player:
    """Tells a batch of episodes to a session, in latents, and reads its replies."""

    def __init__(self, model: UnifiedModel, processor: UnifiedProcessor):
        """Reads nothing yet."""
        self.model = model
        self.processor = processor

    def stream(self, *segments: Segment) -> TokenStream:
        """Segments as tokens."""
        return self.processor.stream(Sequence(list(segments)))

    def encode(self, views: Rows[Seen]) -> list[Segment]:
        """Views as frame segments that hold latents and the outcome."""
        latents = self.processor.encode_pixels(np.stack([view.frame for view in views]))
        return [
            frame_segment(latents=z, outcome=view.outcome)
            for z, view in zip(latents, views, strict=True)
        ]

    def start(self, episodes: Rows[Played], seed: int) -> Session:
        """A session that knows the tasks and the first frames."""
        frames = self.encode([episode.views[0] for episode in episodes])
        tasks = [[text_segment(e.task, "task")] if e.task else [] for e in episodes]
        inputs = self.processor.encode(
            [Sequence([*task, frame]) for task, frame in zip(tasks, frames, strict=True)]
        )
        generators = [torch.Generator().manual_seed(seed + e.seed) for e in episodes]
        return self.model.start(**inputs, generator=generators)

    def hindsight(self, action: Segment) -> TokenStream:
        """An action told in hindsight, as the tokens that follow a frame already told."""
        ids = self.processor.ids["inverse"], *self.processor.action_ids(action.action)
        tokens = torch.tensor(ids)
        return TokenStream(
            input_ids=tokens,
            targets=tokens,
            weights=torch.zeros(len(ids)),
            latents=torch.zeros(0, 0, 0),
            frame_weights=torch.zeros(0),
            motions=torch.full((len(ids), 3), torch.nan),
        )

    def replies(self, generation: Generation) -> list[list[Segment]]:
        """What a run added to each row."""
        config = self.model.config
        return [self.processor.segments(ids, z, config) for ids, z in generation.rows()]

    def pixels(self, frames: list[Segment]) -> np.ndarray:
        """FRAME segments as `(N, H, W, 3)` uint8."""
        return self.processor.decode_latents(
            torch.stack([torch.as_tensor(f.latents) for f in frames])
        )


def first_frames(replies: list[list[Segment]]) -> list[Segment]:
    """The first frame of each reply."""
    return [next(s for s in reply if s.kind is Kind.FRAME) for reply in replies]
