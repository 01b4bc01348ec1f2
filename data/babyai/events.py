"""What the world does by itself: the environment's state is edited, and the world says how.

The words name places as they are seen in the frame that follows them.
"""

from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.world_object import Ball, Box, Key

from data.babyai.views import AGENT, DOOR, EMPTY, PORTABLE
from data.babyai.words import article, place_of

EVENTS = ("appear", "vanish", "recolour", "open", "close", "lock", "give", "take")
"""Kinds of events."""
_PORTABLES = {"ball": Ball, "box": Box, "key": Key}


def happen(env: Any, view: np.ndarray, rng: np.random.Generator) -> tuple[str, str] | None:
    """Lets something happen that the agent sees.

    Args:
        env: The unwrapped environment; its state is changed.
        view: What the agent sees now, uint8 (7, 7, 3).
        rng: Source of randomness.

    Returns:
        The kind of event and the world's words; None where nothing of the drawn kind can happen.
    """
    kind = str(rng.choice(EVENTS))
    return happen_as(env, view, rng, kind)


def happen_as(
    env: Any, view: np.ndarray, rng: np.random.Generator, kind: str
) -> tuple[str, str] | None:
    """Lets an event of one kind happen; see `happen`."""
    if kind in ("give", "take"):
        if (env.carrying is None) != (kind == "give"):
            return None
        if kind == "take":
            env.carrying = None
            return kind, str(rng.choice(["your hands are empty", "what you carry is gone"]))
        env.carrying = _something(rng)
        env.carrying.cur_pos = np.array([-1, -1])
        return kind, f"{article(env.carrying.color)} {env.carrying.type} is in your hands"
    wanted = (EMPTY,) if kind == "appear" else PORTABLE if kind == "vanish" else (DOOR,)
    if kind == "recolour":
        wanted = (*PORTABLE, DOOR)
    cells = [
        (int(column), int(row))
        for column, row in np.argwhere(np.isin(view[..., 0], wanted))
        if (column, row) != AGENT
    ]
    if not cells:
        return None
    column, row = cells[rng.integers(len(cells))]
    ahead, right = AGENT[1] - row, column - AGENT[0]
    place = env.agent_pos + env.dir_vec * ahead + env.right_vec * right
    here, words = tuple(int(value) for value in place), place_of(ahead, right)
    thing = env.grid.get(*here)
    if kind == "appear":
        if thing is not None:  # an empty cell of the view is an empty cell of the world
            return None
        thing = _something(rng)
        thing.init_pos = thing.cur_pos = here
        env.grid.set(*here, thing)
        return kind, f"{article(thing.color)} {thing.type} appears {words}"
    name = f"the {thing.color} {thing.type} {words}"
    if kind == "vanish":
        env.grid.set(*here, None)
        return kind, f"{name} vanishes"
    if kind == "recolour":
        thing.color = str(rng.choice([colour for colour in COLOR_NAMES if colour != thing.color]))
        return kind, f"{name} turns {thing.color}"
    is_open, is_locked = kind == "open", kind == "lock"
    if (thing.is_open, thing.is_locked) == (is_open, is_locked):
        return None
    thing.is_open, thing.is_locked = is_open, is_locked
    return kind, f"{name} {dict(open='opens', close='closes', lock='is locked')[kind]}"


def _something(rng: np.random.Generator) -> Any:
    kind = str(rng.choice(list(_PORTABLES)))
    return _PORTABLES[kind](str(rng.choice(COLOR_NAMES)))
