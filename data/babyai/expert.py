"""The BabyAI bot as expert."""

from typing import Any

import numpy as np
from minigrid.core.constants import IDX_TO_OBJECT
from minigrid.utils.baby_ai_bot import (
    BabyAIBot,
    CloseSubgoal,
    DisappearedBoxError,
    DropSubgoal,
    ExploreSubgoal,
    GoNextToSubgoal,
    OpenSubgoal,
    PickupSubgoal,
)

from data.babyai.views import ACTIONS, AGENT, DOOR, PORTABLE, UNSEEN, VIEW_SIZE
from data.babyai.words import place_of

MAX_REPLANS = 200


class StuckError(Exception):
    """The bot replans without end."""


class Expert(BabyAIBot):
    """The BabyAI bot, fed with the view it would compute again, and guarded against endless plans.

    Args:
        env: The unwrapped environment, just reset.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.view = np.zeros((VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
        self.target: tuple[int, int] | None = None
        self.failed = False

    def suggest(self, view: np.ndarray, previous: int | None) -> tuple[str | None, str | None]:
        """Name the action to take now.

        Args:
            view: The environment's current `obs["image"]`.
            previous: The action taken since the last call, None at the start.

        Returns:
            The action and the subgoal behind it in words; (None, None) once the bot has failed
            (it cannot go on after a box was opened, for example).
        """
        if self.failed:
            return None, None
        self.view = view
        self.bfs_counter = 0
        try:
            action = self.replan(previous)
            return ACTIONS[int(action)], self._thought()
        except (
            DisappearedBoxError,
            StuckError,
            AssertionError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ):
            self.failed = True
            return None, None

    def replan(self, action_taken: int | None = None) -> int:
        """Replan as the bot does, but raise StuckError instead of looping for ever."""
        self._process_obs()
        self._check_erroneous_box_opening(action_taken)
        for subgoal in self.stack:
            subgoal.update_agent_attributes()
        if self.stack:
            self.stack[-1].replan_after_action(action_taken)
        while self.stack and self.stack[-1].is_exploratory():
            self.stack.pop()
        action = None
        for _ in range(MAX_REPLANS):
            if not self.stack:
                action = self.mission.actions.done
                break
            action = self.stack[-1].replan_before_action()
            if action is not None:
                break
        else:
            raise StuckError(f"no action after {MAX_REPLANS} changes of plan")
        self._remember_current_state()
        return action

    def _process_obs(self) -> None:
        env = self.mission
        seen = np.argwhere(self.view[..., 0] != UNSEEN)
        top_left = env.agent_pos + env.dir_vec * (VIEW_SIZE - 1) - env.right_vec * (VIEW_SIZE // 2)
        cells = top_left - seen[:, 1:] * env.dir_vec + seen[:, :1] * env.right_vec
        inside = ((cells >= 0) & (cells < self.vis_mask.shape)).all(axis=1)
        self.vis_mask[tuple(cells[inside].T)] = True

    def _find_obj_pos(self, obj_desc: Any, adjacent: bool = False) -> Any:
        """Find the nearest object as the bot does, and remember where it is."""
        found = super()._find_obj_pos(obj_desc, adjacent)
        self.target = found[1]
        return found

    def _thought(self) -> str:
        """Put the subgoal on top of the stack into a few words, with its place if it is in view."""
        if not self.stack:
            return "done"
        goal = self.stack[-1]
        front = self.mission.grid.get(*self.mission.front_pos)
        match goal:
            case GoNextToSubgoal(reason="Explore") | ExploreSubgoal():
                return "explore"
            case OpenSubgoal() if front is not None:
                return f"open the {front.color} {front.type}"
            case CloseSubgoal() if front is not None:
                return f"close the {front.color} {front.type}"
            case PickupSubgoal() if front is not None:
                return f"pick up the {front.color} {front.type}"
            case DropSubgoal() if self.mission.carrying is not None:
                return f"drop the {self.mission.carrying.color} {self.mission.carrying.type}"
            case GoNextToSubgoal():
                return self._destination(goal)
        return "done"

    def _destination(self, goal: GoNextToSubgoal) -> str:
        datum: Any = goal.datum
        next_to = "next to " if goal.reason == "PutNext" else ""
        place: Any = getattr(datum, "cur_pos", self.target)
        if not hasattr(datum, "type"):
            place = column, row = tuple(int(value) for value in datum)
            datum = self.mission.grid.get(column, row)
            if datum is None or datum.type == "wall":
                below = self.stack[-2] if len(self.stack) > 1 else None
                return "go to a free cell" if isinstance(below, DropSubgoal) else "go back"
        words = [word for word in (datum.color, datum.type or "object") if word]
        thought = f"go {next_to or 'to '}the {' '.join(words)}"
        return f"{thought} {self._place_in_view(place, datum.type)}".rstrip()

    def _place_in_view(self, place: Any, kind: str | None) -> str:
        """Say where a cell of the world lies in the view; nothing if it is not to be seen there."""
        if place is None:
            return ""
        env = self.mission
        offset = np.asarray(place) - env.agent_pos
        ahead, right = int(offset @ env.dir_vec), int(offset @ env.right_vec)
        column, row = AGENT[0] + right, AGENT[1] - ahead
        if not (0 <= column < VIEW_SIZE and 0 <= row < VIEW_SIZE) or (column, row) == AGENT:
            return ""
        seen = int(self.view[column, row, 0])
        is_there = seen in (*PORTABLE, DOOR) and kind in (None, IDX_TO_OBJECT[seen])
        return place_of(ahead, right) if is_there else ""
