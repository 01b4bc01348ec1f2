"""Worlds side by side: the model's own and the real ones, behind one interface."""

import contextlib
import io
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from eval.babyai.player import Player, first_frames
from eval.babyai.truth import TrueWorld, View
from unified.conversation.sequence import Segment, Sequence, action_segment, text_segment
from unified.roles.simulation import PROMISE

BATCH = 128
Case = TypeVar("Case")


@dataclass(frozen=True)
class Scene:
    """What is told before one frame is drawn.

    Attributes:
        seed: Of the noise.
        task: Words of the task; None is none.
        views: What was seen, with the actions between; none where the world opens with this frame.
        action: What is done now; None where nothing was seen yet.
        words: What the world says before the frame; None is nothing.
    """

    seed: int
    task: str | None = None
    views: list[View] = field(default_factory=list)
    action: str | None = None
    words: str | None = None


Drawer = Callable[[list[Scene]], np.ndarray]
"""Draws one frame for each scene, `(N, 56, 56, 3)` uint8: the model, the truth, or a cheat."""


class ModelDrawer:
    """The model as one who draws."""

    def __init__(
        self, player: Player, *, num_inference_steps: int | None = None, label: str = "frames"
    ):
        """Keeps the player and the options."""
        self.player = player
        self.num_inference_steps = num_inference_steps
        self.label = label

    def __call__(self, scenes: list[Scene]) -> np.ndarray:
        """One frame for each scene, `(N, 56, 56, 3)` uint8, in batches of scenes as long."""
        order = sorted(range(len(scenes)), key=lambda i: len(scenes[i].views))
        frames: dict[int, np.ndarray] = {}
        with tqdm(total=len(scenes), desc=self.label, leave=False) as bar:
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                drawn = self._draw([scenes[i] for i in chosen])
                frames.update(zip(chosen, drawn, strict=True))
                bar.update(len(chosen))
        return np.stack([frames[i] for i in range(len(scenes))])

    def _draw(self, scenes: list[Scene]) -> np.ndarray:
        player = self.player
        views = [view for scene in scenes for view in scene.views]
        shown = iter(player.encode(views) if views else [])
        sequences = []
        for scene in scenes:
            segments: list[Segment] = []
            if scene.task is not None:
                segments.append(text_segment(scene.task, "task"))
            for number, view in enumerate(scene.views):
                if number:
                    segments.append(action_segment(view.action))
                segments.append(next(shown))
            if scene.action is not None:
                segments.append(action_segment(scene.action))
            if scene.words is not None:
                segments.append(text_segment(scene.words, "world"))
            sequences.append(Sequence(segments))
        generators = [torch.Generator().manual_seed(scene.seed) for scene in scenes]
        session = player.model.start(**player.processor.encode(sequences), generator=generators)
        generation = session.run("forward", num_inference_steps=self.num_inference_steps)
        return player.pixels(first_frames(player.replies(generation)))


@dataclass(frozen=True)
class Start:
    """Where an episode begins.

    Attributes:
        level: Of the real environment.
        seed: Of the real environment, and of the noise.
        task: The mission.
        view: What is seen first; None where a dream is to draw it.
    """

    level: str
    seed: int
    task: str
    view: View | None


class Worlds(Protocol):
    """Episodes side by side.

    Attributes:
        frames: `(N, 56, 56, 3)` uint8, what is seen now.
        outcomes: ongoing, success or failure, of each.
    """

    frames: np.ndarray
    outcomes: list[str]

    def step(self, actions: list[str]) -> None:
        """Takes one action in each."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Goes on with these rows alone."""
        ...


class RealWorlds:
    """The environment itself."""

    def __init__(self, starts: Rows[Start]):
        """Resets one environment for each."""
        self.worlds = [TrueWorld(start.level) for start in starts]
        views = [open_world(w, s.seed) for w, s in zip(self.worlds, starts, strict=True)]
        self._show(views)

    def _show(self, views: list[View]) -> None:
        self.frames = np.stack([view.frame for view in views])
        self.outcomes = [view.outcome for view in views]

    def step(self, actions: list[str]) -> None:
        """Takes one action in each."""
        self._show([w.step(action) for w, action in zip(self.worlds, actions, strict=True)])

    def keep(self, rows: list[int]) -> None:
        """Goes on with these rows alone."""
        self.worlds = [self.worlds[row] for row in rows]
        self.frames = self.frames[rows]
        self.outcomes = [self.outcomes[row] for row in rows]


class DreamtWorlds:
    """The model's own worlds, each opened by its mission: the task, and the world's promise."""

    def __init__(
        self, player: Player, starts: Rows[Start], *, num_inference_steps: int | None = None
    ):
        """Shows the first frames, or draws them where no start has one."""
        self.player = player
        self.num_inference_steps = num_inference_steps
        views = [start.view for start in starts if start.view is not None]
        assert len(views) in (0, len(starts))
        speaks = player.model.config.world_token_id is not None
        sequences = []
        for start in starts:
            opening = [text_segment(start.task, "task")]
            if speaks:
                opening.append(text_segment(f"{PROMISE}{start.task}", "world"))
            sequences.append(opening)
        if views:
            frames = player.encode(views)
            sequences = [[*a, frame] for a, frame in zip(sequences, frames, strict=True)]
        inputs = player.processor.encode([Sequence(segments) for segments in sequences])
        generators = [torch.Generator().manual_seed(start.seed) for start in starts]
        self.session = player.model.start(**inputs, generator=generators)
        if views:
            self.frames = np.stack([view.frame for view in views])
            self.outcomes = ["ongoing"] * len(starts)
        else:
            self._draw()

    def _draw(self) -> None:
        steps = self.num_inference_steps
        replies = self.player.replies(self.session.run("forward", num_inference_steps=steps))
        frames = first_frames(replies)
        self.frames = self.player.pixels(frames)
        self.outcomes = [str(frame.outcome) for frame in frames]

    def step(self, actions: list[str]) -> None:
        """Takes one action in each, and draws what it leads to."""
        self.session.append([self.player.stream(action_segment(action)) for action in actions])
        self._draw()

    def keep(self, rows: list[int]) -> None:
        """Goes on with these rows alone."""
        self.session = self.session.fork(rows)
        self.frames = self.frames[rows]
        self.outcomes = [self.outcomes[row] for row in rows]


def open_world(world: TrueWorld, seed: int) -> View:
    """The first view of an episode, without what the environment prints of rejected layouts."""
    with contextlib.redirect_stdout(io.StringIO()):
        return world.reset(seed)


def starts_of(level: str, count: int, first_seed: int) -> list[Start]:
    """The first `count` episodes of a level from a seed on."""
    world = TrueWorld(level)
    starts = []
    for seed in range(first_seed, first_seed + count):
        view = open_world(world, seed)
        starts.append(Start(level, seed, world.mission, view))
    return starts


def find_cases(
    kinds: Iterable[str],
    levels: Rows[str],
    count: int,
    first_seed: int,
    make: Callable[[TrueWorld, str, int], Case | None],
    label: str,
) -> list[Case]:
    """`count` cases of every kind, from the first seeds whose worlds have one.

    Args:
        kinds: Of cases.
        levels: That take turns, seed by seed.
        count: Cases of each kind.
        first_seed: Where each kind begins.
        make: Makes a case of a kind in the world of a seed; None where there is none.
        label: Of the progress bar.
    """
    worlds = {level: TrueWorld(level) for level in levels}
    found: list[Case] = []
    for kind in tqdm(kinds, desc=f"{label}: cases", leave=False):
        seed, made = first_seed, 0
        while made < count:
            case = make(worlds[levels[seed % len(levels)]], kind, seed)
            seed += 1
            if case is not None:
                found.append(case)
                made += 1
    return found
