"""Episodes that are held out: a matter of the episode alone, and of all of it."""

import json

import pytest

from data.dataset import EpisodeDataset
from data.prepare import main
from data.record import RecordArguments, record
from data.split import HELD_OUT_FOLDER, is_held_out, split_folder

DOT = "tests.data.dot:Dot-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("dot") / "data"
    record(
        RecordArguments(
            env=DOT, out=out, episodes=12, max_steps=3, outcome="info:won", episodes_per_shard=5
        )
    )
    return out


def all_of(path):
    data = EpisodeDataset(path)
    return {data[i].id: (data[i].actions, data.pngs(i)) for i in range(len(data))}


def test_every_episode_is_in_one_part_unchanged(folder, tmp_path):
    main(["split", "--data", str(folder), "--out", str(tmp_path / "x"), "--held-out", "0.3"])
    before = all_of(folder)
    train, held_out = all_of(tmp_path / "x"), all_of(tmp_path / "x" / HELD_OUT_FOLDER)
    assert not set(train) & set(held_out)
    assert {**train, **held_out} == before
    assert set(held_out) == {one for one in before if is_held_out(one, 0.3)}
    for part in (tmp_path / "x", tmp_path / "x" / HELD_OUT_FOLDER):
        assert (part / "action_space.json").read_text() == (
            folder / "action_space.json"
        ).read_text()
        info = json.loads((part / "info.json").read_text())
        assert info["recorder"] == json.loads((folder / "info.json").read_text())["recorder"]


def test_what_is_held_out_stays_so_when_data_grow_and_when_more_is_held_out():
    ids = [f"some/data/{i}" for i in range(4000)]
    tenth = {one for one in ids if is_held_out(one, 0.1)}
    assert 0.08 < len(tenth) / len(ids) < 0.12
    assert tenth <= {one for one in ids if is_held_out(one, 0.3)}


def test_a_second_call_resumes_and_another_share_is_refused(folder, tmp_path):
    out = tmp_path / "x"
    split_folder(folder, out, held_out=0.3)
    whole = all_of(out / HELD_OUT_FOLDER)
    (out / HELD_OUT_FOLDER / "info.json").unlink()
    next((out / HELD_OUT_FOLDER / "episodes").iterdir()).unlink()
    split_folder(folder, out, held_out=0.3)
    assert all_of(out / HELD_OUT_FOLDER) == whole
    with pytest.raises(ValueError, match="was begun with"):
        split_folder(folder, out, held_out=0.4)


def test_shares_that_leave_nothing_are_refused_before_anything_is_written(folder, tmp_path):
    for share, message in ((0.0, "between 0 and 1"), (1e-9, "holds out none"), (1 - 1e-9, "all")):
        with pytest.raises(ValueError, match=message):
            split_folder(folder, tmp_path / "x", held_out=share)
    assert not (tmp_path / "x").exists()
