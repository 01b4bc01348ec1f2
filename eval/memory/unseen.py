"""Off screen: what goes on by itself while one looks away, against its state when last seen."""

from typing import Any

import numpy as np
from tqdm import tqdm

from data.babyai.unseen import UNSEEN_LEVELS
from eval.babyai.tiles import read_frame
from eval.babyai.truth import TrueWorld, View
from eval.findings import Row, Section, row_of_tiles
from eval.memory.returning import Counts, pairs
from eval.memory.trips import AWAY, Branch, Traveller, Trip
from eval.statistics import mean_of_estimates, wilson_interval

WATCHED = 8
"""Steps that one looks on before one turns away."""
_BACK = ("right", "right")


def make_unseen(level: str, count: int, first_seed: int, longest: int) -> list[Trip]:
    """One looks on, turns away, and back after k frames; the masks are where the thing is and was.

    Args:
        level: Key of `UNSEEN_LEVELS`.
        count: Of trips.
        first_seed: Of the environment.
        longest: Largest k.
    """
    world = TrueWorld(level)
    seeds = range(first_seed, first_seed + count)
    return [_trip(world, seed, longest) for seed in tqdm(seeds, desc=level, leave=False)]


def _trip(world: TrueWorld, seed: int, longest: int) -> Trip:
    traveller = Traveller(world, seed)
    task = world.mission
    traveller.act("toggle" if world.level == "Plant" else "done", *["done"] * (WATCHED - 1))
    told, last = len(traveller.views), _place(world)
    branches = {}
    for step in range(longest - 1):
        k = step + len(_BACK)
        if k in AWAY:
            moment, views = world.snapshot(), list(traveller.views)
            traveller.act(*_BACK)
            branch = traveller.views[told + step :]
            where = np.zeros_like(branch[-1].visible)
            for cell in {last, _place(world)}:
                where |= _tiles_at(branch[-1], cell)
            branches[k] = Branch(step, branch, where & branch[-1].visible)
            world.restore(moment)
            traveller.views = views
        traveller.act("left" if step < len(_BACK) else "done")
    context, trunk = traveller.views[:told], traveller.views[told:]
    longest_start = max(branch.start for branch in branches.values())
    name = f"{world.level}/{seed}"
    return Trip(name, seed, context, trunk[:longest_start], branches, task)


def _place(world: TrueWorld) -> tuple[int, int]:
    """The cell of what changes."""
    env: Any = world.env
    x, y = env.thing.cur_pos
    return int(x), int(y)


def _tiles_at(view: View, cell: tuple[int, int]) -> np.ndarray:
    return (view.cells == np.array(cell)).all(-1)


def count_unseen(trips: list[Trip], frames: dict[int, np.ndarray]) -> Counts:
    """Tiles of what changes: all of them, and those that are not as they were when last seen."""
    counts: Counts = {}
    for k, drawn in frames.items():
        for trip, ids in zip(trips, read_frame(drawn)[0], strict=True):
            branch = trip.branches[k]
            truth, static = branch.views[-1].sprites, trip.context[-1].sprites
            for group, mask in (
                ("state", branch.mask),
                ("changed", branch.mask & (truth != static)),
            ):
                for who, guess in (("model", ids), ("static", static)):
                    found = [int((guess == truth)[mask].sum()), int(mask.sum())]
                    counts.setdefault(f"{who}/{group}", {}).setdefault(str(k), []).append(found)
    return counts


def section_of(records: dict[str, dict[str, dict[str, Any]]]) -> Section:
    """The table: level -> memory -> what was counted."""
    section = Section(
        "Off screen: what goes on while one looks away",
        note="Tiles of what changes, where it is and where it was, when they are seen again. The "
        "floor, static memory, draws what was last seen: always wrong where that has changed. No "
        "embedded model was trained on these levels.",
    )
    for group, words in (("state", "state"), ("changed", "state where it has changed")):
        for memory in next(iter(records.values())):
            values, floors = {}, {}
            for level in records:
                counts = records[level][memory]["counts"]
                model, static = (
                    [pair for found in counts[f"{who}/{group}"].values() for pair in pairs(found)]
                    for who in ("model", "static")
                )
                if not sum(total for _, total in model):
                    continue
                by_away = {
                    f"k = {k}": wilson_interval(*map(sum, zip(*pairs(found), strict=True)))
                    for k, found in counts[f"model/{group}"].items()
                    if sum(total for _, total in found)
                }
                worst = min(by_away.items(), key=lambda item: item[1].value)
                row = row_of_tiles(f"{memory}, {level}: {words}", model, static, worst)
                values[level], floors[level] = row, row.floor
                section.rows.append(row)
            if values:
                mean = mean_of_estimates([row.value for row in values.values()])
                floor = mean_of_estimates([f for f in floors.values() if f is not None])
                worst = min(values.items(), key=lambda item: item[1].value.value)
                count = sum(row.count for row in values.values())
                label = f"{memory}, mean of {len(values)} levels: {words}"
                section.rows.append(Row(label, mean, count, floor, (worst[0], worst[1].value)))
    return section


LEVELS = tuple(UNSEEN_LEVELS)
