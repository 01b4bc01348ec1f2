"""Levels of our own in which the world goes on by itself, whether anybody looks or not.

One room; the agent stands with its back to a wall, and what changes lies ahead. All of it is drawn
with BabyAI's own sprites, and the task says what one has to know to foretell it.
"""

from typing import Any

import gymnasium
from minigrid.core.world_object import Ball, Box, Door
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by minigrid's direction, clockwise
_SIZE = 8
_DEPTH = _SIZE - 2  # cells from wall to wall
SHORTEST, LONGEST = 6, 24
"""Steps that something takes."""


class UnseenEnv(RoomGridLevel):
    """A room in which something goes on by itself.

    Attributes:
        clock: Steps since the episode began.
        delay: Steps that it takes, or its period.
        thing: What changes.
    """

    thing: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(num_rows=1, num_cols=1, room_size=_SIZE, **kwargs)

    def gen_mission(self) -> None:
        """Stands the agent with its back to a wall, and furnishes the room ahead."""
        self.clock = 0
        self.delay = int(self._rand_int(SHORTEST, LONGEST + 1))
        facing, aside = int(self._rand_int(0, 4)), int(self._rand_int(2, _DEPTH))
        dx, dy = _STEPS[facing]
        back = 1 if dx + dy > 0 else _DEPTH
        self.agent_dir = facing
        self.agent_pos = (back, aside) if dx else (aside, back)
        self.furnish()
        self.instrs = GoToInstr(ObjDesc(self.thing.type, self.thing.color))

    def _gen_grid(self, width: int, height: int) -> None:
        super()._gen_grid(width, height)
        self.mission = self.words()

    def cell(self, ahead: int, right: int) -> tuple[int, int]:
        """A cell by how far ahead and to the right of the agent's first place it lies."""
        (x, y), (dx, dy) = self.agent_pos, _STEPS[self.agent_dir]
        return int(x) + ahead * dx - right * dy, int(y) + ahead * dy + right * dx

    def is_free(self, cell: tuple[int, int]) -> bool:
        """Whether something may roll or walk there."""
        return self.grid.get(*cell) is None and cell != tuple(map(int, self.agent_pos))

    def put(self, thing: Any, cell: tuple[int, int]) -> None:
        """Puts down what changes."""
        self.thing = thing
        self.put_obj(thing, cell[0], cell[1])

    def move(self, cell: tuple[int, int]) -> None:
        """Moves it."""
        x, y = self.thing.cur_pos
        self.grid.set(x, y, None)
        self.grid.set(cell[0], cell[1], self.thing)
        self.thing.cur_pos = cell

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """What the agent does, and then what goes on by itself."""
        _, reward, terminated, truncated, info = super().step(action)
        self.clock += 1
        self.go_on()
        return self.gen_obs(), reward, terminated, truncated, info

    def furnish(self) -> None:
        """Puts down what changes."""
        raise NotImplementedError

    def go_on(self) -> None:
        """One step of it."""
        raise NotImplementedError

    def words(self) -> str:
        """The task."""
        raise NotImplementedError


_ANY_BALL: Any = Ball  # whose methods are typed by what they return there
_ANY_BOX: Any = Box


class _Fixed(_ANY_BALL):
    """A ball that nobody carries off."""

    def can_pickup(self) -> bool:
        """Never: it stays where it is."""
        return False


class _FixedBox(_ANY_BOX):
    """A box that nobody carries off or opens."""

    def can_pickup(self) -> bool:
        """Never: it stays where it is."""
        return False

    def toggle(self, env: Any, pos: Any) -> bool:
        """Nothing happens."""
        return False


class _Pot(_FixedBox):
    """A box that is watered where others are opened."""

    watered: int | None = None

    def toggle(self, env: Any, pos: Any) -> bool:
        """Waters it, once."""
        if self.watered is None:
            self.watered = env.clock
        return True


class EggEnv(UnseenEnv):
    """An egg, yellow, that is red once it has cooked for `delay` steps."""

    def furnish(self) -> None:
        """An egg somewhere ahead."""
        self.put(_Fixed("yellow"), self.cell(self._rand_int(2, 5), self._rand_int(-1, 2)))

    def go_on(self) -> None:
        """It cooks."""
        if self.clock == self.delay:
            self.thing.color = "red"

    def words(self) -> str:
        """The task."""
        return f"come back when the egg is done, after {self.delay} steps"


class LampEnv(UnseenEnv):
    """A lamp, a box that is yellow for `delay` steps, grey for as many, and so on."""

    def furnish(self) -> None:
        """A lamp somewhere ahead."""
        self.put(_FixedBox("yellow"), self.cell(self._rand_int(2, 5), self._rand_int(-1, 2)))

    def go_on(self) -> None:
        """It goes on and off."""
        if self.clock % self.delay == 0:
            self.thing.color = "grey" if self.thing.color == "yellow" else "yellow"

    def words(self) -> str:
        """The task."""
        return f"look when the lamp is on, it changes every {self.delay} steps"


class ClosingEnv(UnseenEnv):
    """An open door that closes by itself after `delay` steps."""

    def furnish(self) -> None:
        """A door somewhere ahead."""
        door = Door(self._rand_color(), is_open=True)
        self.put(door, self.cell(self._rand_int(2, 5), self._rand_int(-1, 2)))

    def go_on(self) -> None:
        """It closes."""
        if self.clock == self.delay:
            self.thing.is_open = False

    def words(self) -> str:
        """The task."""
        return f"see the door that closes after {self.delay} steps"


class RollingEnv(UnseenEnv):
    """A blue ball that rolls from wall to wall, a cell at each step, and bounces."""

    def furnish(self) -> None:
        """A ball somewhere in a row ahead."""
        self.put(_Fixed("blue"), self.cell(self._rand_int(2, 5), self._rand_int(-1, 2)))
        sign = self._rand_elem((-1, 1))
        self.heading = (sign, 0) if self.agent_dir % 2 else (0, sign)

    def go_on(self) -> None:
        """It rolls, or turns where something is in its way and rolls then."""
        for _ in range(2):
            x, y = map(int, self.thing.cur_pos)
            ahead = (x + self.heading[0], y + self.heading[1])
            if self.is_free(ahead):
                self.move(ahead)
                return
            self.heading = (-self.heading[0], -self.heading[1])

    def words(self) -> str:
        """The task."""
        return "find the ball that rolls from wall to wall"


class PlantEnv(UnseenEnv):
    """A plant in front of the agent, grey, that is green `delay` steps after it is watered."""

    def furnish(self) -> None:
        """A plant within reach."""
        self.put(_Pot("grey"), self.cell(1, 0))

    def go_on(self) -> None:
        """It grows."""
        watered = self.thing.watered
        if watered is not None and self.clock == watered + self.delay:
            self.thing.color = "green"

    def words(self) -> str:
        """The task."""
        return f"water the plant and come back, it grows in {self.delay} steps"


class GuardEnv(UnseenEnv):
    """A guard, a purple ball, who walks round a beat of ten cells."""

    def furnish(self) -> None:
        """A guard on the beat."""
        ring = [(2, r) for r in (-1, 0, 1)] + [(3, 1), (4, 1)]
        ring += [(5, r) for r in (1, 0, -1)] + [(4, -1), (3, -1)]
        if self._rand_int(0, 2):
            ring = ring[::-1]
        self.beat = [self.cell(*place) for place in ring]
        self.at = int(self._rand_int(0, len(ring)))
        self.put(_Fixed("purple"), self.beat[self.at])

    def go_on(self) -> None:
        """The guard takes a step, unless somebody is in the way."""
        following = (self.at + 1) % len(self.beat)
        if self.is_free(self.beat[following]):
            self.at = following
            self.move(self.beat[following])

    def words(self) -> str:
        """The task."""
        return "find the guard who walks a beat"


UNSEEN_LEVELS = {
    "Egg": EggEnv,
    "Lamp": LampEnv,
    "Closing": ClosingEnv,
    "Rolling": RollingEnv,
    "Plant": PlantEnv,
    "Guard": GuardEnv,
}
"""Level -> its environment; gymnasium knows it as `BabyAI-{level}-v0`."""

for _name, _made in UNSEEN_LEVELS.items():
    gymnasium.register(id=f"BabyAI-{_name}-v0", entry_point=_made)
