"""Off screen: the real environment scores 100 %, static memory 0 where something has changed."""

from typing import Any

import numpy as np
import pytest

from eval.memory.trips import AWAY
from eval.memory.unseen import LEVELS, WATCHED, count_unseen, make_unseen, section_of

SEED = 1_950_000


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, dict[str, Any]]]:
    found = {}
    for level in LEVELS:
        trips = make_unseen(level, 4, SEED, 32)
        frames = {
            k: np.stack([trip.branches[k].views[-1].frame for trip in trips])
            for k in AWAY
            if k <= 32
        }
        for trip in trips:
            assert len(trip.context) == WATCHED + 1
            assert trip.task
            for k, branch in trip.branches.items():
                assert branch.start + len(branch.views) == k
                assert (branch.views[-1].cells == trip.context[-1].cells).all()
                for view in trip.trunk[1 : branch.start]:  # out of sight when one has turned
                    there = [view.cells[tile] for tile in np.ndindex(7, 7) if view.visible[tile]]
                    mine = branch.views[-1].cells[branch.mask]
                    assert not {tuple(c) for c in there} & {tuple(c) for c in mine}
        found[level] = {"truth": {"counts": count_unseen(trips, frames)}}
    return found


def shares(records: dict[str, Any], level: str, figure: str) -> tuple[int, int]:
    counts = records[level]["truth"]["counts"][figure].values()
    right, total = np.array([pair for found in counts for pair in found]).sum(0)
    return int(right), int(total)


@pytest.mark.parametrize("level", LEVELS)
def test_the_truth_is_right_and_static_memory_wrong_where_something_has_changed(
    records: dict[str, Any], level: str
) -> None:
    right, total = shares(records, level, "model/state")
    assert right == total > 0
    right, total = shares(records, level, "static/changed")
    assert right == 0
    assert total > 0
    assert shares(records, level, "static/state")[0] < shares(records, level, "model/state")[0]


def test_the_table_has_the_mean_of_the_levels(records: dict[str, Any]) -> None:
    words = section_of(records).markdown()
    assert "| truth, mean of 6 levels: state |" in words
    assert "| truth, mean of 6 levels: state where it has changed |" in words
