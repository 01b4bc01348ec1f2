"""Floors: simple rules that need no learning, as good as a few lines make them.

They read frames as sprites and know BabyAI's effects. What a model does better than they is what
it has learned beyond them. The repeated frame is no floor where frames change.
"""

import copy
from collections.abc import Sequence as Rows

import numpy as np

from eval.babyai.tiles import (
    AGENT_TILE,
    EMPTY,
    UNSEEN,
    VIEW_SIZE,
    Sprite,
    draw_frame,
    opaque_sprites,
    read_frame,
    sprite_id,
    sprites,
    visible_tiles,
)
from eval.game import Moment

_AHEAD = ((0, -1), (1, 0), (0, 1), (-1, 0))  # by heading, clockwise
UNKNOWN = -1
PORTABLE = ("key", "ball", "box")


def is_free(sprite: Sprite) -> bool:
    """Whether one can walk there."""
    return sprite.kind == "empty" or (sprite.kind == "door" and sprite.state == "open")


def effect(action: str, front: int, carried: Sprite | None) -> tuple[int, Sprite | None]:
    """What pickup, drop and toggle make of the cell ahead and of the hands.

    Args:
        action: Its name.
        front: Sprite id of the cell ahead.
        carried: What is in the hands.

    Returns:
        Both afterwards. A box is taken for empty: nobody sees what is in it.
    """
    ahead = sprites()[front]
    if action == "pickup" and ahead.kind in PORTABLE and carried is None:
        return EMPTY, ahead
    if action == "drop" and front == EMPTY and carried is not None:
        return sprite_id(carried), None
    if action == "toggle" and ahead.kind == "box":
        return EMPTY, carried
    if action == "toggle" and ahead.kind == "door":
        has_key = carried == Sprite("key", ahead.colour)
        state = {"closed": "open", "open": "closed"}.get(
            str(ahead.state), "open" if has_key else "locked"
        )
        return sprite_id(Sprite("door", ahead.colour, state)), carried
    return front, carried


class MapSimulator:
    """Odometry and a map of the cells that were seen: walks, turns, and draws what it knows.

    Cells that it has not seen are drawn as bare floor.
    """

    def __init__(self, frame: np.ndarray, *, remembers: bool = True):
        """Knows the first frame.

        Args:
            frame: `(56, 56, 3)` uint8.
            remembers: False keeps only what the last frame shows, so that it draws the last true
                frame shifted by the actions.
        """
        self.remembers = remembers
        self.place, self.heading = (0, 0), 0
        self.cells: dict[tuple[int, int], int] = {}
        self.carried: Sprite | None = None
        self._look(frame)

    def follow(self, action: str, frame: np.ndarray) -> None:
        """Takes in what an action truly led to."""
        self._move(action)
        if not self.remembers:
            self.cells = {}
        self._look(frame)

    def draw(self, action: str) -> np.ndarray:
        """The frame that the action leads to, `(56, 56, 3)` uint8; goes on from there."""
        self._move(action)
        ids = self.contents()
        ids = np.where(ids == UNKNOWN, EMPTY if self.remembers else self.last, ids)
        opaque = opaque_sprites()[ids]
        opaque[AGENT_TILE] = False
        ids = np.where(visible_tiles(opaque), ids, UNSEEN)
        ids[AGENT_TILE] = sprite_id(Sprite("agent", carries=self.carried))
        return draw_frame(ids)

    def contents(self) -> np.ndarray:
        """What is known to lie in each cell of the view, `(7, 7)` ids; `UNKNOWN` elsewhere."""
        places = np.ndindex(VIEW_SIZE, VIEW_SIZE)
        ids = np.array([self.cells.get(self._cell(*tile), UNKNOWN) for tile in places])
        return ids.reshape(VIEW_SIZE, VIEW_SIZE)

    def turn_to(self, action: str) -> np.ndarray:
        """What would be known of the view after an action, as `contents` has it."""
        twin = self.fork()
        twin._move(action)
        known = twin.contents()
        known[AGENT_TILE] = sprite_id(Sprite("agent", carries=twin.carried))
        return known

    def fork(self) -> "MapSimulator":
        """A copy to draw with."""
        twin = copy.copy(self)
        twin.cells = dict(self.cells)
        return twin

    def _cell(self, row: int, column: int) -> tuple[int, int]:
        """Where a tile of the view lies in the world."""
        ahead, right = AGENT_TILE[0] - row, column - AGENT_TILE[1]
        forward, aside = _AHEAD[self.heading], _AHEAD[(self.heading + 1) % 4]
        return (
            self.place[0] + ahead * forward[0] + right * aside[0],
            self.place[1] + ahead * forward[1] + right * aside[1],
        )

    def _look(self, frame: np.ndarray) -> None:
        ids = read_frame(frame)[0]
        for tile in np.ndindex(ids.shape):
            if tile != AGENT_TILE and ids[tile] != UNSEEN:
                self.cells[self._cell(*tile)] = int(ids[tile])
        self.carried = sprites()[int(ids[AGENT_TILE])].carries
        self.last = ids

    def _move(self, action: str) -> None:
        front = self._cell(AGENT_TILE[0] - 1, AGENT_TILE[1])
        ahead = self.cells.get(front, EMPTY)
        if action in ("left", "right"):
            self.heading = (self.heading + (1 if action == "right" else -1)) % 4
        elif action == "forward":
            self.place = front if is_free(sprites()[ahead]) else self.place
        else:
            self.cells[front], self.carried = effect(action, ahead, self.carried)


def simulators(frame: np.ndarray) -> dict[str, MapSimulator]:
    """The simulator's floors, at a first frame."""
    return {"shift": MapSimulator(frame, remembers=False), "map": MapSimulator(frame)}


def fitting_action(before: Moment, after: Moment, actions: Rows[str]) -> str:
    """The action whose shift of one frame fits the next best; the first of equals."""
    start = MapSimulator(before.frame)
    truth = read_frame(after.frame)[0]
    fits = {}
    for action in actions:
        known = start.turn_to(action)
        told = (known != UNKNOWN) & (truth != UNSEEN)
        fits[action] = (known == truth)[told].mean()
    return max(fits, key=fits.__getitem__)
