"""Open loop: the truth, the map of seen cells, and errors that begin at a known frame."""

import numpy as np
import pytest

from eval.babyai.tiles import draw_frame
from eval.world.openloop import LOOK, Loop, evaluate_loops, make_loops, mapped_frame

SEED = 1_500_000


@pytest.fixture(scope="module")
def loops() -> list[Loop]:
    return [*make_loops("handler", 4, SEED, 16), *make_loops("expert", 2, SEED, 16)]


def truths(loops: list[Loop]) -> np.ndarray:
    return np.stack([[view.frame for view in loop.views] for loop in loops])


def test_loops_look_about_first_and_go_on_to_the_end(loops: list[Loop]) -> None:
    for loop in loops:
        assert [view.action for view in loop.context] == [None, *LOOK]
        assert np.array_equal(loop.context[0].frame, loop.context[-1].frame)
        assert len(loop.views) == len(loop.classes) == 16
        assert all(view.outcome == "ongoing" for view in loop.views)


def test_the_expert_moves_and_handles_things_for_as_long_as_it_is_watched() -> None:
    (loop,) = make_loops("expert", 1, SEED, 64)
    actions = [view.action for view in loop.views]
    assert {"forward", "left", "right", "pickup"} <= set(actions)
    assert loop.classes[-1].determined.any()


def test_the_truth_scores_full_marks_at_every_frame(loops: list[Loop]) -> None:
    rows = evaluate_loops(loops, truths).rows
    assert all(row.value.value == 1 for row in rows[:-1])
    assert rows[-1].value.value == 17  # never wrong


def test_the_first_wrong_frame_is_found(loops: list[Loop]) -> None:
    def late(loops: list[Loop]) -> np.ndarray:
        frames = truths(loops)
        for number, loop in enumerate(loops):
            row, column = np.argwhere(loop.classes[6].determined)[0]
            tile = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
            frames[number, 6][tile] = 255 - frames[number, 6][tile]
        return frames

    section = evaluate_loops(loops, late)
    assert section.rows[-1].value.value == 7
    assert section.words


def test_the_map_is_the_floor_where_a_map_is_drawn(loops: list[Loop]) -> None:
    def draw(loops: list[Loop]) -> np.ndarray:
        return np.stack([[draw_frame(mapped_frame(x, i)) for i in range(16)] for x in loops])

    rows = evaluate_loops(loops, draw).rows[:-1]
    assert all(row.floor is not None and row.value.value == row.floor.value for row in rows)


def test_a_map_is_right_as_long_as_nothing_is_handled() -> None:
    for loop in make_loops("handler", 6, SEED, 8):
        for step, (view, tiles) in enumerate(zip(loop.views, loop.classes, strict=True)):
            if view.action not in ("left", "right", "forward", "done"):
                break
            right = mapped_frame(loop, step) == view.sprites
            assert right[tiles.determined].all()
