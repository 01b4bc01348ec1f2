"""Levels of our own: what BabyAI's levels show too seldom to be learned from them."""

from typing import Any

import gymnasium
import numpy as np
from minigrid.core.world_object import Ball, Box, Door, Key
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import ObjDesc, PickupInstr

CLUTTER = "Clutter"
"""A level of our own to learn memory from, see `ClutterEnv`; whoever is in it wanders about."""
WORKSHOP = "Workshop"
"""A level of our own to learn effects from, see `WorkshopEnv`; whoever is in it handles things."""


class ClutterEnv(RoomGridLevel):
    """One room whose cells are strewn with things, most of which one can walk on and look past.

    In BabyAI's levels nearly all that comes into view again is bare floor, which needs no memory
    to be drawn well. Here almost every cell says where it is: open doors of six colours stand
    about, balls, boxes and keys between them, more or fewer by the seed.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(num_rows=1, num_cols=1, room_size=8, **kwargs)

    def gen_mission(self) -> None:
        """Strews the room, and asks for one of its objects."""
        self.place_agent()
        goal = self.add_distractors(num_distractors=1)[0]
        filled, portable = self._rand_float(0.3, 0.95), self._rand_float(0.1, 0.5)
        for column in range(1, self.width - 1):
            for row in range(1, self.height - 1):
                is_taken = self.grid.get(column, row) or (column, row) == tuple(self.agent_pos)
                if is_taken or self._rand_float(0, 1) > filled:
                    continue
                colour = self._rand_color()
                if self._rand_float(0, 1) < portable:
                    cell = self._rand_elem((Ball, Box, Key))(colour)
                else:
                    cell = Door(colour, is_open=True)
                self.put_obj(cell, column, row)
        self.instrs = PickupInstr(ObjDesc(goal.type, goal.color))


gymnasium.register(id=f"BabyAI-{CLUTTER}-v0", entry_point=ClutterEnv)


class WorkshopEnv(RoomGridLevel):
    """One room with everything that can be handled, in every state, and hands full or empty.

    In BabyAI's levels an effect is shown mostly where the task wants it: doors that open, but none
    that is open already, none that is locked, and hands that are empty. Here doors of all three
    states stand about, with balls, boxes and keys; every other episode begins with something in
    the agent's hands, and often it is the key of a door that is there.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(num_rows=1, num_cols=1, room_size=8, **kwargs)

    def gen_mission(self) -> None:
        """Furnishes the room, and asks for one of its objects."""
        self.place_agent()
        goal = self.add_distractors(num_distractors=1)[0]
        filled = self._rand_float(0.1, 0.6)
        for column in range(1, self.width - 1):
            for row in range(1, self.height - 1):
                is_taken = self.grid.get(column, row) or (column, row) == tuple(self.agent_pos)
                if is_taken or self._rand_float(0, 1) > filled:
                    continue
                colour = self._rand_color()
                if self._rand_float(0, 1) < 0.5:
                    cell = self._rand_elem((Ball, Box, Key))(colour)
                else:
                    state = self._rand_elem(("open", "closed", "closed", "locked"))
                    cell = Door(colour, is_open=state == "open", is_locked=state == "locked")
                self.put_obj(cell, column, row)
        self.instrs = PickupInstr(ObjDesc(goal.type, goal.color))

    def reset(self, **kwargs: Any) -> Any:
        """A new room, and perhaps something in the agent's hands."""
        observation, info = super().reset(**kwargs)
        if self._rand_float(0, 1) < 0.5:
            return observation, info
        doors = [cell for cell in self.grid.grid if cell is not None and cell.type == "door"]
        colour = self._rand_color()
        if doors and self._rand_float(0, 1) < 0.5:
            held: Any = Key(self._rand_elem(doors).color)
        else:
            held = self._rand_elem((Ball, Box, Key))(colour)
        held.cur_pos = np.array([-1, -1])
        self.carrying = held
        return self.gen_obs(), info


gymnasium.register(id=f"BabyAI-{WORKSHOP}-v0", entry_point=WorkshopEnv)
