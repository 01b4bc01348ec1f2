"""The real BabyAI environment, and what could be known of a frame before it came.

`TrueWorld` is the environment with views for comparison; `Knowledge` follows which tiles of the
next frame are determined by the context and the actions. `(7, 7)` arrays are indexed [row, column]
of the picture; world cells are minigrid's (x, y).
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from minigrid.core.actions import Actions
from minigrid.minigrid_env import MiniGridEnv

from eval.babyai.tiles import (
    AGENT_TILE,
    EMPTY,
    FRONT_TILE,
    TILE_SIZE,
    UNSEEN,
    VIEW_SIZE,
    WALL,
    draw_frame,
    object_sprite,
    opaque_sprites,
    sprites,
    visible_tiles,
)

ACTIONS = tuple(action.name for action in Actions)


@dataclass(frozen=True)
class View:
    """One moment of a true episode: what the agent sees, and where that is in the world.

    Attributes:
        frame: `(56, 56, 3)` uint8, as the environment draws it.
        sprites: `(7, 7)` int64, the frame as sprite ids.
        visible: `(7, 7)` bool, tiles that are seen.
        cells: `(7, 7, 2)` int64, world cell (x, y) of each tile; may lie outside the world.
        contents: `(7, 7)` int64, sprite id of each cell's content, seen or not; a wall outside the
            world; at the agent's tile what it stands on.
        action: The action that led here, None for the first view.
        outcome: "ongoing", "success" or "failure".
    """

    frame: np.ndarray
    sprites: np.ndarray
    visible: np.ndarray
    cells: np.ndarray
    contents: np.ndarray
    action: str | None
    outcome: str

    def cell(self, tile: tuple[int, int]) -> tuple[int, int]:
        """World cell (x, y) of a tile."""
        x, y = self.cells[tile]
        return int(x), int(y)


class TrueWorld:
    """The real environment of one BabyAI level, such as "GoToRedBall".

    Frames are those of minigrid's `RGBImgPartialObsWrapper(tile_size=8)`. `snapshot` and `restore`
    go back to any moment of any episode.
    """

    def __init__(self, level: str):
        name = f"BabyAI-{level}-v0"
        if name not in gymnasium.registry:
            raise ValueError(f"level {level!r} is unknown; name a BabyAI level like 'GoToRedBall'")
        self.level = level
        self.env = self._make(name)
        self.view: View | None = None

    @staticmethod
    def _make(name: str) -> MiniGridEnv:
        env = gymnasium.make(name, disable_env_checker=True).unwrapped
        assert isinstance(env, MiniGridEnv)
        assert env.agent_view_size == VIEW_SIZE
        assert not env.see_through_walls
        return env

    @property
    def mission(self) -> str:
        """The task of the current episode, in words."""
        return self.env.mission

    def reset(self, seed: int) -> View:
        """Start the episode of this seed; its first view."""
        self.env.reset(seed=seed)
        self.view = self._look(None, "ongoing")
        return self.view

    def step(self, action: str) -> View:
        """Take one action; the view it leads to.

        Raises:
            ValueError: If the action is unknown, or no episode is under way.
        """
        if action not in ACTIONS:
            raise ValueError(f"action {action!r} is unknown; use one of {', '.join(ACTIONS)}")
        if self.view is None or self.view.outcome != "ongoing":
            raise ValueError("no episode is under way; call reset(seed) or restore(snapshot)")
        _, reward, terminated, truncated, _ = self.env.step(Actions[action])
        ended = "failure" if terminated or truncated else "ongoing"
        self.view = self._look(action, "success" if float(reward) > 0 else ended)
        return self.view

    def act(self, action: str) -> View:
        """As `step`, in an episode that goes on whatever happens in it: nothing is won or lost."""
        self.env.step(Actions[action])
        return self.look(action)

    def look(self, action: str | None = None) -> View:
        """The view of the environment's state, which was edited since the last one.

        Its frame is put together from sprites, which gives the environment's own (a test says so)
        in a third of the time.
        """
        self.view = self._look(action, "ongoing", is_drawn=False)
        return self.view

    def replay(self, seed: int, actions: Iterable[str]) -> list[View]:
        """Views of a recorded episode: T actions, at most T + 1 views (it stops where it ends)."""
        views = [self.reset(seed)]
        for action in actions:
            if views[-1].outcome != "ongoing":
                break
            views.append(self.step(action))
        return views

    def snapshot(self) -> Any:
        """The whole state at this moment, to be given to `restore` any number of times."""
        return copy.deepcopy((self.env, self.view))

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        self.env, self.view = copy.deepcopy(snapshot)

    def _look(self, action: str | None, outcome: str, *, is_drawn: bool = True) -> View:
        env = self.env
        visible = env.gen_obs_grid()[1].T.copy()
        forward, right = np.asarray(env.dir_vec), np.asarray(env.right_vec)
        ahead = AGENT_TILE[0] - np.arange(VIEW_SIZE)[:, None, None]
        aside = np.arange(VIEW_SIZE)[None, :, None] - AGENT_TILE[1]
        cells = np.asarray(env.agent_pos) + ahead * forward + aside * right
        contents = np.full(visible.shape, WALL)
        for row, column in np.ndindex(visible.shape):
            x, y = (int(n) for n in cells[row, column])
            if 0 <= x < env.grid.width and 0 <= y < env.grid.height:
                contents[row, column] = object_sprite(env.grid.get(x, y))
        shown = np.where(visible, contents, UNSEEN)
        shown[AGENT_TILE] = object_sprite(env.carrying, carried=True)
        frame = (
            env.get_frame(tile_size=TILE_SIZE, agent_pov=True) if is_drawn else draw_frame(shown)
        )
        return View(frame, shown, visible, cells, contents, action, outcome)


@dataclass(frozen=True)
class TileClasses:
    """What could be known of a frame before it came, `(7, 7)` bool each.

    Attributes:
        determined: The context and the actions leave one possibility for this tile.
        changed: Determined, and different from the same tile one frame earlier.
        revealed: Seen in the frame, and not determined: it can only be plausible.
    """

    determined: np.ndarray
    changed: np.ndarray
    revealed: np.ndarray


class Knowledge:
    """What the frames seen so far, and the actions since, say about the world.

    A cell is known once its content was seen: only the agent's actions change the world, and their
    effects follow from what is known. `see` takes a frame of the context. `imagine` takes a true
    view that the model must predict: it classifies the tiles and learns nothing from them. An
    imagined action on something unknown makes its effect unknown: the object's cell and the hands
    for pickup, drop and toggle, the position itself (hence everything) for a step forward.
    """

    def __init__(self) -> None:
        self._known: set[tuple[int, int]] = set()  # cells whose content follows
        self._walked: set[tuple[int, int]] = set()  # cells the agent stood on: not opaque
        self._hands_known = True
        self._position_known = True
        self._last: View | None = None

    def fork(self) -> "Knowledge":
        """A copy to imagine with, while this one goes on to see."""
        twin = copy.copy(self)
        twin._known, twin._walked = set(self._known), set(self._walked)
        return twin

    def see(self, view: View) -> None:
        """Take in a frame of the context."""
        if not self._position_known:
            raise ValueError("the position is not known any more; start a new Knowledge")
        if self._last is not None:
            self._act(self._last, view)
            if not self._position_known:
                raise ValueError("an imagined step led into the unknown; start a new Knowledge")
        seen = view.visible.copy()
        seen[AGENT_TILE] = False  # the agent hides what it stands on
        self._known.update((int(x), int(y)) for x, y in view.cells[seen])
        self._hands_known = True  # the agent's tile shows what it carries
        self._last = view

    def imagine(self, view: View, told: np.ndarray | None = None) -> TileClasses:
        """Classify the tiles of the view that truly follows, without taking them in.

        Args:
            view: What truly follows.
            told: `(7, 7)` bool, tiles of it of which the world says in words what they hold.
        """
        before = self._last
        if before is None:
            raise ValueError("there is no context yet; see at least one view before imagining one")
        self._act(before, view)
        self._last = view
        if told is not None:
            self._hands_known |= bool(told[AGENT_TILE])
            places = [tile for tile in np.ndindex(told.shape) if told[tile] and tile != AGENT_TILE]
            self._known.update(view.cell(tile) for tile in places)
        determined = self._determined(view)
        changed = determined & (view.sprites != before.sprites)
        return TileClasses(determined, changed, view.visible & ~determined)

    def _act(self, before: View, after: View) -> None:
        """Follow the effect of `after.action`, as far as it follows from what is known."""
        if after.action is None:
            raise ValueError("only the first view of an episode has no action; check their order")
        self._walked.add(before.cell(AGENT_TILE))
        front = before.cell(FRONT_TILE)
        known = front in self._known
        if after.action == "forward":
            self._position_known &= known or front in self._walked
        elif after.action in ("pickup", "drop"):
            if not (known and self._hands_known):
                self._forget(front)
                self._hands_known = False
        elif after.action == "toggle":
            content = sprites()[int(before.contents[FRONT_TILE])]
            needs_key = content.state == "locked" and not self._hands_known
            # An object that comes out of a box was not seen; an empty one should just vanish.
            opened_box = content.kind == "box" and not self._is_empty(after, front)
            if not known or needs_key or opened_box:
                self._forget(front)

    @staticmethod
    def _is_empty(view: View, cell: tuple[int, int]) -> bool:
        return bool((view.contents[(view.cells == cell).all(-1)] == EMPTY).all())

    def _forget(self, cell: tuple[int, int]) -> None:
        self._known.discard(cell)
        self._walked.discard(cell)

    def _determined(self, view: View) -> np.ndarray:
        if not self._position_known:
            return np.zeros(view.visible.shape, dtype=bool)
        tiles = list(np.ndindex(view.visible.shape))
        known = np.array([view.cell(tile) in self._known for tile in tiles])
        known = known.reshape(view.visible.shape)
        walked = np.array([view.cell(tile) in self._walked for tile in tiles])
        walked = walked.reshape(view.visible.shape)
        # Visibility only grows when a tile turns transparent, so where the two extremes agree,
        # every way to fill in the unknown cells does.
        opaque = opaque_sprites()[view.contents] & known
        at_most = visible_tiles(opaque)
        at_least = visible_tiles(opaque | (~known & ~walked))
        determined = (at_least == at_most) & (known | ~at_most)
        determined[AGENT_TILE] = self._hands_known
        return determined


def classify_tiles(context: Sequence[View], rollout: Sequence[View]) -> list[TileClasses]:
    """What the context determines of each view that follows it, under the same actions.

    Args:
        context: The views that the model is given, in order, at least one.
        rollout: The true views after them, in order; one view for next-frame prediction.

    Returns:
        One entry per view of `rollout`.
    """
    knowledge = Knowledge()
    for view in context:
        knowledge.see(view)
    return [knowledge.imagine(view) for view in rollout]
