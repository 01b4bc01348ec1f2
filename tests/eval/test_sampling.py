"""`eval.sampling`: the truth is right and as varied as itself; who cheats loses."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eval.sampling.__main__ import (
    SamplingArguments,
    Setting,
    compare,
    measure,
    noise_of_variation,
    table,
    total_variation,
)
from eval.sampling.pictures import schedules
from eval.world.openloop import make_loops


@pytest.fixture(scope="module")
def loops():
    return make_loops("handler", 4, 1_700_000, 16)


def drawn(loops):
    return np.array([[view.sprites for view in loop.views] for loop in loops])


def test_the_truth_is_right_everywhere_and_as_varied_as_itself(loops):
    frames = np.array([[view.frame for view in loop.views] for loop in loops])
    figures = measure(loops, drawn(loops), frames)
    assert figures.tiles[1].value == figures.tiles[16].value == 1
    assert figures.legal is not None
    assert figures.legal.value == 1
    assert figures.variation == 0
    assert noise_of_variation(loops) > 0


def test_who_always_draws_the_commonest_thing_has_no_variety(loops):
    ids = drawn(loops)
    commonest = Counter(
        int(sprite)
        for loop in loops
        for view, classes in zip(loop.views, loop.classes, strict=True)
        for sprite in view.sprites[classes.revealed]
    ).most_common(1)[0][0]
    for number, loop in enumerate(loops):
        for step, classes in enumerate(loop.classes):
            ids[number, step][classes.revealed] = commonest
    figures = measure(loops, ids)
    assert figures.tiles[16].value == 1  # what is determined is right
    assert figures.variation > 0.2


def test_total_variation_is_half_the_sum_of_differences():
    assert total_variation(Counter("aab"), Counter("aab")) == 0
    assert total_variation(Counter("a"), Counter("b")) == 1
    assert total_variation(Counter("aaab"), Counter("ab")) == pytest.approx(0.25)


def test_settings_are_named_by_what_is_unusual():
    usual = Setting("runs/few/model", "euler", 2, "uniform", "text=1", "window", "autoregressive")
    assert usual.name() == "model 2 euler"
    other = Setting("babyai", "unipc", 4, "karras", "action=2", "place", "pyramid")
    assert other.name() == "babyai 4 unipc karras action=2 place pyramid"
    assert str(other.options()["guidance_scale"].action) == "2.0"


def test_a_small_comparison_is_a_table_and_a_picture(tmp_path: Path):
    arguments = SamplingArguments(
        steps=(1,),
        schedules=("autoregressive", "chunked:frames=2"),
        loops=2,
        frames=2,
        out=tmp_path,
        picture=tmp_path / "s.png",
    )
    found = compare(arguments)
    assert [*found] == [
        "floor: a map of what was seen",
        "babyai 1 euler",
        "babyai 1 euler chunked:frames=2",
    ]
    told = table(found, 0.1)
    assert told.count("\n") == 4
    rows = told.splitlines()[2:]
    assert all(row in (tmp_path / "sampling.md").read_text() for row in rows)
    assert (tmp_path / "s.png").stat().st_size > 1000
    assert schedules().shape[2] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, "seed=7 belongs to training"),
        ({"loops": 1}, "must be at least 2 and 1"),
        ({"solvers": ("eular",)}, "did you mean 'euler'"),
        ({"schedules": ("zigzag",)}, "schedule 'zigzag' is unknown"),
        ({"guidance": ("speed=2",)}, "knows no 'speed'"),
    ],
)
def test_what_cannot_be_compared_is_refused_first(changes, message):
    with pytest.raises(ValueError, match=message):
        compare(SamplingArguments(**changes))
