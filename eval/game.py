"""What is asked of whoever is evaluated: the model, a simple rule, or an oracle in a test.

The evaluations know only this, so that all players are scored by the same lines. They hand over
what a player may know and nothing else: a `Moment` has no hidden state.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Moment:
    """What was seen, what led there (None: the first, or untold), and the outcome."""

    frame: np.ndarray
    action: str | None
    outcome: str | None


class Seen(Protocol):
    """What was seen at one moment of an episode, what led there, and the outcome then."""

    @property
    def frame(self) -> np.ndarray:
        """`(H, W, 3)` uint8."""
        ...

    @property
    def action(self) -> str | None:
        """The action that led here, None at first or where nobody knows."""
        ...

    @property
    def outcome(self) -> str | None:
        """ongoing, success or failure."""
        ...


class Played(Protocol):
    """An episode that really happened."""

    @property
    def task(self) -> str | None:
        """In words, if there are any."""
        ...

    @property
    def views(self) -> Rows[Seen]:
        """Frames, from the first on."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the environment, and of the model's noise."""
        ...


class Game(Protocol):
    """Episodes under way, one a row, of which a player knows the tasks and what it was told."""

    def tell(self, moments: Rows[Moment]) -> None:
        """Says what truly followed in each row: an action and the frame it led to."""
        ...

    def draw(
        self, actions: Rows[str | None], num_inference_steps: int | None = None
    ) -> list[Moment]:
        """Asks for the frame that each action leads to, and goes on from there."""
        ...

    def name(self, moments: Rows[Moment]) -> list[str]:
        """Says what was seen next, but no action, and asks which one led there."""
        ...

    def reveal(self, actions: Rows[str | None]) -> None:
        """Says which actions led to the frames that `name` showed; None where nobody knows."""
        ...

    def choose(self) -> list[str]:
        """Asks what to do now, without doing it; "" where nothing is done."""
        ...

    def imagine(
        self, max_turns: int, temperature: float, num_inference_steps: int | None = None
    ) -> list[list[Moment]]:
        """Asks for both roles: actions and the frames that they lead to."""
        ...

    def fork(self, rows: list[int] | None = None) -> "Game":
        """A copy of these rows to ask without consequence; None is all."""
        ...


class GamePlayer(Protocol):
    """Who begins games, and answers about single frames."""

    def begin(self, episodes: Rows[Played], seed: int) -> Game:
        """A game that knows the tasks and the first frames."""
        ...

    def code(self, frames: np.ndarray) -> np.ndarray:
        """`(N, H, W, 3)` uint8 frames as they come back from the codec."""
        ...

    def describe(self, frames: Rows[np.ndarray]) -> list[str]:
        """Each frame in words."""
        ...


def told(view: Seen) -> Moment:
    """A true moment without what nobody may know of it."""
    return Moment(view.frame, view.action, view.outcome)


def shown(view: Seen) -> Moment:
    """The same without its action: what one sees who must guess it."""
    return Moment(view.frame, None, view.outcome)
