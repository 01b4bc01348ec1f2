"""Every action on everything, with hands full and empty, in rooms and under tasks of no concern.

The environment itself sets up each case (its state is edited) and says what happens then.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_NAMES, DIR_TO_VEC
from minigrid.core.world_object import Ball, Box, Door, Key, WorldObj
from tqdm import tqdm

from eval.babyai.tiles import AGENT_TILE, FRONT_TILE, read_frame
from eval.babyai.truth import ACTIONS, Knowledge, TileClasses, TrueWorld, View
from eval.findings import (
    Failure,
    Row,
    Section,
    cell_values,
    mean_of_cells,
    row_of_cells,
    row_of_tiles,
)
from eval.world.worlds import Drawer, Scene, open_world

DOORS = ("open door", "closed door", "locked door")
AHEAD = ("floor", "wall", "ball", "key", "box", *DOORS)
"""What may be ahead."""
CARRIED = ("nothing", "ball", "box", "key")
"""What may be carried, but that before a door the key is its own or another's."""
CARRIED_AT_DOORS = ("nothing", "ball", "box", "right key", "wrong key")
ROOMS = ("GoToRedBall", "GoToLocal", "PickupLoc", "OpenDoor")
"""Levels whose rooms are used; doors go into walls between rooms, so into the last one's."""
HOUSES = ("OpenDoor", "GoToObjMaze")
"""Levels with walls between rooms."""
Place = tuple[tuple[int, int], int]
"""Position and direction of the agent."""
_NEXT_ROOM = 10_000  # where a room has no such place, that of the seed so far on
_KINDS = {"ball": Ball, "box": Box, "key": Key}


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    action: str
    ahead: str
    carried: str

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.action} / {self.ahead} ahead / carrying {self.carried}"


@dataclass(frozen=True)
class Case:
    """An action in one state, and what the environment makes of it.

    Attributes:
        cell: Which cell of the matrix.
        level: Whose room it is.
        task: A mission of another episode, which names nothing of the case.
        swapped: A mission that names what the case is about, if it is about anything.
        views: What was seen before, one view or two.
        after: What the environment shows next.
        classes: Which of its tiles the context determines.
        seed: Of the environment, and of the noise.
    """

    cell: Cell
    level: str
    task: str
    swapped: str
    views: list[View]
    after: View
    classes: TileClasses
    seed: int

    @property
    def scene(self) -> Scene:
        """What the model is told."""
        return Scene(self.seed, self.task, self.views, self.cell.action)

    @property
    def decisive(self) -> np.ndarray:
        """`(7, 7)` bool: the agent's tile and the one ahead of it, where they are determined."""
        tiles = np.zeros_like(self.classes.determined)
        tiles[AGENT_TILE] = tiles[FRONT_TILE] = True
        return tiles & self.classes.determined

    @property
    def changes(self) -> bool:
        """Whether repeating the last frame would be wrong on a decisive tile."""
        before = self.views[-1]
        return bool((before.sprites != self.after.sprites)[self.decisive].any())


def matrix() -> list[Cell]:
    """Every cell that is possible."""
    return [
        Cell(action, ahead, carried)
        for action in ACTIONS
        for ahead in AHEAD
        for carried in (CARRIED_AT_DOORS if ahead in DOORS else CARRIED)
    ]


def make_cases(count: int, first_seed: int, cells: list[Cell] | None = None) -> list[Case]:
    """`count` cases of every cell; every other one has two frames of history."""
    if count < 1:
        raise ValueError(f"cases={count} of a cell must be at least 1; 20 is usual")
    numbered = {cell: number for number, cell in enumerate(matrix())}
    chosen = cells or matrix()
    cases = {}
    for index in tqdm(range(count), desc="effects: cases", leave=False):
        _room.cache_clear()
        for cell in chosen:
            case = _make_case(cell, first_seed + index, numbered[cell], history=bool(index % 2))
            cases[cell, index] = case
    return [cases[cell, index] for cell in chosen for index in range(count)]


@cache
def _room(level: str, seed: int, ground: str) -> tuple[TrueWorld, list[Place]]:
    """A room as it was at its beginning, and where something can be put on such ground."""
    world = TrueWorld(level)
    while True:
        open_world(world, seed)
        places = _places(world, ground)
        if places:
            return world, places
        seed += _NEXT_ROOM


@cache
def _missions() -> tuple[str, ...]:
    """Missions of all rooms' levels, of seeds above those of any case."""
    found = []
    for level in ROOMS:
        world = TrueWorld(level)
        for seed in range(1_990_000, 1_990_040):
            open_world(world, seed)
            found.append(world.mission)
    return tuple(sorted(set(found)))


def _make_case(cell: Cell, seed: int, number: int, *, history: bool) -> Case:
    rng = np.random.default_rng([seed, number])
    levels = HOUSES if cell.ahead in DOORS else ROOMS
    level = levels[seed // 2 % len(levels)]  # the history alternates beneath
    world, places = _room(level, seed, _ground(cell.ahead))
    missions = _missions()
    env: Any = world.env
    position, direction = places[rng.integers(len(places))]
    front = tuple(int(n) for n in np.add(position, DIR_TO_VEC[direction]))
    ground = env.grid.get(*front)
    colour = str(rng.choice(COLOR_NAMES))
    if cell.ahead not in ("floor", "wall"):
        thing: Any = _thing(cell.ahead, colour)
        thing.init_pos = thing.cur_pos = front
        env.grid.set(*front, thing)
    others = [name for name in COLOR_NAMES if name != colour]
    held = colour if cell.carried == "right key" else str(rng.choice(others))
    carried: Any = None
    if cell.carried != "nothing":
        carried = _thing(cell.carried.split()[-1], held)
        carried.cur_pos = np.array([-1, -1])
    env.carrying = carried
    env.agent_pos, env.agent_dir = np.array(position), direction
    views = []
    if history:
        turn = str(rng.choice(ACTIONS[:2]))
        env.agent_dir = (direction + (1 if turn == "left" else -1)) % 4
        views = [world.look()]
        views.append(world.act(turn))
    else:
        views = [world.look()]
    after = world.act(cell.action)
    env.grid.set(*front, ground)  # nothing else has changed: the room is as it was
    knowledge = Knowledge()
    for view in views:
        knowledge.see(view)
    named = {cell.ahead.split()[-1], cell.carried.split()[-1]}
    strange = [words for words in missions if not named & set(words.split())]
    return Case(
        cell=cell,
        level=level,
        task=str(rng.choice(strange)),
        swapped=_mission_of(cell, colour, held) or str(rng.choice(missions)),
        views=views,
        after=after,
        classes=knowledge.imagine(after),
        seed=seed,
    )


def _ground(ahead: str) -> str:
    """What has to be ahead before something is put there: floor, any wall, or one between rooms."""
    return "between rooms" if ahead in DOORS else "wall" if ahead == "wall" else "floor"


def _places(world: TrueWorld, ground: str) -> list[Place]:
    """Positions and directions from which such ground is ahead."""
    grid = world.env.grid
    found = []
    for x in range(1, grid.width - 1):
        for y in range(1, grid.height - 1):
            if grid.get(x, y) is not None:
                continue
            for direction, (dx, dy) in enumerate(DIR_TO_VEC):
                front = grid.get(x + dx, y + dy)
                fits = front is None if ground == "floor" else _is_wall(front)
                if fits and ground == "between rooms":
                    column, row = x + 2 * dx, y + 2 * dy
                    fits = 0 < column < grid.width and 0 < row < grid.height
                    fits = fits and grid.get(column, row) is None
                if fits:
                    found.append(((x, y), direction))
    return found


def _is_wall(cell: WorldObj | None) -> bool:
    return cell is not None and cell.type == "wall"


def _thing(words: str, colour: str) -> WorldObj:
    if words in DOORS:
        state = words.split()[0]
        return Door(colour, is_open=state == "open", is_locked=state == "locked")
    return _KINDS[words](colour)


def _mission_of(cell: Cell, colour: str, held: str) -> str | None:
    """A mission that names what is ahead, else what is carried."""
    if cell.ahead in DOORS:
        return f"open the {colour} door"
    if cell.ahead in _KINDS:
        return f"pick up the {colour} {cell.ahead}"
    if cell.carried != "nothing":
        return f"go to the {held} {cell.carried}"
    return None


@dataclass(frozen=True)
class Verdict:
    """What was right of one drawn frame.

    Attributes:
        decisive: Both the agent's tile and the one ahead.
        whole: Every determined tile.
        tiles: Determined tiles that are right, and all of them.
        wrong: `(7, 7)` bool.
    """

    decisive: bool
    whole: bool
    tiles: tuple[int, int]
    wrong: np.ndarray


def judge(case: Case, pixels: np.ndarray) -> Verdict:
    """Compares a drawn frame with the environment's."""
    determined = case.classes.determined
    wrong = (read_frame(pixels)[0] != case.after.sprites) & determined
    tiles = int(determined.sum())
    return Verdict(
        not (wrong & case.decisive).any(), not wrong.any(), (tiles - int(wrong.sum()), tiles), wrong
    )


def evaluate_effects(cases: list[Case], draw: Drawer) -> Section:
    """Draws what each action leads to, and compares."""
    drawn = draw([case.scene for case in cases])
    verdicts = [judge(case, pixels) for case, pixels in zip(cases, drawn, strict=True)]
    repeats = [judge(case, case.views[-1].frame) for case in cases]
    section = Section(
        "Effects: every action on everything, under tasks that have nothing to do with it",
        note=(
            "Decisive tiles: the agent's and the one ahead. A cell is one action, one thing ahead "
            "and one thing carried. The floor repeats the last frame."
        ),
    )

    def counts(chosen: list[bool], found: list[Verdict], figure: str) -> dict[str, list[bool]]:
        cells: dict[str, list[bool]] = defaultdict(list)
        for case, verdict, is_in in zip(cases, found, chosen, strict=True):
            if is_in:
                cells[case.cell.name].append(getattr(verdict, figure))
        return dict(cells)

    groups = {
        "all cells": [True] * len(cases),
        "where something changes": [case.changes for case in cases],
        "where nothing changes": [not case.changes for case in cases],
        "one frame of history": [len(case.views) == 1 for case in cases],
        "two frames of history": [len(case.views) == 2 for case in cases],
    }
    for group, chosen in groups.items():
        if any(chosen):
            found, floor = (counts(chosen, vs, "decisive") for vs in (verdicts, repeats))
            section.rows.append(row_of_cells(f"effects right: {group}", found, floor))
    for action in dict.fromkeys(case.cell.action for case in cases):
        chosen = [case.cell.action == action for case in cases]
        found, floor = (counts(chosen, vs, "decisive") for vs in (verdicts, repeats))
        section.rows.append(row_of_cells(f"effects right: {action}", found, floor))
    everything = [True] * len(cases)
    whole, floor = (counts(everything, vs, "whole") for vs in (verdicts, repeats))
    section.rows.append(row_of_cells("all determined tiles of the frame right", whole, floor))
    section.rows.append(
        row_of_tiles("determined tiles", [v.tiles for v in verdicts], [v.tiles for v in repeats])
    )
    section.cells["effects right"] = cell_values(counts(everything, verdicts, "decisive"))
    seen: set[Cell] = set()
    for case, pixels, verdict in zip(cases, drawn, verdicts, strict=True):
        if not verdict.decisive and case.cell not in seen:
            seen.add(case.cell)
            section.failures.append(
                Failure(
                    f"{case.cell.name}, in {case.level}, told: {case.task}",
                    [view.frame for view in case.views],
                    case.after.frame,
                    pixels,
                    verdict.wrong,
                    ~case.classes.determined,
                )
            )
    return section


def evaluate_swaps(cases: list[Case], draw: Drawer) -> Section:
    """Draws the same cases with the same noise under other tasks: no frame may change."""
    variants = {
        "its own": [case.scene for case in cases],
        "one that names what is ahead": [replace(c.scene, task=c.swapped) for c in cases],
        "none": [replace(c.scene, task=None) for c in cases],
    }
    drawn = {name: read_frame(draw(scenes))[0] for name, scenes in variants.items()}
    section = Section(
        "Task swapped: the same cases and noise, another task",
        note="Share of frames in which any determined tile differs from the one under its own "
        "task. The lower the better; the worst cell is the action that differs most.",
    )
    for name in list(variants)[1:]:
        differs = [
            bool((drawn[name][i] != drawn["its own"][i])[case.classes.determined].any())
            for i, case in enumerate(cases)
        ]
        actions: dict[str, list[bool]] = defaultdict(list)
        for case, different in zip(cases, differs, strict=True):
            actions[case.cell.action].append(different)
        worst = max(cell_values(actions).items(), key=lambda item: item[1].value)
        value = mean_of_cells({"all": differs})
        section.rows.append(Row(f"frames that differ: {name}", value, len(cases), worst=worst))
    return section
