"""Trips really lead back; the real environment scores 100 % on them, a frozen picture does not."""

import numpy as np
import pytest

from eval.babyai.truth import TrueWorld
from eval.memory.drift import Watcher
from eval.memory.returning import count_returns, section_of
from eval.memory.trips import KINDS, Traveller, Trip, make_trips
from eval.world.worlds import open_world

SEED = 1_900_000


@pytest.fixture(scope="module")
def trips() -> dict[str, list[Trip]]:
    return {kind: make_trips(kind, 3, SEED, 32) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_one_is_back_where_one_was_after_k_frames_at_most(
    trips: dict[str, list[Trip]], kind: str
) -> None:
    assert len(trips[kind]) == 3
    for trip in trips[kind]:
        assert 32 in trip.branches
        for k, branch in trip.branches.items():
            assert 0 < branch.start + len(branch.views) <= k
            assert branch.views[-1].cell((6, 3)) == trip.context[0].cell((6, 3))
            assert (branch.views[-1].cells == trip.context[0].cells).all()
            assert branch.mask.sum() >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_actions_of_trunk_and_branch_lead_the_environment_to_the_same_frame(
    trips: dict[str, list[Trip]], kind: str
) -> None:
    trip = trips[kind][0]
    world = TrueWorld(KINDS[kind][0])
    branch = trip.branches[32]
    open_world(world, trip.seed)
    for view in [*trip.context[1:], *trip.trunk[: branch.start], *branch.views]:
        assert view.action is not None
        last = world.act(view.action)
        assert (last.sprites == view.sprites).all()


def test_in_between_the_first_view_is_out_of_sight(trips: dict[str, list[Trip]]) -> None:
    for trip in trips["turn"]:
        first = {trip.context[0].cell(tile) for tile in np.ndindex(6, 7)}
        for view in trip.trunk[1:]:
            seen = {view.cell(tile) for tile in np.ndindex(6, 7) if view.visible[tile]}
            assert not seen & first
    for trip in trips["rooms"]:
        start = trip.context[0].cell((6, 3))
        assert all(view.cell((6, 3)) != start for view in trip.trunk)


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_environment_and_the_map_score_100_and_a_frozen_picture_less(
    trips: dict[str, list[Trip]], kind: str
) -> None:
    wanted = {k for trip in trips[kind] for k in trip.branches}
    frames = {
        k: np.stack([t.branches[k].views[-1].frame for t in trips[kind] if k in t.branches])
        for k in wanted
    }
    counts = count_returns(trips[kind], frames)
    for group in ("all", "objects"):
        for who in ("model", "map"):
            assert all(
                right == total for f in counts[f"{who}/{group}"].values() for right, total in f
            )
    away = np.stack([trip.trunk[-1].frame for trip in trips[kind]])
    frozen = count_returns(trips[kind], {32: away})["model/objects"]["32"]
    right, total = np.array(frozen).sum(0)
    assert right <= 0.5 * total
    words = section_of(kind, {"window": {"counts": counts}}).markdown()
    assert "| window: all, k = 32 |" in words
    assert "100.0 %" in words


def test_routes_are_the_shortest_and_do_not_leave_the_cells() -> None:
    traveller = Traveller(TrueWorld("GoToLocal"), SEED)
    x, y, facing = traveller.pose
    ahead = {0: (x + 1, y), 1: (x, y + 1), 2: (x - 1, y), 3: (x, y - 1)}[facing]
    assert traveller.route((*ahead, facing), {ahead}) == ["forward"]
    assert traveller.route((x, y, (facing + 2) % 4), set()) in (["left"] * 2, ["right"] * 2)
    assert traveller.route((*ahead, facing), set()) is None


@pytest.mark.parametrize("behaviour", ["random", "walker"])
def test_the_real_environment_never_drifts(behaviour: str) -> None:
    world, rng = TrueWorld("GoToRedBall"), np.random.default_rng(0)
    watcher = Watcher(open_world(world, SEED).frame)
    for _ in range(150):
        action = watcher.act(behaviour, rng)
        if action == "toggle":  # a box may hold what nobody saw
            action = "left"
        found = watcher.see(action, world.act(action).frame)
        assert found["legal"] == [49, 49]
        assert found["whole"] == [1, 1]
        assert found["map"][0] == found["map"][1]
        assert found["changed"] == [0, 1]


def test_a_dream_that_shows_another_room_is_caught() -> None:
    world, other = TrueWorld("GoToLocal"), TrueWorld("GoToLocal")
    watcher = Watcher(open_world(world, SEED).frame)
    found = watcher.see("done", open_world(other, SEED + 1).frame)
    assert found["map"][0] < found["map"][1]
    assert found["changed"][0] > 0


def test_an_unknown_trip_is_refused() -> None:
    with pytest.raises(ValueError, match="trip 'sail' is unknown; use one of turn, walk"):
        make_trips("sail", 1, SEED, 8)
