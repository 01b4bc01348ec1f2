"""BabyAI episodes: the real environment, the BabyAI bot as expert, words from the true state."""

import contextlib
import functools
import io
import math
import zlib
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, IDX_TO_COLOR, IDX_TO_OBJECT, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Key, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import ObjDesc, PickupInstr
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

from data.episode import EpisodeRecord, SegmentRecord, encode_png
from data.outcomes import OutcomeRule

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
"""Action names in the order of minigrid's integer actions."""

BEHAVIOURS = {"expert": 0.55, "noisy": 0.35, "random": 0.10}
"""Who acts in an episode, with its share."""

CLUTTER = "Clutter"
"""A level of our own to learn memory from, see `ClutterEnv`; whoever is in it wanders about."""

OUTCOME = "reward>0"
"""A mission that is fulfilled is rewarded, and nothing else is."""

EVALUATION_SEEDS = 1_000_000
"""Environment seeds from here on are never trained on."""

VIEW_SIZE = 7
TILE_SIZE = 8
MAX_NOISY_STEPS = 24
MAX_RANDOM_STEPS = 20
MAX_WANDER_STEPS = 24
NOISE_RANGE = (0.1, 0.5)
HANDLE_SHARE = 0.3
THOUGHT_SHARE = 0.6
CAPTION_SHARE = 0.5
MAX_CAPTION_OBJECTS = 3
MAX_REPLANS = 200

_AGENT = (VIEW_SIZE // 2, VIEW_SIZE - 1)
_FRONT = (VIEW_SIZE // 2, VIEW_SIZE - 2)
_NUM_STATES = 3
_DOOR_STATES = ("open", "closed", "locked")
_UNSEEN, _EMPTY = OBJECT_TO_IDX["unseen"], OBJECT_TO_IDX["empty"]
_DOOR, _BOX = OBJECT_TO_IDX["door"], OBJECT_TO_IDX["box"]
_PORTABLE = (OBJECT_TO_IDX["ball"], _BOX, OBJECT_TO_IDX["key"])


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


@functools.cache
def tile_table() -> np.ndarray:
    """Return the sprites of every cell as seen by the agent.

    Returns:
        uint8 (2, codes, TILE_SIZE, TILE_SIZE, 3): ordinary cells, then cells with the agent on
        top; the code of a cell is (type * colours + colour) * states + state.
    """
    num_types = max(OBJECT_TO_IDX.values()) + 1
    shape = (2, num_types, len(COLOR_TO_IDX), _NUM_STATES, TILE_SIZE, TILE_SIZE, 3)
    table = np.zeros(shape, np.uint8)
    for kind in range(num_types):
        if IDX_TO_OBJECT[kind] == "agent":
            continue
        for colour in range(len(COLOR_TO_IDX)):
            for state in range(_NUM_STATES):
                cell = WorldObj.decode(kind, colour, state)
                for agent in (False, True):
                    table[int(agent), kind, colour, state] = Grid.render_tile(
                        cell,
                        agent_dir=3 if agent else None,
                        highlight=kind != _UNSEEN,
                        tile_size=TILE_SIZE,
                    )
    return table.reshape(2, -1, TILE_SIZE, TILE_SIZE, 3)


def render_view(view: np.ndarray) -> np.ndarray:
    """Draw the agent's view, bit-equal to minigrid's RGBImgPartialObsWrapper(tile_size=8).

    Args:
        view: uint8 (7, 7, 3), the environment's `obs["image"]`: columns, rows, (type, colour,
            state), the agent at column 3 of row 6.

    Returns:
        uint8 frame (56, 56, 3).
    """
    cells = view.astype(np.int64)
    codes = (cells[..., 0] * len(COLOR_TO_IDX) + cells[..., 1]) * _NUM_STATES + cells[..., 2]
    table = tile_table()
    tiles = table[0, codes]
    tiles[_AGENT] = table[1, codes[_AGENT]]
    size = VIEW_SIZE * TILE_SIZE
    return np.ascontiguousarray(tiles.transpose(1, 2, 0, 3, 4)).reshape(size, size, 3)


def _name_of(cell: np.ndarray) -> str:
    kind, colour, state = (int(value) for value in cell)
    name = f"{IDX_TO_COLOR[colour]} {IDX_TO_OBJECT[kind]}"
    if kind == _DOOR:
        name = f"{_DOOR_STATES[state]} {name}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _place(ahead: int, right: int) -> str:
    where = [f"{ahead} ahead"] if ahead else []
    if right:
        where.append(f"{abs(right)} {'right' if right > 0 else 'left'}")
    return " and ".join(where)


def caption_of(view: np.ndarray) -> str:
    """Describe the agent's view: up to three nearest objects, and what the agent carries.

    Objects are balls, boxes, keys and doors, nearest first (Manhattan distance, then fewer rows
    ahead, then from left to right).

    Args:
        view: uint8 (7, 7, 3) as in `render_view`.

    Returns:
        Words such as "i see a red ball 2 ahead and 1 left, a closed grey door 3 ahead".
    """
    seen = []
    for column, row in np.argwhere(np.isin(view[..., 0], (*_PORTABLE, _DOOR))):
        if (column, row) != _AGENT:
            ahead, right = _AGENT[1] - int(row), int(column) - _AGENT[0]
            seen.append((ahead + abs(right), ahead, right))
    phrases = []
    for _, ahead, right in sorted(seen)[:MAX_CAPTION_OBJECTS]:
        name = _name_of(view[_AGENT[0] + right, _AGENT[1] - ahead])
        phrases.append(f"{name} {_place(ahead, right)}")
    caption = "i see " + (", ".join(phrases) or "nothing")
    carried = view[_AGENT]
    if carried[0] in _PORTABLE:
        caption += f", carrying {_name_of(carried)}"
    return caption


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
        seen = np.argwhere(self.view[..., 0] != _UNSEEN)
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
        column, row = _AGENT[0] + right, _AGENT[1] - ahead
        if not (0 <= column < VIEW_SIZE and 0 <= row < VIEW_SIZE) or (column, row) == _AGENT:
            return ""
        seen = int(self.view[column, row, 0])
        is_there = seen in (*_PORTABLE, _DOOR) and kind in (None, IDX_TO_OBJECT[seen])
        return _place(ahead, right) if is_there else ""


def _is_free(cell: np.ndarray) -> bool:
    return cell[0] == _EMPTY or (cell[0] == _DOOR and cell[2] == 0)


def random_action(view: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an action, rare ones with a raised probability where they have an effect.

    Args:
        view: uint8 (7, 7, 3) as in `render_view`.
        rng: Source of randomness.

    Returns:
        The action's index in `ACTIONS`.
    """
    front, carried = view[_FRONT], view[_AGENT]
    carries = carried[0] in _PORTABLE
    # left, right, forward, pickup, drop, toggle, done
    weights = np.array([1.0, 1.0, 2.0 if _is_free(front) else 0.5, 0.1, 0.1, 0.1, 0.05])
    if front[0] in _PORTABLE:
        weights[3] = 0.5 if carries else 2.5
        weights[5] = 0.4 if front[0] == _BOX else 0.15
    if front[0] == _DOOR:
        weights[5] = 2.0
    if carries:
        weights[4] = 1.2 if front[0] == _EMPTY else 0.3
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
        carries = view[_AGENT][0] in _PORTABLE
        if (carries or view[_FRONT][0] in _PORTABLE) and self.rng.random() < HANDLE_SHARE:
            return ACTIONS.index(self.rng.choice(["toggle", "drop" if carries else "pickup"]))
        if not self.plan:
            turn, turns, steps = self.rng.integers((0, 1, 1), (2, 6, 4))
            self.plan = [ACTIONS[turn]] * turns + ["forward"] * steps
        if self.plan[0] == "forward" and not _is_free(view[_FRONT]) and self.rng.random() < 0.7:
            self.plan = []
            return self.act(view)
        return ACTIONS.index(self.plan.pop(0))


@dataclass
class Recorder:
    """Records episodes of one BabyAI level.

    Args:
        level: For example "GoToRedBall" (minigrid's "BabyAI-GoToRedBall-v0").
    """

    level: str

    def __post_init__(self) -> None:
        name = f"BabyAI-{self.level}-v0"
        if name not in gymnasium.registry:
            known = sorted(key[7:-3] for key in gymnasium.registry if key.startswith("BabyAI-"))
            raise ValueError(f"level {self.level!r} is unknown; use one of {', '.join(known)}")
        self.env: Any = gymnasium.make(name, disable_env_checker=True).unwrapped

    def record(self, seed: int) -> EpisodeRecord:
        """Record the episode of an environment seed: the same for the same level and seed."""
        # The environment prints when it rejects a random layout.
        with contextlib.redirect_stdout(io.StringIO()):
            view = self.env.reset(seed=seed)[0]["image"]
        rng = np.random.default_rng([seed, zlib.crc32(self.level.encode())])
        behaviour = str(rng.choice(list(BEHAVIOURS), p=list(BEHAVIOURS.values())))
        noise = {"expert": 0.0, "noisy": rng.uniform(*NOISE_RANGE), "random": 1.0}[behaviour]
        limit = {
            "expert": self.env.max_steps,
            "noisy": MAX_NOISY_STEPS,
            "random": MAX_RANDOM_STEPS,
        }[behaviour]
        expert = Expert(self.env)
        wanderer = Wanderer(rng) if self.level == CLUTTER else None
        if wanderer:
            behaviour, limit = "wander", MAX_WANDER_STEPS

        segments = [
            SegmentRecord(kind="text", role="task", text=self.env.mission),
            _frame(view, "ongoing", rng),
        ]
        previous = None
        judge = OutcomeRule(OUTCOME).begin(self.env)
        for _ in range(limit):
            target, thought = expert.suggest(view, previous) if not wanderer else (None, None)
            speaks, deviates = rng.random() < THOUGHT_SHARE, rng.random() < noise
            if target is None and behaviour == "expert":
                break
            if thought is not None and speaks:
                segments.append(SegmentRecord(kind="text", role="agent", text=thought))
            if wanderer:
                action = wanderer.act(view)
            elif target is None or deviates:
                action = random_action(view, rng)
            else:
                action = ACTIONS.index(target)
            before = self.env.agent_pos, self.env.agent_dir
            observation, reward, terminated, truncated, _ = self.env.step(action)
            view = observation["image"]
            ended = terminated or truncated
            outcome = judge(float(reward), terminated, truncated, {})
            segments.append(
                SegmentRecord(
                    kind="action",
                    role="agent",
                    action=ACTIONS[action],
                    target=target,
                    weight=float(target is not None),
                    motion=self._motion(*before),
                )
            )
            segments.append(_frame(view, outcome, rng))
            previous = action
            if ended:
                break
        return EpisodeRecord(
            id=f"babyai/{self.level}/{seed}",
            source="babyai",
            level=self.level,
            seed=seed,
            behaviour=behaviour,
            segments=segments,
        )

    def _motion(self, position: Any, direction: int) -> tuple[float, float, float]:
        """What led here from a position and direction: turn, then tiles ahead and to the right."""
        env = self.env
        quarters = (env.agent_dir - direction + 1) % 4 - 1
        moved = np.subtract(env.agent_pos, position)
        return (
            float(quarters * math.pi / 2),
            float(moved @ env.dir_vec),
            float(moved @ env.right_vec),
        )


def _frame(view: np.ndarray, outcome: str | None, rng: np.random.Generator) -> SegmentRecord:
    caption = caption_of(view) if rng.random() < CAPTION_SHARE else None
    return SegmentRecord(
        kind="frame",
        role="world",
        frame=encode_png(render_view(view)),
        caption=caption,
        outcome=outcome,
    )
