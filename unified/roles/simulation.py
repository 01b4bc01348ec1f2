"""Simulation: worlds that the model generates, side by side in one session.

`unified.roles.world` builds Gymnasium environments on it. This file does not need Gymnasium.
"""

import copy
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.reading import check_processor
from unified.conversation.sequence import (
    Kind,
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.conversation.stream import place_tokens
from unified.modeling import UnifiedModel
from unified.roles.agent import action_space_of, encode_observations, frame_size, name_action
from unified.sampling.futures import draw_frames, read_schedule
from unified.sampling.generation import Session
from unified.sampling.options import Options

PROMISE = "here one can "
"""Before a task, words of the world: what the task asks for is somewhere in it."""


@dataclass(frozen=True)
class Snapshot:
    """State of an environment, which can be restored any number of times."""

    session: Session
    frames: np.ndarray
    steps: np.ndarray
    is_over: np.ndarray
    randoms: tuple[np.random.Generator, ...]


@dataclass(frozen=True)
class History:
    """What was seen and done before an episode goes on.

    Attributes:
        frames: T of them, at least one, in order; the last one is the present.
        actions: T - 1, each led from its frame to the next; None where nobody knows it.
    """

    frames: Rows[Any]
    actions: Rows[Any]

    def __post_init__(self):
        """Checks that there is one action between any two frames that follow each other.

        Raises:
            ValueError: If frames are no list, or actions are not one less than frames.
        """
        is_one = isinstance(self.frames, str | Path) or np.ndim(self.frames) == 3
        if is_one or not hasattr(self.frames, "__len__"):
            raise ValueError("the frames of a history are one frame; give a list of them")
        if len(self.frames) < 1 or len(self.actions) != len(self.frames) - 1:
            raise ValueError(
                f"a history of {len(self.frames)} frames and {len(self.actions)} actions; an "
                "action stands between each two frames, None if nobody knows it"
            )


@dataclass(frozen=True)
class Start:
    """How an episode opens.

    Attributes:
        frame: What is seen at first; None is the last of the history, or is imagined.
        task: In words; None is none.
        history: What came before.
        words: What the world says of the first frame. None promises what the task asks for, if
            the model was taught such words.
    """

    frame: Any = None
    task: str | None = None
    history: History | None = None
    words: str | None = None

    def __post_init__(self):
        """Checks what can be checked without the model.

        Raises:
            ValueError: If the task is no words, or there is both a frame and a history.
        """
        if self.task is not None and not isinstance(self.task, str):
            raise ValueError(f"task is a {type(self.task).__name__}; give words, or None")
        if self.words is not None and not (isinstance(self.words, str) and self.words):
            raise ValueError(f"words of the world are {self.words!r}; give words, or None")
        if self.history is not None and not isinstance(self.history, History):
            raise ValueError(
                f"history is a {type(self.history).__name__}; give History(frames, actions)"
            )
        if self.history is not None and self.frame is not None:
            raise ValueError(
                "a world opens with a frame or with a history, whose last frame is the present; "
                "leave one of them out"
            )

    @property
    def frames(self) -> list[Any]:
        """All that is shown before the first step; empty if the first frame is imagined."""
        if self.history is not None:
            return list(self.history.frames)
        return [] if self.frame is None else [self.frame]

    @property
    def actions(self) -> list[Any]:
        """What was done between those frames."""
        return [] if self.history is None else list(self.history.actions)


class Simulation:
    """Generated worlds side by side: one session, one random generator for each."""

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        size: int,
        options: dict[str, Any],
        compiled: bool = False,
        memory: str | None = None,
    ):
        check_processor(processor, model.config)
        model.config.check_memory(model.config.memory if memory is None else memory)
        self.compiled = compiled
        self.memory = memory
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
        self.next_words: list[str | None] = [None] * size

    def begin(self, rows: list[int], starts: list[Start], seeds: list[int]) -> list[dict[str, Any]]:
        """Opens episodes; returns what `info` says of each row."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shown = self._frames(starts, generators)
        sequences = [
            self._opening(start, frames) for start, frames in zip(starts, shown, strict=True)
        ]
        if self.session is None:
            if len(rows) != self.size:
                raise ValueError(f"only rows {rows} are reset, but none has begun; reset all first")
            inputs = self.processor.encode(sequences)
            self.session = self.model.start(
                **inputs, generator=generators, compiled=self.compiled, memory=self.memory
            )
        else:
            streams: list[Any] = [None] * self.size
            for row, sequence in zip(rows, sequences, strict=True):
                streams[row] = self.processor.stream(sequence)
            self.session.clear(rows)
            for row, generator in zip(rows, generators, strict=True):
                self.session.generators[row] = generator
            self.session.append(streams)
        size = self.frame_shape[:2]
        for row, start, frames in zip(rows, starts, shown, strict=True):
            if start.frames:
                present = self.processor.read_frame(start.frames[-1], "the present frame", size)
            else:
                present = self.processor.pixels(frames[-1])
            self.frames[row] = present
        self.steps[rows] = 0
        self.is_over[rows] = False
        for row in rows:
            self.next_words[row] = None
        return [describe_frame(frames[-1]) for frames in shown]

    def _opening(self, start: Start, frames: list[Segment]) -> Sequence:
        """An episode until its first step."""
        segments = self._words(start)
        for place, frame in enumerate(frames):
            segments.append(frame)
            if place < len(frames) - 1:
                action = start.actions[place]
                told = None if action is None else name_action(self.processor, action)
                segments.append(action_segment(told))
        return Sequence(segments)

    def _words(self, start: Start) -> list[Segment]:
        """What is said before the first frame: the task, then the world's words."""
        words = [] if start.task is None else [text_segment(start.task, "task")]
        told = start.words
        if told is None and start.task is not None and self.knows_world:
            told = f"{PROMISE}{start.task}"
        return words if told is None else [*words, text_segment(told, "world")]

    @property
    def knows_world(self) -> bool:
        """Whether the model was taught words of the world."""
        return self.model.config.world_token_id is not None

    def tell(self, rows: list[int], words: list[str | None]) -> None:
        """Says what happens next in some rows; heard with their next action.

        Raises:
            ValueError: If the model was never taught words of the world, or words are missing.
        """
        if not self.knows_world:
            raise ValueError(
                "this model was never taught words of the world; use one that has <world> among "
                "its tokens"
            )
        for row, told in zip(rows, words, strict=True):
            if told is not None and not (isinstance(told, str) and told):
                raise ValueError(f"row {row} is told {told!r}; give words, or None")
        for row, told in zip(rows, words, strict=True):
            self.next_words[row] = told

    def _frames(
        self, starts: list[Start], generators: list[torch.Generator]
    ) -> list[list[Segment]]:
        """The given frames in latents; those that are missing are imagined from the task."""
        given = [frame for start in starts for frame in start.frames]
        encoded = iter(encode_observations(self.model, self.processor, given) if given else [])
        shown = [[next(encoded) for _ in start.frames] for start in starts]
        dreamt = [i for i, frames in enumerate(shown) if not frames]
        if dreamt:
            prompts = [Sequence(self._words(starts[i])) for i in dreamt]
            if any(not len(prompt) for prompt in prompts):
                raise ValueError(
                    "a world needs a first frame, a task to imagine one from, or both; give them "
                    "when it is made or in reset(options={'frame': ..., 'task': ...})"
                )
            inputs = self.processor.encode(prompts)
            session = self.model.start(**inputs, generator=[generators[i] for i in dreamt])
            for i, reply in zip(dreamt, self._forward(session, None), strict=True):
                shown[i] = [frame_segment(latents=reply.latents, outcome="ongoing")]
        return shown

    def advance(self, rows: list[int], actions: list[Any]) -> list[dict[str, Any]]:
        """Takes one action in each of the rows; returns what `info` says of each."""
        if self.session is None or bool(self.is_over[rows].any()):
            raise ValueError("the episode is over or has not begun; call reset before step")
        streams: list[Any] = [None] * self.size
        for row, action in zip(rows, actions, strict=True):
            turn = [action_segment(name_action(self.processor, action))]
            words, self.next_words[row] = self.next_words[row], None
            if words is not None:
                turn.append(text_segment(words, "world"))
            streams[row] = self.processor.stream(Sequence(turn))
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

    def imagine(self, row: int, actions: list[Any], schedule: str) -> np.ndarray:
        """What would follow in a row if these actions were taken, `(T, H, W, 3)` uint8.

        The row stays where it is; see `unified.sampling.futures` for the schedule.
        """
        if self.session is None or bool(self.is_over[row]):
            raise ValueError("the episode is over or has not begun; call reset before imagine")
        config, read = self.model.config, read_schedule(schedule)
        opens = torch.tensor([config.frame_token_id])
        turns = []
        for number, action in enumerate(actions):
            turn = [action_segment(name_action(self.processor, action))]
            ids = self.processor.stream(Sequence(turn)).input_ids
            goes_on = torch.tensor([config.ongoing_token_id] if number else [], dtype=torch.int64)
            turns.append(torch.cat([goes_on, ids, opens]))
        told = {name: value for name, value in self.options.items() if name != "temperature"}
        latents = draw_frames(self.session.fork([row]), [turns], Options(**told), read)[0]
        return self.processor.decode_latents(place_tokens(latents, config))

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
        if not isinstance(snapshot, Snapshot):
            raise ValueError(
                f"{type(snapshot).__name__} is no snapshot; give what snapshot() returned"
            )
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
    """Entries of Gymnasium's `info` for a frame."""
    latents = torch.as_tensor(frame.latents).detach().float().cpu().numpy().copy()
    return {"outcome": frame.outcome, "latents": latents}
