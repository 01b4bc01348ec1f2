"""A world on a server is the world that is here."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gymnasium")
pytest.importorskip("uvicorn")
from concurrent.futures import ThreadPoolExecutor

from gymnasium.utils.env_checker import check_env

from tests.unified.parts import random_frames
from tests.unified.play.stage import house, serving
from unified.play.remote import RemoteWorldEnv
from unified.roles.world import WorldEnv

TASK = "go to the red ball"
DOC = Path(__file__).parents[3] / "docs" / "play.md"


@pytest.fixture(scope="module")
def url(engine):
    with serving(house(engine), most=12) as (address, _, _):
        yield f"ws://{address}"


def local(engine, frame, **options):
    return WorldEnv(engine.model, engine.processor, frame, TASK, num_inference_steps=2, **options)


def test_a_remote_world_passes_gymnasiums_checker(url):
    world = RemoteWorldEnv(url, random_frames(1)[0], TASK)
    check_env(world, skip_render_check=False)
    world.close()


def test_a_remote_world_equals_the_local_one_frame_by_frame_until_it_is_truncated(engine, url):
    frame = random_frames(1, 5)[0]
    remote, here = RemoteWorldEnv(url, frame, TASK, max_steps=9), local(engine, frame, max_steps=9)
    assert remote.action_space == here.action_space
    assert remote.observation_space == here.observation_space
    for seed in (7, None):
        first, expected = remote.reset(seed=seed), here.reset(seed=seed)
        assert np.array_equal(first[0], expected[0])
        truncated, step = False, 0
        while not truncated:
            got, expected = remote.step(step % 6), here.step(step % 6)
            truncated, step = got[3], step + 1
            assert np.array_equal(got[0], expected[0])
            assert got[1:4] == expected[1:4]
            assert got[4]["outcome"] == expected[4]["outcome"]
    remote.close()


def test_a_remote_world_is_told_and_returns_to_its_moments_as_the_local_one(engine, url):
    frame = random_frames(1, 5)[0]
    remote, here = RemoteWorldEnv(url, frame, TASK), local(engine, frame)
    remote.reset(seed=1)
    here.reset(seed=1)
    moments = remote.snapshot(), here.snapshot()
    for world in (remote, here):
        world.tell("a box appears 1 ahead")
    assert np.array_equal(remote.step("left")[0], here.step("left")[0])
    assert np.array_equal(remote.restore(moments[0]), here.restore(moments[1]))
    assert np.array_equal(remote.step("right")[0], here.step("right")[0])
    remote.close()


def test_workers_side_by_side_see_what_each_would_see_alone(engine, url):
    frames = random_frames(6)

    def play(seed):
        world = RemoteWorldEnv(url, frames[seed], TASK)
        world.reset(seed=seed)
        seen = [world.step((seed + i) % 6)[0] for i in range(5)]
        world.close()
        return seen

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(play, range(6)))
    for seed, seen in enumerate(together):
        world = local(engine, frames[seed])
        world.reset(seed=seed)
        for i, frame in enumerate(seen):
            assert np.array_equal(frame, world.step((seed + i) % 6)[0])


def test_the_example_of_docs_play_runs(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(random_frames(1)[0]).save("a.png")
    (block,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    names = {}
    exec(compile(block.replace("ws://127.0.0.1:8000", url), "docs/play.md", "exec"), names)
    assert names["frame"].shape == (56, 56, 3)
    names["world"].close()


def test_a_server_that_is_not_there_or_refuses_is_told_of_in_words(url):
    with pytest.raises(ValueError, match="start one with `unified play`"):
        RemoteWorldEnv("ws://127.0.0.1:9")
    world = RemoteWorldEnv(url)
    with pytest.raises(ValueError, match="nothing to open"):
        world.reset(seed=0)
    with pytest.raises(ValueError, match="call reset before step"):
        world.step(0)
    with pytest.raises(ValueError, match="option 'fame' is unknown"):
        world.reset(options={"fame": 1})
    world.reset(options={"task": TASK})
    with pytest.raises(ValueError, match="'fly'"):
        world.step("fly")
    world.close()
    with pytest.raises(ValueError, match="make the world again"):
        world.reset()
