"""The matrix of effects: minigrid's own rules, its floors, and cheats that must not pass."""

import numpy as np
import pytest

from eval.babyai.tiles import AGENT_TILE, FRONT_TILE, TILE_SIZE, draw_frame, sprites
from eval.babyai.truth import TrueWorld
from eval.world.effects import (
    DOORS,
    Case,
    Cell,
    evaluate_effects,
    evaluate_swaps,
    judge,
    make_cases,
    matrix,
)
from eval.world.worlds import Scene, open_world

SEED = 1_500_000


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return make_cases(2, SEED)


def truths(cases: list[Case]) -> np.ndarray:
    return np.stack([case.after.frame for case in cases])


def repeats(cases: list[Case]) -> np.ndarray:
    return np.stack([case.views[-1].frame for case in cases])


def expected(case: Case) -> tuple[str, str] | None:
    """Minigrid's rules by hand: what is ahead, and the agent's tile; None after a move."""
    cell, before = case.cell, case.views[-1]
    front = sprites()[before.sprites[FRONT_TILE]].name
    agent = sprites()[before.sprites[AGENT_TILE]].name
    held = agent.removeprefix("agent carrying ")
    is_thing = cell.ahead in ("ball", "box", "key")
    if cell.action in ("left", "right"):
        return None
    if cell.action == "forward" and cell.ahead in ("floor", "open door"):
        return None
    if cell.action == "pickup" and is_thing and cell.carried == "nothing":
        return "empty", f"agent carrying {front}"
    if cell.action == "drop" and cell.ahead == "floor" and cell.carried != "nothing":
        return held, "agent"
    if cell.action == "toggle" and cell.ahead == "box":
        return "empty", agent
    if cell.action == "toggle" and cell.ahead == "open door":
        return front.replace("open", "closed"), agent
    if cell.action == "toggle" and cell.ahead == "closed door":
        return front.replace("closed", "open"), agent
    if cell.action == "toggle" and cell.ahead == "locked door" and cell.carried == "right key":
        return front.replace("locked", "open"), agent
    return front, agent


def test_the_matrix_has_every_cell_that_is_possible_once() -> None:
    cells = matrix()
    assert len(cells) == len(set(cells)) == 7 * (5 * 4 + 3 * 5)
    assert Cell("toggle", "locked door", "right key") in cells
    assert Cell("toggle", "floor", "right key") not in cells


def test_each_cell_is_what_it_says_and_the_environment_does_what_minigrid_s_rules_say(
    cases: list[Case],
) -> None:
    assert {case.cell for case in cases} == set(matrix())
    for case in cases:
        before = case.views[-1]
        front, agent = (sprites()[before.sprites[tile]] for tile in (FRONT_TILE, AGENT_TILE))
        ahead = " ".join(w for w in (front.state, front.kind) if w).replace("empty", "floor")
        assert ahead == case.cell.ahead
        held = "nothing" if agent.carries is None else agent.carries.kind
        assert held == case.cell.carried.split()[-1]
        if case.cell.ahead in DOORS and "key" in case.cell.carried:
            assert agent.carries is not None
            assert (agent.carries.colour == front.colour) == (case.cell.carried == "right key")
        rule = expected(case)
        if rule is not None:
            after = case.after.sprites
            assert tuple(sprites()[after[t]].name for t in (FRONT_TILE, AGENT_TILE)) == rule
            assert case.decisive[FRONT_TILE]
            assert case.decisive[AGENT_TILE]
        elif case.cell.action == "forward":
            assert case.after.cell(AGENT_TILE) == before.cell(FRONT_TILE)


def test_frames_put_together_from_sprites_are_the_environment_s_own() -> None:
    world = TrueWorld("OpenDoor")
    for seed in range(SEED, SEED + 3):
        open_world(world, seed)
        for action in ("left", "forward", "toggle", "pickup", "right"):
            view = world.act(action)
            true = world.env.get_frame(tile_size=TILE_SIZE, agent_pov=True)
            assert np.array_equal(view.frame, true)
            assert np.array_equal(draw_frame(view.sprites), true)


def test_tasks_name_nothing_of_their_case_and_swapped_ones_do(cases: list[Case]) -> None:
    for case in cases:
        named = {case.cell.ahead.split()[-1], case.cell.carried.split()[-1]}
        assert not named & set(case.task.split())
        if case.cell.ahead in DOORS:
            front = sprites()[case.views[-1].sprites[FRONT_TILE]]
            assert case.swapped == f"open the {front.colour} door"


def test_rooms_are_as_they_were_after_each_case_so_that_order_does_not_matter(
    cases: list[Case],
) -> None:
    chosen = [cases[i].cell for i in (480, 6, 250)]
    for case in make_cases(2, SEED, chosen):
        twin = next(c for c in cases if (c.cell, c.seed) == (case.cell, case.seed))
        assert np.array_equal(case.after.frame, twin.after.frame)
        assert case.task == twin.task


def test_the_truth_scores_full_marks_in_every_cell(cases: list[Case]) -> None:
    section = evaluate_effects(cases, lambda scenes: truths(cases))
    assert all(row.value.value == 1 for row in section.rows)
    assert not section.failures


def test_a_repeated_frame_scores_its_floor_and_nothing_where_something_changes(
    cases: list[Case],
) -> None:
    rows = evaluate_effects(cases, lambda scenes: repeats(cases)).rows
    assert all(row.floor is not None and row.value.value == row.floor.value for row in rows)
    by_label = {row.label: row.value.value for row in rows}
    assert by_label["effects right: where something changes"] == 0
    assert by_label["effects right: where nothing changes"] == 1


def test_a_player_that_opens_no_door_is_seen_in_the_worst_cell(cases: list[Case]) -> None:
    def stubborn(case: Case) -> np.ndarray:
        opens = case.cell.action == "toggle" and case.cell.ahead == "closed door"
        return case.views[-1].frame if opens else case.after.frame

    section = evaluate_effects(cases, lambda scenes: np.stack([stubborn(c) for c in cases]))
    mean, worst = section.rows[0].value, section.rows[0].worst
    assert mean.value == pytest.approx(1 - 5 / 245)
    assert worst is not None
    assert worst[0].startswith("toggle / closed door")
    assert worst[1].value == 0


def test_only_determined_tiles_are_judged(cases: list[Case]) -> None:
    case = next(c for c in cases if c.cell.action == "toggle" and (~c.classes.determined).any())
    ids = case.after.sprites.copy()
    ids[~case.classes.determined] = 4
    assert judge(case, draw_frame(ids)).whole
    ids[FRONT_TILE] = 4 if case.after.sprites[FRONT_TILE] != 4 else 5
    assert not judge(case, draw_frame(ids)).decisive


def test_a_world_that_reads_the_task_is_found_out(cases: list[Case]) -> None:
    few = cases[::9]

    def blind(scenes: list[Scene]) -> np.ndarray:
        return truths(few)

    def reads(scenes: list[Scene]) -> np.ndarray:
        frames = truths(few)
        for frame, scene in zip(frames, scenes, strict=True):
            frame[-TILE_SIZE:, 24:32] = 0 if scene.task is None else frame[-TILE_SIZE:, 24:32]
        return frames

    assert [row.value.value for row in evaluate_swaps(few, blind).rows] == [0, 0]
    assert [row.value.value for row in evaluate_swaps(few, reads).rows] == [0, 1]


def test_no_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="cases=0 of a cell must be at least 1"):
        make_cases(0, SEED)
