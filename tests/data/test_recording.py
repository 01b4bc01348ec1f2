import json
import subprocess
import sys

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from data import recording
from data.dataset import EpisodeDataset
from data.recording import record_babyai
from tests.data.preparing import prepare


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "episodes").iterdir()}


def test_the_number_of_workers_changes_nothing(tmp_path, babyai_folder, monkeypatch):
    monkeypatch.setattr(recording, "EPISODES_PER_SHARD", 3)
    levels = ["GoToRedBall", "OpenDoor"]
    record_babyai(levels, episodes=16, seed=40, out=tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(babyai_folder)


def test_recording_resumes_with_the_missing_shards_only(tmp_path, babyai_folder, monkeypatch):
    monkeypatch.setattr(recording, "EPISODES_PER_SHARD", 3)
    out = tmp_path / "data"
    levels = ["GoToRedBall", "OpenDoor"]
    record_babyai(levels, episodes=16, seed=40, out=out)
    kept = out / "episodes" / "OpenDoor-000000.parquet"
    written = kept.stat().st_mtime_ns
    (out / "episodes" / "GoToRedBall-000003.parquet").unlink()
    (out / "info.json").unlink()
    with pytest.raises(ValueError, match="not complete; rerun"):
        EpisodeDataset(out)
    record_babyai(levels, episodes=16, seed=40, out=out)
    assert contents(out) == contents(babyai_folder)
    assert kept.stat().st_mtime_ns == written


def test_a_folder_begun_with_another_request_is_refused(babyai_folder, tmp_path):
    with pytest.raises(ValueError, match="rerun that command to resume, or choose another"):
        record_babyai(["GoToRedBall"], episodes=16, seed=40, out=babyai_folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        record_babyai(["GoToRedBall"], episodes=1, seed=0, out=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 999_990}, "leave the training seeds"),
        ({"seed": 1_000_000}, "leave the training seeds"),
        ({"seed": -1}, "leave the training seeds"),
        ({"seed": 5, "evaluation": True}, "from seed 1000000 on"),
        ({"episodes": 15}, "cannot be split over 2 levels"),
        ({"levels": ["OpenDoor", "OpenDoor"]}, "name each level once"),
        ({"levels": ["Nowhere"]}, "'Nowhere' is unknown"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_an_impossible_request_is_refused_before_anything_is_written(tmp_path, change, message):
    request = {"levels": ["GoToRedBall", "OpenDoor"], "episodes": 40, "seed": 0}
    out = tmp_path / "data"
    with pytest.raises(ValueError, match=message):
        record_babyai(**{**request, **change}, out=out)
    assert not out.exists()


def test_datasets_shows_the_frames_as_pil_images(babyai_folder, tmp_path):
    file = str(babyai_folder / "episodes" / "OpenDoor-000000.parquet")
    loaded = datasets.load_dataset("parquet", data_files=file, cache_dir=str(tmp_path))["train"]
    frame = loaded[0]["segments"][1]["frame"]
    index = list(EpisodeDataset(babyai_folder).episode_levels).index("OpenDoor")
    expected = EpisodeDataset(babyai_folder).frames(index)[0]
    np.testing.assert_array_equal(np.asarray(frame), expected)


def test_the_info_counts_what_the_shards_hold(babyai_folder):
    info = json.loads((babyai_folder / "info.json").read_text())
    rows = [pq.ParquetFile(babyai_folder / shard["file"]).read() for shard in info["shards"]]
    assert sum(len(row) for row in rows) == info["episodes"] == 16
    frames = [s for row in rows for e in row.to_pylist() for s in e["segments"] if s["frame"]]
    assert len(frames) == info["frames"]


def test_the_command_line_reports_bad_input_in_one_line_with_status_2(tmp_path, capsys):
    command = ["babyai", "--levels", "Nowhere", "--episodes", "1", "--out", str(tmp_path / "d")]
    assert prepare(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_line_records_evaluation_seeds(tmp_path):
    out = tmp_path / "data"
    command = ["babyai", "--levels", "GoToLocal", "--episodes", "2", "--seed", "1000000"]
    assert prepare([*command, "--out", str(out), "--evaluation"]) == 0
    assert EpisodeDataset(out).episode_seeds.tolist() == [1_000_000, 1_000_001]


def test_recording_does_not_wait_for_torch():
    command = "import sys, data.recording; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
