import builtins

import numpy as np
import pytest
from PIL import Image

from unified.media import samples
from unified.media.samples import sample, shipped_levels


@pytest.mark.parametrize("level", shipped_levels())
def test_a_shipped_frame_is_what_minigrid_draws(level):
    pytest.importorskip("minigrid")
    shipped, made = sample(level), samples._made(level, samples.SEED)
    assert np.array_equal(shipped.frame, made.frame)  # pyright: ignore[reportArgumentType]
    assert shipped.task == made.task


def test_a_frame_is_saved_with_its_task(tmp_path):
    made = sample("OpenDoor")
    made.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.size, image.info["task"]) == ((56, 56), "open the door on your right")
        assert np.array_equal(image.convert("RGB"), made.frame)  # pyright: ignore[reportArgumentType]


def test_shipped_frames_need_no_minigrid_and_the_others_say_so(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("minigrid"):
            raise ModuleNotFoundError("no minigrid", name="minigrid")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert sample("GoToLocal").task == "go to the red ball"
    with pytest.raises(ValueError, match="seed 3 is not shipped, and minigrid is not installed"):
        sample("GoToLocal", 3)


def test_unknown_levels_are_refused():
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match="level 'OpenDor' is unknown"):
        sample("OpenDor")
    with pytest.raises(ValueError, match="seed=-1 is negative"):
        sample("OpenDoor", -1)
