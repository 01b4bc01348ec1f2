"""Simulation: worlds that the model generates, side by side in one session.

What gymnasium's environments in `unified.roles.world` are made of; it needs no gymnasium itself.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import (
    Kind,
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.model.modeling import UnifiedModel
from unified.roles.agent import action_space_of, encode_observations, frame_size, name_action
from unified.sampling.generation import Session


@dataclass(frozen=True)
class Snapshot:
    """A moment of an environment to come back to, as often as one likes."""

    session: Session
    frames: np.ndarray
    steps: np.ndarray
    is_over: np.ndarray
    randoms: tuple[np.random.Generator, ...]


class Simulation:
    """Generated worlds side by side: one session, one random generator for each."""

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        size: int,
        options: dict[str, Any],
        compiled: bool = False,
    ):
        self.compiled = compiled
        self.model = model
        self.processor = processor
        self.size = size
        self.options = options
        self.actions = action_space_of(processor)
        self.frame_shape = (*frame_size(model, processor), 3)
        self.session: Session | None = None
        self.frames = np.zeros((size, *self.frame_shape), dtype=np.uint8)
        self.steps = np.zeros(size, dtype=np.int64)
        self.is_over = np.ones(size, dtype=np.bool_)

    def begin(
        self, rows: list[int], starts: list[tuple[Any, str | None]], seeds: list[int]
    ) -> list[dict[str, Any]]:
        """Opens episodes by first frame and task; returns what `info` says of each row."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        first = self._first_frames(starts, generators)
        sequences = [
            Sequence([frame] if task is None else [text_segment(task, "task"), frame])
            for frame, (_, task) in zip(first, starts, strict=True)
        ]
        if self.session is None:
            if len(rows) != self.size:
                raise ValueError(f"only rows {rows} are reset, but none has begun; reset all first")
            inputs = self.processor.encode(sequences)
            self.session = self.model.start(**inputs, generator=generators, compiled=self.compiled)
        else:
            self.session.clear(rows)
            streams: list[Any] = [None] * self.size
            for row, sequence, generator in zip(rows, sequences, generators, strict=True):
                streams[row] = self.processor.stream(sequence)
                self.session.generators[row] = generator
            self.session.append(streams)
        for row, frame, (pixels, _) in zip(rows, first, starts, strict=True):
            if pixels is None:
                self.frames[row] = self.processor.pixels(frame)
            else:
                size = self.frame_shape[:2]
                self.frames[row] = self.processor.read_frame(pixels, "the first frame", size)
        self.steps[rows] = 0
        self.is_over[rows] = False
        return [describe_frame(frame) for frame in first]

    def _first_frames(
        self, starts: list[tuple[Any, str | None]], generators: list[torch.Generator]
    ) -> list[Segment]:
        """The given frames in latents; those that are missing are imagined from the task."""
        given = [i for i, (frame, _) in enumerate(starts) if frame is not None]
        dreamt = [i for i, (frame, _) in enumerate(starts) if frame is None]
        first: dict[int, Segment] = {}
        if given:
            frames = [starts[i][0] for i in given]
            encoded = encode_observations(self.model, self.processor, frames)
            first.update(zip(given, encoded, strict=True))
        if dreamt:
            tasks = [starts[i][1] for i in dreamt]
            if any(task is None for task in tasks):
                raise ValueError(
                    "a world needs a first frame, a task to imagine one from, or both; give them "
                    "when it is made or in reset(options={'frame': ..., 'task': ...})"
                )
            prompts = [Sequence([text_segment(str(task), "task")]) for task in tasks]
            inputs = self.processor.encode(prompts)
            session = self.model.start(**inputs, generator=[generators[i] for i in dreamt])
            for i, reply in zip(dreamt, self._forward(session, None), strict=True):
                first[i] = frame_segment(latents=reply.latents, outcome="ongoing")
        return [first[i] for i in range(len(starts))]

    def advance(self, rows: list[int], actions: list[Any]) -> list[dict[str, Any]]:
        """Takes one action in each of the rows; returns what `info` says of each."""
        if self.session is None or bool(self.is_over[rows].any()):
            raise ValueError("the episode is over or has not begun; call reset before step")
        streams: list[Any] = [None] * self.size
        for row, action in zip(rows, actions, strict=True):
            told = name_action(self.processor, action)
            streams[row] = self.processor.stream(Sequence([action_segment(told)]))
        self.session.append(streams)
        shown = self._forward(self.session, rows)
        latents = torch.stack([torch.as_tensor(frame.latents) for frame in shown])
        self.frames[rows] = self.processor.decode_latents(latents.float())
        self.steps[rows] += 1
        self.is_over[rows] = [frame.outcome != "ongoing" for frame in shown]
        return [describe_frame(frame) for frame in shown]

    def _forward(self, session: Session, rows: list[int] | None) -> list[Segment]:
        """The next frame of each row that is asked."""
        reply = session.run("forward", rows=rows, **self.options)
        asked = range(session.batch_size) if rows is None else rows
        frames = []
        for row in asked:
            ids, latents = reply.input_ids[row], reply.latents[row]
            segments = self.processor.segments(ids, latents, self.model.config)
            frames.append(next(segment for segment in segments if segment.kind is Kind.FRAME))
        return frames

    def snapshot(self, randoms: list[np.random.Generator]) -> Snapshot:
        """This moment, together with the environment's random generators."""
        if self.session is None:
            raise ValueError("there is nothing to remember yet; call reset first")
        return Snapshot(
            self.session.fork(),
            self.frames.copy(),
            self.steps.copy(),
            self.is_over.copy(),
            tuple(copy.deepcopy(randoms)),
        )

    def restore(self, snapshot: Snapshot) -> list[np.random.Generator]:
        """Goes back to a moment; returns the random generators as they were then."""
        if len(snapshot.steps) != self.size:
            raise ValueError(
                f"a snapshot of {len(snapshot.steps)} worlds cannot be restored into {self.size}; "
                "use an environment of that size"
            )
        self.session = snapshot.session.fork()
        self.frames, self.steps = snapshot.frames.copy(), snapshot.steps.copy()
        self.is_over = snapshot.is_over.copy()
        return list(copy.deepcopy(snapshot.randoms))


def describe_frame(frame: Segment) -> dict[str, Any]:
    """What gymnasium's info says of a frame."""
    latents = torch.as_tensor(frame.latents).detach().float().cpu().numpy().copy()
    return {"outcome": frame.outcome, "latents": latents}
