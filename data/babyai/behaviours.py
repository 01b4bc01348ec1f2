"""Who acts besides the expert: chance, and wanderers who handle things."""

import numpy as np

from data.babyai.views import ACTIONS, AGENT, BOX, DOOR, EMPTY, FRONT, PORTABLE, WALL, is_free

HANDLE_SHARE = 0.3


def random_action(view: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an action, rare ones with a raised probability where they have an effect.

    Args:
        view: uint8 (7, 7, 3) as in `render_view`.
        rng: Source of randomness.

    Returns:
        The action's index in `ACTIONS`.
    """
    front, carried = view[FRONT], view[AGENT]
    carries = carried[0] in PORTABLE
    # left, right, forward, pickup, drop, toggle, done
    weights = np.array([1.0, 1.0, 2.0 if is_free(front) else 0.5, 0.1, 0.1, 0.1, 0.05])
    if front[0] in PORTABLE:
        weights[3] = 0.5 if carries else 2.5
        weights[5] = 0.4 if front[0] == BOX else 0.15
    if front[0] == DOOR:
        weights[5] = 2.0
    if carries:
        weights[4] = 1.2 if front[0] == EMPTY else 0.3
    return int(rng.choice(len(ACTIONS), p=weights / weights.sum()))


class Wanderer:
    """Turns one way for a while, walks on for a while, again and again.

    So it keeps looking at what it saw some frames ago, which a random walk rarely does. Now and
    then it handles what is in its way: few others ever find out that a box opened is a box gone.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.plan: list[str] = []

    def act(self, view: np.ndarray) -> int:
        """Name the next action as an index in `ACTIONS`; mostly not against what blocks the way."""
        carries = view[AGENT][0] in PORTABLE
        if (carries or view[FRONT][0] in PORTABLE) and self.rng.random() < HANDLE_SHARE:
            return ACTIONS.index(self.rng.choice(["toggle", "drop" if carries else "pickup"]))
        if not self.plan:
            turn, turns, steps = self.rng.integers((0, 1, 1), (2, 6, 4))
            self.plan = [ACTIONS[turn]] * turns + ["forward"] * steps
        if self.plan[0] == "forward" and not is_free(view[FRONT]) and self.rng.random() < 0.7:
            self.plan = []
            return self.act(view)
        return ACTIONS.index(self.plan.pop(0))


class Handler:
    """Walks up to things and does anything at all to them, whatever the task says.

    Every action is tried on everything with hands full and empty, most often what has no effect
    there: pick up with full hands, drop against a wall, toggle a ball, push a locked door.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.plan: list[str] = []

    def act(self, view: np.ndarray) -> int:
        """Name the next action as an index in `ACTIONS`."""
        front, carries = view[FRONT], view[AGENT][0] in PORTABLE
        if front[0] in (*PORTABLE, DOOR):
            share = 0.6
        elif front[0] == WALL:
            share = 0.2
        else:
            share = 0.3 if carries else 0.06
        if self.rng.random() < share:
            self.plan = self.plan if self.rng.random() < 0.5 else []
            return ACTIONS.index(self.rng.choice(ACTIONS[2:], p=(0.2, 0.25, 0.25, 0.27, 0.03)))
        if not self.plan:
            ahead = view[FRONT[0], : FRONT[1] + 1][::-1]
            is_worth = np.isin(ahead[:, 0], (*PORTABLE, DOOR))
            reach = int(is_worth.argmax()) if is_worth.any() else 0
            if 0 < reach <= 4 and self.rng.random() < 0.7:
                self.plan = ["forward"] * reach
            else:
                turn, turns, steps = self.rng.integers((0, 1, 0), (2, 3, 3))
                self.plan = [ACTIONS[turn]] * turns + ["forward"] * steps
        if self.plan[0] == "forward" and not is_free(front) and self.rng.random() < 0.8:
            self.plan = [str(self.rng.choice(ACTIONS[:2]))]
        return ACTIONS.index(self.plan.pop(0))
