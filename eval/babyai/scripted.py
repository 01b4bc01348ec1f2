"""Agents without learning: a heuristic that sees one frame at a time, and random actions."""

from collections import deque
from collections.abc import Sequence as Rows
from typing import Protocol

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from data.babyai.behaviours import random_action
from eval.babyai.floors import PORTABLE, is_free
from eval.babyai.tiles import AGENT_TILE, VIEW_SIZE, Sprite, read_frame, sprites
from eval.babyai.truth import ACTIONS

_STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # of row and column, by heading, clockwise from up
_DOOR_STATES = ("open", "closed", "locked")


class Acting(Protocol):
    """Who plays several episodes side by side, as `unified.roles.agent.Agent` does."""

    def act(self, observation: list[np.ndarray], task: list[str | None]) -> list[str]:
        """An action for each row."""
        ...

    def keep(self, rows: Rows[int]) -> None:
        """Drops the rows that are over."""
        ...


class RandomAgent:
    """Random actions as in the recordings: those that have an effect come more often."""

    def __init__(self, seeds: Rows[int]):
        """One random generator for each row."""
        self.dice = [np.random.default_rng([seed, 1]) for seed in seeds]

    def act(self, observation: list[np.ndarray], task: list[str | None]) -> list[str]:
        """An action for each row."""
        rows = zip(observation, self.dice, strict=True)
        return [ACTIONS[random_action(symbolic(frame), dice)] for frame, dice in rows]

    def keep(self, rows: Rows[int]) -> None:
        """Drops the rows that are over."""
        self.dice = [self.dice[row] for row in rows]


class ScriptedAgent:
    """Walks to what the task names if it is in view, and wanders about otherwise; no memory."""

    def __init__(self, seeds: Rows[int]):
        """One random generator for each row."""
        self.dice = [np.random.default_rng([seed, 2]) for seed in seeds]

    def act(self, observation: list[np.ndarray], task: list[str | None]) -> list[str]:
        """An action for each row."""
        rows = zip(observation, task, self.dice, strict=True)
        return [scripted_action(frame, words or "", dice) for frame, words, dice in rows]

    def keep(self, rows: Rows[int]) -> None:
        """Drops the rows that are over."""
        self.dice = [self.dice[row] for row in rows]


def scripted_action(frame: np.ndarray, task: str, dice: np.random.Generator) -> str:
    """What the heuristic does at a frame, `(56, 56, 3)` uint8."""
    shown = read_frame(frame)[0]
    grid = [[sprites()[int(i)] for i in row] for row in shown]
    front = grid[AGENT_TILE[0] - 1][AGENT_TILE[1]]
    named = [tile for tile in np.ndindex(shown.shape) if is_named(grid[tile[0]][tile[1]], task)]
    if is_named(front, task):
        return "pickup" if "pick up" in task else "toggle" if "open" in task else "done"
    step = first_step(grid, named)
    if step is not None:
        return step
    if front.kind == "door" and front.state == "closed":
        return "toggle"
    if is_free(front) and dice.random() < 0.7:
        return "forward"
    return "right" if dice.random() < 0.7 else "left"


def is_named(sprite: Sprite, task: str) -> bool:
    """Whether a task names this thing: its kind (or any object), and its colour if it names one."""
    words = task.split()
    if sprite.kind not in (*PORTABLE, "door") or sprite.state == "open":
        return False
    kinds = {sprite.kind, "object"} if sprite.kind in PORTABLE else {sprite.kind}
    colours = set(words) & set(COLOR_TO_IDX)
    return bool(kinds & set(words)) and (not colours or sprite.colour in colours)


def first_step(grid: list[list[Sprite]], goals: list[tuple[int, int]]) -> str | None:
    """First action of a shortest way to face one of the goals, through what is in view."""
    begin: tuple[int, int, int] = (*AGENT_TILE, 0)
    queue: deque[tuple[int, int, int]] = deque([begin])
    came: dict[tuple[int, int, int], str] = {begin: ""}
    while queue:
        row, column, heading = here = queue.popleft()
        ahead = (row + _STEPS[heading][0], column + _STEPS[heading][1])
        if ahead in goals:
            return came[here] or None
        around = {
            "left": (row, column, (heading - 1) % 4),
            "right": (row, column, (heading + 1) % 4),
        }
        inside = 0 <= ahead[0] < VIEW_SIZE and 0 <= ahead[1] < VIEW_SIZE
        if inside and is_free(grid[ahead[0]][ahead[1]]):
            around = {"forward": (*ahead, heading), **around}
        for action, there in around.items():
            if there not in came:
                came[there] = came[here] or action
                queue.append(there)
    return None


def symbolic(frame: np.ndarray) -> np.ndarray:
    """A frame as the environment's `obs["image"]`: `(7, 7, 3)` uint8, columns first."""
    view = np.zeros((VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
    for (row, column), i in np.ndenumerate(read_frame(frame)[0]):
        sprite = sprites()[int(i)]
        if (row, column) == AGENT_TILE:
            sprite = sprite.carries or Sprite("empty")
        state = _DOOR_STATES.index(sprite.state) if sprite.state else 0
        colour = {"wall": "grey", "empty": "red", "unseen": "red"}.get(sprite.kind, sprite.colour)
        view[column, row] = OBJECT_TO_IDX[sprite.kind], COLOR_TO_IDX[str(colour)], state
    return view
