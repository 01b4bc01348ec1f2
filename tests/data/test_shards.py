"""A data folder is whole or passes for nothing, whenever its writer is killed."""

import json
import multiprocessing
import os

import pytest

from data import shards
from data.dataset import EpisodeDataset
from data.record import RecordArguments, record
from data.shards import action_space_of_folder, claim_folder
from tests.data.preparing import prepare

GONE = 2**22 + 1
"""A process number that the kernel gives to nobody."""


def arguments(out):
    return RecordArguments(env="tests.data.dot:Dot-v0", out=out, episodes=4, episodes_per_shard=2)


def test_info_is_written_last_so_that_a_whole_folder_has_its_actions(tmp_path, monkeypatch):
    written = []
    write = shards.write_json

    def listed(path, content):
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(shards, "write_json", listed)
    record(arguments(tmp_path))
    assert written == ["request.json", "action_space.json", "info.json"]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def killed_at(folder, writes):
    """Records, and dies before the n-th file is moved to its place; nothing is tidied up."""
    replace = os.replace
    left = iter([False] * writes)

    def move(*paths):
        if next(left, True):
            os._exit(9)
        replace(*paths)

    os.replace = move
    record(arguments(folder))


def test_a_recording_that_is_killed_at_any_write_goes_on_and_ends_the_same(tmp_path):
    record(arguments(tmp_path / "whole"))
    whole = contents(tmp_path / "whole")
    for writes in range(len(whole)):
        out = tmp_path / str(writes)
        process = multiprocessing.get_context("fork").Process(target=killed_at, args=(out, writes))
        process.start()
        process.join(60)
        assert process.exitcode == 9
        assert len(list(out.rglob(".*.part"))) == 1
        with pytest.raises(ValueError, match="not complete"):
            EpisodeDataset(out)
        record(arguments(out))
        assert contents(out) == whole


def test_parts_of_writers_that_are_gone_are_swept_and_no_others(tmp_path):
    folder = tmp_path / "data"
    claim_folder(folder, {"a": 1})
    (folder / "episodes").mkdir()
    stale = folder / "episodes" / f".x.parquet.{GONE}.part"
    alive = folder / "episodes" / f".x.parquet.{os.getppid()}.part"
    for part in (stale, alive):
        part.write_bytes(b"half")
    claim_folder(folder, {"a": 1})
    assert not stale.exists()
    assert alive.exists()


def test_the_parts_of_another_folder_are_left_alone(tmp_path):
    strange = tmp_path / f".film.mp4.{GONE}.part"
    strange.write_bytes(b"of somebody else")
    with pytest.raises(ValueError, match="holds something else"):
        claim_folder(tmp_path, {"a": 1})
    assert strange.exists()


def test_a_folder_without_its_actions_is_named_with_what_to_do(tmp_path, capsys):
    record(arguments(tmp_path / "data"))
    (tmp_path / "data" / "action_space.json").unlink()
    with pytest.raises(ValueError, match=r"has no action_space.json, .*give --actions FILE"):
        action_space_of_folder(tmp_path / "data")
    command = ["export-minari", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert prepare(command) == 2
    assert "has no action_space.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_babyai_carries_its_own_actions(babyai_folder):
    names = action_space_of_folder(babyai_folder).to_config()["actions"]
    assert names == ["left", "right", "forward", "pickup", "drop", "toggle", "done"]


def test_a_damaged_request_is_named(tmp_path):
    (tmp_path / "request.json").write_text("[" * 10_000)
    with pytest.raises(ValueError, match=r"request.json is damaged .*choose another --out"):
        claim_folder(tmp_path, {})
    (tmp_path / "request.json").write_text(json.dumps({"b": 2}))
    with pytest.raises(ValueError, match="was begun with"):
        claim_folder(tmp_path, {})


def test_another_request_is_told_by_what_differs(tmp_path):
    claim_folder(tmp_path, {"levels": ["OpenDoor"], "seed": 0, "noise": 0.1})
    with pytest.raises(
        ValueError, match=r"begun with seed 0, not 1, noise 0.1, not None; rerun that"
    ) as refused:
        claim_folder(tmp_path, {"seed": 1, "levels": ["OpenDoor"]})
    assert "OpenDoor" not in str(refused.value).partition("begun")[2]
