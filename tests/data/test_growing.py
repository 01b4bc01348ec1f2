"""Asked for more episodes, a folder gets the missing ones and keeps those it has."""

import json
from dataclasses import replace

import pytest

from data import recording
from data.dataset import EpisodeDataset
from data.growing import grow
from data.latents import write_latents
from data.record import RecordArguments, record
from data.recording import record_babyai

DOT = "tests.data.dot:Dot-v0"


def arguments(out, episodes):
    return RecordArguments(env=DOT, out=out, episodes=episodes, max_steps=5, episodes_per_shard=8)


def contents(folder):
    data = EpisodeDataset(folder)
    return sorted(
        (data[i].id, tuple(data[i].actions), b"".join(data.pngs(i))) for i in range(len(data))
    )


def test_a_folder_of_twenty_grows_to_thirty_as_if_thirty_had_been_asked_for(tmp_path):
    record(arguments(tmp_path / "whole", 30))
    record(arguments(tmp_path / "grown", 20))
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "grown" / "episodes").iterdir()}
    record(arguments(tmp_path / "grown", 30))
    record(arguments(tmp_path / "grown", 30))  # nothing is left to do
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    for name, written in kept.items():
        assert (tmp_path / "grown" / "episodes" / name).stat().st_mtime_ns == written
    assert EpisodeDataset(tmp_path / "grown").episode_seeds.tolist() == list(range(30))
    record(arguments(tmp_path / "grown", 33))
    assert len(EpisodeDataset(tmp_path / "grown")) == 33


def test_a_folder_that_was_cut_off_while_it_grew_is_not_complete_and_resumes(tmp_path):
    record(arguments(tmp_path, 4))
    asked = json.loads((tmp_path / "request.json").read_text())
    grow(tmp_path, {**asked, "episodes": 12})  # and then nothing was recorded
    with pytest.raises(ValueError, match="not complete"):
        EpisodeDataset(tmp_path)
    record(arguments(tmp_path, 12))
    assert EpisodeDataset(tmp_path).episode_seeds.tolist() == list(range(12))


def test_fewer_episodes_or_another_request_are_refused(tmp_path):
    record(arguments(tmp_path, 4))
    for other in (arguments(tmp_path, 3), replace(arguments(tmp_path, 9), max_steps=6)):
        with pytest.raises(ValueError, match="was begun with"):
            record(other)
    assert len(EpisodeDataset(tmp_path)) == 4


def test_every_level_of_babyai_grows(tmp_path, tiny_codec, monkeypatch):
    monkeypatch.setattr(recording, "EPISODES_PER_SHARD", 2)
    levels = ["GoToRedBall", "OpenDoor"]
    record_babyai(levels, episodes=6, seed=40, out=tmp_path / "grown")
    write_latents(tmp_path / "grown", tiny_codec)
    record_babyai(levels, episodes=10, seed=40, out=tmp_path / "grown")
    record_babyai(levels, episodes=10, seed=40, out=tmp_path / "whole")
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    assert EpisodeDataset(tmp_path / "grown").latents is None  # those of six are gone


def test_what_a_kill_before_the_first_file_left_is_no_obstacle(tmp_path):
    (tmp_path / ".request.json.999999999.part").write_text("{")
    record(arguments(tmp_path, 2))
    assert len(EpisodeDataset(tmp_path)) == 2
    assert not list(tmp_path.glob(".*"))
