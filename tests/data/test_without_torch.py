"""Recording, importing and exporting need neither torch nor transformers: they are never imported.

Each command runs in a process of its own in which they cannot be imported, as if not installed.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data.dataset import EpisodeDataset
from tests.data.lerobot_files import SHAPE, write_video

MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
PREPARE = "from data.prepare import main; main(sys.argv[1:])"
RECORD = "from data.record import main; main()"


def run(code, *arguments):
    command = [sys.executable, "-c", MISSING + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """A recording of CartPole."""
    out = tmp_path_factory.mktemp("recorded") / "cartpole"
    size = ["--size", "32", "48", "--max-steps", "5"]
    run(RECORD, "--env", "CartPole-v1", "--out", out, "--episodes", "2", *size)
    return out


def test_an_environment_is_recorded(cartpole):
    assert len(EpisodeDataset(cartpole)) == 2


def test_babyai_is_recorded(tmp_path):
    run(PREPARE, "babyai", "--levels", "GoToLocal", "--episodes", "2", "--out", tmp_path / "out")
    assert len(EpisodeDataset(tmp_path / "out")) == 2


def test_lerobot_goes_out_and_comes_in(cartpole, tmp_path):
    run(PREPARE, "export-lerobot", "--data", cartpole, "--out", tmp_path / "lerobot")
    run(PREPARE, "lerobot", "--folder", tmp_path / "lerobot", "--out", tmp_path / "out")
    assert len(EpisodeDataset(tmp_path / "out")) == 2


def test_minari_goes_out_and_comes_in(cartpole, tmp_path):
    pytest.importorskip("minari")
    run(PREPARE, "export-minari", "--data", cartpole, "--out", tmp_path / "minari")
    run(PREPARE, "minari", "--folder", tmp_path / "minari", "--out", tmp_path / "out")
    assert len(EpisodeDataset(tmp_path / "out")) == 2


def test_json_lines_come_in(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = {"kind": "frame", "frame": "a.png"}
    segments = [shown, {"kind": "action", "action": "up"}, shown]
    (tmp_path / "a.jsonl").write_text(json.dumps({"segments": segments}))
    run(PREPARE, "jsonl", "--file", tmp_path / "a.jsonl", "--out", tmp_path / "out")
    assert EpisodeDataset(tmp_path / "out")[0].actions == ["up"]


def test_recordings_of_keyboard_and_mouse_come_in(tmp_path):
    frames = [np.full(SHAPE, 40 + 20 * step, np.uint8) for step in range(4)]
    write_video(tmp_path / "vpt" / "a.mp4", frames, rate=20)
    mouse = {"dx": 1.0, "dy": -1.0, "buttons": [], "newButtons": []}
    keyboard = {"keys": ["key.keyboard.w"], "newKeys": []}
    line = json.dumps({"mouse": mouse, "keyboard": keyboard, "hotbar": 0})
    (tmp_path / "vpt" / "a.jsonl").write_text("\n".join([line] * 4))
    run(PREPARE, "vpt", "--folder", tmp_path / "vpt", "--out", tmp_path / "out")
    assert EpisodeDataset(tmp_path / "out").num_frames == 4


def test_folders_are_joined_and_looked_at(cartpole, tmp_path):
    both = tmp_path / "both"
    run(PREPARE, "join", "--data", cartpole, cartpole, "--names", "a", "b", "--out", both)
    assert len(EpisodeDataset(both)) == 4
    run("from data.inspect import main; main()", "--data", both, "--out", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 0
