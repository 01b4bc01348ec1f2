"""Words about what the agent sees, from the true state."""

import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

from data.babyai.views import AGENT, DOOR, PORTABLE

DOOR_STATES = ("open", "closed", "locked")
MAX_CAPTION_OBJECTS = 5


def article(words: str) -> str:
    """Words with "a" or "an" before them."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def name_of(cell: np.ndarray) -> str:
    """A cell that holds something, such as "a closed grey door"."""
    kind, colour, state = (int(value) for value in cell)
    name = f"{IDX_TO_COLOR[colour]} {IDX_TO_OBJECT[kind]}"
    return article(f"{DOOR_STATES[state]} {name}" if kind == DOOR else name)


def place_of(ahead: int, right: int) -> str:
    """A cell in view, such as "2 ahead and 1 left"."""
    where = [f"{ahead} ahead"] if ahead else []
    if right:
        where.append(f"{abs(right)} {'right' if right > 0 else 'left'}")
    return " and ".join(where)


def place_around(ahead: int, right: int) -> str:
    """Any cell, such as "3 behind and 1 left"."""
    if ahead >= 0:
        return place_of(ahead, right) or "here"
    aside = place_of(0, right)
    return f"{-ahead} behind" + (f" and {aside}" if aside else "")


def caption_of(view: np.ndarray) -> str:
    """Describe the agent's view: up to five nearest objects, and what the agent carries.

    Objects are balls, boxes, keys and doors, nearest first (Manhattan distance, then fewer rows
    ahead, then from left to right).

    Args:
        view: uint8 (7, 7, 3) as in `render_view`.

    Returns:
        Words such as "i see a red ball 2 ahead and 1 left, a closed grey door 3 ahead".
    """
    seen = []
    for column, row in np.argwhere(np.isin(view[..., 0], (*PORTABLE, DOOR))):
        if (column, row) != AGENT:
            ahead, right = AGENT[1] - int(row), int(column) - AGENT[0]
            seen.append((ahead + abs(right), ahead, right))
    phrases = []
    for _, ahead, right in sorted(seen)[:MAX_CAPTION_OBJECTS]:
        name = name_of(view[AGENT[0] + right, AGENT[1] - ahead])
        phrases.append(f"{name} {place_of(ahead, right)}")
    caption = "i see " + (", ".join(phrases) or "nothing")
    carried = view[AGENT]
    if carried[0] in PORTABLE:
        caption += f", carrying {name_of(carried)}"
    return caption
