"""What goes out to LeRobot is opened by LeRobot, or at least by its documented schema."""

import io
import json
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.dataset import EpisodeDataset
from data.record import RecordArguments, record
from data.sources.lerobot_export import export_lerobot

KINDS = ["babyai", "discrete", "signed", "box", "multi"]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, babyai_folder, tmp_path_factory):
    """A data folder, and the same as a LeRobot dataset."""
    folder = tmp_path_factory.mktemp(request.param)
    ours = babyai_folder
    if request.param != "babyai":
        ours = folder / "data"
        options = {"actions": request.param}
        env = "tests.data.dot:Dot-v0"
        record(RecordArguments(env=env, out=ours, episodes=2, max_steps=5, options=options))
    export_lerobot(ours, folder / "out")
    return ours, folder / "out"


def documented(features):
    """The columns of a v3.0 dataset, as LeRobot makes them of `info.json` (0.4.4 to 0.6.0)."""
    found = {}
    for name, feature in features.items():
        dtype, shape = feature["dtype"], tuple(feature["shape"])
        if dtype == "image":
            found[name] = datasets.Image()
        elif shape == (1,):
            found[name] = datasets.Value(dtype)
        else:
            assert len(shape) == 1
            found[name] = datasets.Sequence(datasets.Value(dtype), length=shape[0])
    return datasets.Features(found)


def pictures(folder):
    dataset = EpisodeDataset(folder)
    return [frame for index in range(len(dataset)) for frame in dataset.frames(index)]


def test_the_files_hold_exactly_the_documented_columns(exported):
    ours, out = exported
    features = documented(json.loads((out / "meta/info.json").read_text())["features"])
    (file,) = (out / "data").rglob("*.parquet")
    names = pq.read_schema(file).names
    assert names == list(features)
    assert pq.read_schema(file).equals(features.arrow_schema)
    loaded: Any = datasets.Dataset.from_parquet(
        str(file), features=features, cache_dir=str(out / "c")
    )
    for row, frame in zip(loaded, pictures(ours), strict=True):
        np.testing.assert_array_equal(np.asarray(row["observation.images.main"]), frame)


def test_lerobots_own_reader_shows_every_frame_and_action(exported):
    lerobot = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset", reason="pip install lerobot", exc_type=ImportError
    )
    ours, out = exported
    dataset = lerobot.LeRobotDataset("ours/mine", root=out)
    table = pq.read_table(next((out / "data").rglob("*.parquet")))
    frames = pictures(ours)
    assert len(dataset) == len(frames)
    tasks = [e.task for e in EpisodeDataset(ours) for _ in e.outcomes]
    for index, (frame, task) in enumerate(zip(frames, tasks, strict=True)):
        row = dataset[index]
        shown = row["observation.images.main"].numpy().transpose(1, 2, 0) * 255
        np.testing.assert_array_equal(shown.round().astype(np.uint8), frame)
        png = table["observation.images.main"][index].as_py()["bytes"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), frame)
        action = np.asarray(table["action"][index].as_py())
        np.testing.assert_allclose(row["action"].numpy(), action, rtol=1e-6)
        assert row["task"] == (task or "")
