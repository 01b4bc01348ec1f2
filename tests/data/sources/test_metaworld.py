"""Meta-World as one environment; needs the package and a MuJoCo that can draw."""

import os

import numpy as np
import pytest

pytest.importorskip("metaworld")
os.environ.setdefault("MUJOCO_GL", "egl")

from data.sources.gymnasium import GymnasiumRecorder
from data.sources.metaworld import TASKS, MetaWorld


def test_the_expert_succeeds_at_every_task():
    recorder = GymnasiumRecorder(
        "data.sources.metaworld:MetaWorld-v0",
        "data.sources.metaworld:expert",
        size=(64, 64),
        max_steps=40,
        outcome="info:success",
        is_still=True,
    )
    for seed, task in enumerate(TASKS.values()):
        episode = recorder.record(seed)
        assert episode.segments[0].text == task
        assert episode.segments[-1].outcome == "success"


def test_a_seed_places_the_same_objects_again_whatever_was_played_before():
    env = MetaWorld(size=32)

    def shown(seed):
        env.reset(seed=seed)
        return env.render()

    first = shown(4)
    assert not np.array_equal(first, shown(8))
    shown(5)
    np.testing.assert_array_equal(first, shown(4))


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="drawer-open-v3"):
        MetaWorld(tasks=("fly-v3",))
