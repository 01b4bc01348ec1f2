"""Trips in the dream: the context is told, all else is drawn under the true actions."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from eval.babyai.player import Player, first_frames
from eval.babyai.truth import View
from eval.memory.trips import Branch, Trip
from unified.conversation.sequence import Sequence, action_segment, text_segment
from unified.sampling.generation import Session


@dataclass
class Dreams:
    """What came of some trips.

    Attributes:
        frames: k -> `(N, 56, 56, 3)` uint8, the drawn return of each trip that has one, in order.
        keys: Frame number -> cached slots of the longest row, on the trunk.
        seconds: Seconds of each frame of the trunk, for one row.
    """

    frames: dict[int, np.ndarray] = field(default_factory=dict)
    keys: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def cost(self) -> dict[str, list[float]]:
        """Keys and seconds of each frame, as they are kept."""
        return {"keys": list(self.keys), "seconds": [round(s, 5) for s in self.seconds]}


class Dreamer:
    """The model under one memory."""

    def __init__(self, player: Player, memory: str, *, num_inference_steps: int = 2):
        """Keeps the player, the memory and the options.

        Args:
            player: The model.
            memory: See `unified.memory`.
            num_inference_steps: Denoise steps of a frame.
        """
        self.player, self.memory = player, memory
        self.num_inference_steps = num_inference_steps

    def begin(
        self, contexts: list[list[View]], seeds: list[int], tasks: list[str | None] | None = None
    ) -> Session:
        """A session that was told true views with the actions between them, and perhaps a task."""
        player, sequences = self.player, []
        for views, task in zip(contexts, tasks or [None] * len(contexts), strict=True):
            frames = player.encode(views)
            segments = [] if task is None else [text_segment(task, "task")]
            segments.append(frames[0])
            for view, frame in zip(views[1:], frames[1:], strict=True):
                segments += [action_segment(view.action), frame]
            sequences.append(Sequence(segments))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        inputs = player.processor.encode(sequences)
        return player.model.start(**inputs, generator=generators, memory=self.memory)

    def draw(self, session: Session, actions: list[str | None]) -> dict[int, np.ndarray]:
        """The next frame of each row that has an action, by row; `(56, 56, 3)` uint8."""
        player = self.player
        rows = [row for row, action in enumerate(actions) if action is not None]
        session.append(
            [
                None if action is None else player.stream(action_segment(action))
                for action in actions
            ]
        )
        run = session.run("forward", rows=rows, num_inference_steps=self.num_inference_steps)
        replies = player.replies(run)
        pixels = player.pixels(first_frames([replies[row] for row in rows]))
        return dict(zip(rows, pixels, strict=True))

    def travel(self, trips: list[Trip], label: str) -> Dreams:
        """Draws the trunks side by side, and each branch from a fork."""
        dreams = Dreams()
        session = self.begin(
            [trip.context for trip in trips],
            [trip.seed for trip in trips],
            [trip.task for trip in trips],
        )
        longest = max(len(trip.trunk) for trip in trips)
        found: dict[int, dict[int, np.ndarray]] = {}
        for step in tqdm(range(longest + 1), desc=f"{label}, {self.memory}", leave=False):
            for k in sorted({k for trip in trips for k in trip.branches}):
                rows = [
                    row
                    for row, trip in enumerate(trips)
                    if k in trip.branches and trip.branches[k].start == step
                ]
                if rows:
                    drawn = self._return(
                        session.fork(rows), [trips[row].branches[k] for row in rows]
                    )
                    found.setdefault(k, {}).update(zip(rows, drawn, strict=True))
            actions = [
                trip.trunk[step].action if step < len(trip.trunk) else None for trip in trips
            ]
            if any(actions):
                start = time.perf_counter()
                self.draw(session, actions)
                dreams.seconds.append((time.perf_counter() - start) / sum(map(bool, actions)))
                dreams.keys.append(int(session.state.length.max()))
        dreams.frames = {k: np.stack([at[row] for row in sorted(at)]) for k, at in found.items()}
        return dreams

    def _return(self, session: Session, branches: list[Branch]) -> list[np.ndarray]:
        last: dict[int, np.ndarray] = {}
        for step in range(max(len(branch.views) for branch in branches)):
            actions = [
                branch.views[step].action if step < len(branch.views) else None
                for branch in branches
            ]
            last.update(self.draw(session, actions))
        return [last[row] for row in range(len(branches))]
