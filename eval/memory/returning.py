"""Return and loop: what the last frame of a trip shows, against what is truly there."""

from typing import Any

import numpy as np

from eval.babyai.tiles import EMPTY, read_frame, sprites
from eval.findings import Section, row_of_tiles
from eval.memory.trips import AWAY, Trip, remembered
from eval.statistics import Estimate, wilson_interval

GROUPS: dict[str, tuple[str, ...] | None] = {"all": None, "objects": ("ball", "box", "key")}
FLOORS = ("map", "repeat", "forget")
TITLES = {
    "turn": "Return, one room: turned away, waited, turned back",
    "walk": "Return, one room: walked about on what was seen, and back",
    "rooms": "Return, two rooms: away in the second, and back through the door",
    "circle": "Loop: laps of a rectangle, back where they began",
}
NOTE = (
    "Tiles of the returned view that the context determines. Floors: *map* is odometry and each "
    "cell as it was last seen; *repeat* the last true frame; *forget* bare floor. The table shows "
    "the best of them."
)

Counts = dict[str, dict[str, list[list[int]]]]
"""Who, and which tiles (as "model/all") -> k -> right and all of each trip."""


def count_returns(trips: list[Trip], frames: dict[int, np.ndarray]) -> Counts:
    """Counts the tiles of returned frames, and those of the floors.

    Args:
        trips: All of them.
        frames: k -> a frame of each trip that has a branch for k, in order.
    """
    counts: Counts = {}
    kinds = np.array([sprite.kind for sprite in sprites()])
    for k, drawn in frames.items():
        chosen = [trip for trip in trips if k in trip.branches]
        for trip, ids in zip(chosen, read_frame(drawn)[0], strict=True):
            branch = trip.branches[k]
            truth = branch.views[-1].sprites
            guesses = {
                "model": ids,
                "map": remembered(trip, k),
                "repeat": trip.context[-1].sprites,
                "forget": np.full_like(truth, EMPTY),
            }
            for group, members in GROUPS.items():
                mask = branch.mask
                mask = mask if members is None else mask & np.isin(kinds[truth], members)
                for who, guess in guesses.items():
                    found = [int((guess == truth)[mask].sum()), int(mask.sum())]
                    counts.setdefault(f"{who}/{group}", {}).setdefault(str(k), []).append(found)
    return counts


def shown_frames(
    trips: list[Trip], frames: dict[int, np.ndarray], count: int
) -> list[dict[str, Any]]:
    """The first trips to look at: what was seen at first, and the drawn returns by k."""
    shown = []
    for trip in trips[:count]:
        drawn = {}
        for k in sorted(trip.branches):
            place = [t.name for t in trips if k in t.branches].index(trip.name)
            drawn[str(k)] = frames[k][place].tolist()
        shown.append({"name": trip.name, "seen": trip.context[0].frame.tolist(), "drawn": drawn})
    return shown


def lines_of(counts: Counts, figure: str) -> list[tuple[int, Estimate]]:
    """A curve over k: share of tiles with its interval over trips."""
    found = counts.get(figure, {})
    return [
        (k, row_of_tiles("", pairs(found[str(k)])).value)
        for k in AWAY
        if str(k) in found and sum(total for _, total in found[str(k)])
    ]


def pairs(found: list[list[int]]) -> list[tuple[int, int]]:
    """Right and all of each trip."""
    return [(right, total) for right, total in found]


def section_of(kind: str, records: dict[str, dict[str, Any]]) -> Section:
    """The table of one kind of trip, memories side by side.

    Args:
        kind: Of the trips.
        records: Memory -> what was counted.
    """
    section = Section(TITLES[kind], note=NOTE)
    for group in GROUPS:
        for memory, record in records.items():
            counts: Counts = record["counts"]
            for k, _ in lines_of(counts, f"model/{group}"):
                found = {who: pairs(counts[f"{who}/{group}"][str(k)]) for who in FLOORS}
                model = pairs(counts[f"model/{group}"][str(k)])
                shares = {
                    f"trip {i}": wilson_interval(right, total)
                    for i, (right, total) in enumerate(model)
                    if total
                }
                worst = min(shares.items(), key=lambda item: item[1].value)
                floor = max(found.values(), key=lambda f: row_of_tiles("", f).value.value)
                label = f"{memory}: {group}, k = {k}"
                section.rows.append(row_of_tiles(label, model, floor, worst))
    for who in FLOORS:
        for group in GROUPS:
            line = lines_of(next(iter(records.values()))["counts"], f"{who}/{group}")
            told = ", ".join(f"{k}: {100 * value.value:.0f} %" for k, value in line)
            section.words.append(f"{who}, {group}: {told}")
    return section
