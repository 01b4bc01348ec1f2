"""Questions about what the agent sees, saw and did, with their answers from the true state.

An answer says only what the agent can know: what it never saw, "i cannot know".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_NAMES, IDX_TO_COLOR, IDX_TO_OBJECT

from data.babyai.views import (
    AGENT,
    BOX,
    CLOSED,
    DOOR,
    EMPTY,
    FRONT,
    KEY,
    LOCKED,
    OPEN,
    PORTABLE,
    UNSEEN,
    WALL,
    is_free,
)
from data.babyai.words import name_of, place_around

UNKNOWN = "i cannot know"
MOST_TO_COUNT = 5
_THINGS = ("ball", "box", "key", "door")
_PLURALS = {"ball": "balls", "box": "boxes", "key": "keys", "door": "doors"}


@dataclass
class Witness:
    """What the agent has seen and done so far.

    Attributes:
        view: uint8 (7, 7, 3), what it sees now.
        known: Cells of the world that it saw, as they were when last seen.
        done: What its last action did, in words; None where nobody can say.
        reason: Why it did that, in words; None where nobody knows.
    """

    env: Any
    view: np.ndarray
    known: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)
    done: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        self._remember()

    def see(self, view: np.ndarray, action: str, reason: str | None, *, is_told: bool) -> None:
        """Takes in the frame after an action; `is_told` where the world did something besides."""
        self.done = None if is_told else _deed(self.view, view, action)
        self.reason = reason
        self.view = view
        self._remember()

    def _remember(self) -> None:
        env = self.env
        for column, row in np.argwhere(self.view[..., 0] != UNSEEN):
            if (column, row) == AGENT:
                self.known[_pair(env.agent_pos)] = (EMPTY, 0, 0)
                continue
            ahead, right = AGENT[1] - int(row), int(column) - AGENT[0]
            place = env.agent_pos + env.dir_vec * ahead + env.right_vec * right
            kind, colour, state = (int(value) for value in self.view[column, row])
            self.known[_pair(place)] = (kind, colour, state)

    def around(self, place: tuple[int, int]) -> str:
        """Where a cell of the world is from here, in words."""
        offset = np.subtract(place, self.env.agent_pos)
        return place_around(int(offset @ self.env.dir_vec), int(offset @ self.env.right_vec))


def ask(witness: Witness, rng: np.random.Generator) -> tuple[str, str, str] | None:
    """Draws a question that can be asked now.

    Returns:
        Its kind, its words, and the answer; None where the drawn kind has no answer now.
    """
    return ask_as(witness, rng, str(rng.choice(list(QUESTIONS))))


def ask_as(witness: Witness, rng: np.random.Generator, kind: str) -> tuple[str, str, str] | None:
    """A question of one kind; see `ask`."""
    found = QUESTIONS[kind](witness, rng)
    return None if found is None else (kind, *found)


_Asked = tuple[str, str] | None


def _ahead(witness: Witness, rng: np.random.Generator) -> _Asked:
    words = rng.choice(["what is ahead?", "what is in front of you?", "what do you face?"])
    return str(words), _seen_as(witness.view[FRONT])


def _color(witness: Witness, rng: np.random.Generator) -> _Asked:
    kind = str(rng.choice(_THINGS))
    found = sorted((abs(a) + abs(r), cell[1]) for cell, a, r in _in_view(witness.view, kind))
    words = rng.choice(["what color is the nearest {}?", "which color has the nearest {}?"])
    if len({colour for distance, colour in found if distance == found[0][0]}) > 1:
        return None
    answer = IDX_TO_COLOR[found[0][1]] if found else f"i see no {kind}"
    return str(words).format(kind), answer


def _count(witness: Witness, rng: np.random.Generator) -> _Asked:
    kind = str(rng.choice(_THINGS))
    count = len(_in_view(witness.view, kind))
    words = rng.choice(["how many {} do you see?", "how many {} are in view?"])
    return None if count > MOST_TO_COUNT else (str(words).format(_PLURALS[kind]), str(count))


def _door(witness: Witness, rng: np.random.Generator) -> _Asked:
    doors = _in_view(witness.view, "door")
    colours = {cell[1] for cell, _, _ in doors}
    if colours and rng.random() < 0.8:
        colour = int(rng.choice(sorted(colours)))
    else:
        colour = int(rng.integers(len(IDX_TO_COLOR)))
    states = [cell[2] for cell, _, _ in doors if cell[1] == colour]
    is_remembered = any(cell[:2] == (DOOR, colour) for cell in witness.known.values())
    if len(states) > 1 or (not states and is_remembered):
        return None
    name = IDX_TO_COLOR[colour]
    words = rng.choice(["is the {} door open?", "does the {} door stand open?"])
    answers = {OPEN: "yes", CLOSED: "no", LOCKED: "no, it is locked"}
    return str(words).format(name), answers[states[0]] if states else UNKNOWN


def _carry(witness: Witness, rng: np.random.Generator) -> _Asked:
    words = rng.choice(["what do you carry?", "what is in your hands?", "what do you hold?"])
    carried = witness.view[AGENT]
    return str(words), name_of(carried) if carried[0] in PORTABLE else "nothing"


def _forward(witness: Witness, rng: np.random.Generator) -> _Asked:
    words = rng.choice(["can you go forward?", "is the way free?", "could you step ahead?"])
    return str(words), "yes" if is_free(witness.view[FRONT]) else "no"


def _toggled(witness: Witness, rng: np.random.Generator) -> _Asked:
    kind, colour, state = (int(value) for value in witness.view[FRONT])
    carried = witness.view[AGENT]
    answer = "nothing"
    if kind == BOX:
        answer = "the box would vanish"
    elif kind == DOOR and state == LOCKED:
        fits = carried[0] == KEY and carried[1] == colour
        answer = "the door would open" if fits else "nothing, it is locked"
    elif kind == DOOR:
        answer = "the door would open" if state == CLOSED else "the door would close"
    words = rng.choice(["what would happen if you toggled?", "what if you toggled now?"])
    return str(words), answer


def _picked(witness: Witness, rng: np.random.Generator) -> _Asked:
    front, carried = witness.view[FRONT], witness.view[AGENT]
    takes = front[0] in PORTABLE and carried[0] not in PORTABLE
    words = rng.choice(["what would happen if you picked up?", "what if you picked up now?"])
    return str(words), f"i would carry {name_of(front)}" if takes else "nothing"


def _dropped(witness: Witness, rng: np.random.Generator) -> _Asked:
    front, carried = witness.view[FRONT], witness.view[AGENT]
    drops = front[0] == EMPTY and carried[0] in PORTABLE
    words = rng.choice(["what would happen if you dropped?", "what if you dropped now?"])
    return str(words), f"{name_of(carried)} would be ahead" if drops else "nothing"


def _where(witness: Witness, rng: np.random.Generator) -> _Asked:
    """Of a thing that was seen once, be it in view or not, or was never seen."""
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place, (kind, colour, _) in witness.known.items():
        if kind in (*PORTABLE, DOOR):
            places.setdefault((kind, colour), []).append(place)
    carried = _pair(witness.view[AGENT])
    if carried[0] in PORTABLE:
        places.setdefault(carried, []).append(_pair(witness.env.agent_pos))
    single = sorted(thing for thing, found in places.items() if len(found) == 1)
    if single and rng.random() < 0.85:
        thing = single[rng.integers(len(single))]
        is_held = thing == carried
        answer = "in my hands" if is_held else witness.around(places[thing][0])
        name = f"{IDX_TO_COLOR[thing[0 + 1]]} {IDX_TO_OBJECT[thing[0]]}"
    else:
        name = f"{rng.choice(COLOR_NAMES)} {rng.choice(_THINGS)}"
        if any(f"{IDX_TO_COLOR[c]} {IDX_TO_OBJECT[k]}" == name for k, c in places):
            return None
        answer = UNKNOWN
    words = rng.choice(["where is the {}?", "where did you see the {}?"])
    return str(words).format(name), answer


def _did(witness: Witness, rng: np.random.Generator) -> _Asked:
    words = rng.choice(["what did you just do?", "what changed?", "what happened just now?"])
    return None if witness.done is None else (str(words), witness.done)


def _why(witness: Witness, rng: np.random.Generator) -> _Asked:
    words = rng.choice(["why did you do that?", "why?", "what was that for?"])
    return None if witness.reason is None else (str(words), f"to {witness.reason}")


QUESTIONS: dict[str, Callable[[Witness, np.random.Generator], _Asked]] = {
    "ahead": _ahead,
    "color": _color,
    "count": _count,
    "door": _door,
    "carry": _carry,
    "forward": _forward,
    "toggle": _toggled,
    "pickup": _picked,
    "drop": _dropped,
    "where": _where,
    "did": _did,
    "why": _why,
}
"""Kinds of questions."""


def _deed(before: np.ndarray, after: np.ndarray, action: str) -> str:
    """What an action did, told from the views before and after it."""
    front, carried = before[FRONT], before[AGENT]
    if action in ("left", "right"):
        return f"i turned {action}"
    if action == "forward" and is_free(front):
        return "i went forward"
    holds = after[AGENT]
    if action == "pickup" and holds[0] in PORTABLE and carried[0] not in PORTABLE:
        return f"i picked up {name_of(holds)}"
    if action == "drop" and carried[0] in PORTABLE and holds[0] not in PORTABLE:
        return f"i dropped {name_of(carried)}"
    if action == "toggle" and front[0] == BOX:
        return "the box vanished"
    if action == "toggle" and front[0] == DOOR and front[2] != after[FRONT][2]:
        return "i opened the door" if after[FRONT][2] == OPEN else "i closed the door"
    return "nothing changed"


def _seen_as(cell: np.ndarray) -> str:
    if cell[0] in (*PORTABLE, DOOR):
        return name_of(cell)
    return "a wall" if cell[0] == WALL else "nothing"


def _in_view(view: np.ndarray, kind: str) -> list[tuple[tuple[int, int, int], int, int]]:
    """Things of a kind in view, not in the hands: cell, cells ahead, cells to the right."""
    found = []
    for column, row in np.argwhere(view[..., 0] != UNSEEN):
        cell = tuple(int(value) for value in view[column, row])
        if IDX_TO_OBJECT[cell[0]] == kind and (column, row) != AGENT:
            found.append((cell, AGENT[1] - int(row), int(column) - AGENT[0]))
    return found


def _pair(place: Any) -> tuple[int, int]:
    return int(place[0]), int(place[1])
