"""Folders of several embodiments become one: all of it is there, and says whose it is."""

import json
from dataclasses import replace

import pytest

from data.dataset import EpisodeDataset
from data.episode import decode_png, read_shard, write_shard
from data.join import embodied, join_folders
from data.record import RecordArguments, record
from tests.data.preparing import prepare
from unified.media.action_space import ActionSpace

DOT = "tests.data.dot:Dot-v0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The dot, moved by names and by vectors."""
    folder = tmp_path_factory.mktemp("join")
    for actions in ("discrete", "box"):
        options = {"actions": actions}
        record(
            RecordArguments(env=DOT, out=folder / actions, episodes=3, max_steps=5, options=options)
        )
    return folder


def join(folders, out, *more, names=("pad", "arm")):
    sources = [str(folders / "discrete"), str(folders / "box")]
    return prepare(["join", "--data", *sources, "--names", *names, "--out", str(out), *more])


def test_a_shard_is_read_back_as_it_was_written(folders, tmp_path):
    shard = next((folders / "box" / "episodes").glob("*.parquet"))
    episodes = read_shard(shard)
    write_shard(tmp_path / "again.parquet", episodes)
    assert read_shard(tmp_path / "again.parquet") == episodes
    assert episodes[0].num_frames > 1


def test_actions_and_tasks_say_whose_they_are(folders, tmp_path):
    assert join(folders, tmp_path / "joined") == 0
    joined = EpisodeDataset(tmp_path / "joined")
    space = ActionSpace.from_config(tmp_path / "joined" / "action_space.json")
    for name, folder, start in (("pad", "discrete", 0), ("arm", "box", 3)):
        own = EpisodeDataset(folders / folder)
        of = ActionSpace.from_config(folders / folder / "action_space.json")
        for i, episode in enumerate(own):
            found = joined[start + i]
            assert found.task == f"{name}: {episode.task}"
            assert found.action_weights == episode.action_weights
            assert joined.pngs(start + i) == own.pngs(i)
            for action, written in zip(episode.actions, found.actions, strict=True):
                assert space.decode(space.encode(written)) == {name: of.decode(of.encode(action))}


def test_frames_are_brought_to_one_size(folders, tmp_path):
    assert join(folders, tmp_path / "small", "--size", "28", "56") == 0
    small = EpisodeDataset(tmp_path / "small")
    assert {frame.shape for i in range(len(small)) for frame in small.frames(i)} == {(28, 56, 3)}


def test_what_does_not_fit_is_refused_before_anything_is_written(folders, tmp_path, capsys):
    assert join(folders, tmp_path / "a", names=("pad",)) == 2
    assert "1 names for 2 folders" in capsys.readouterr().err
    assert join(folders, tmp_path / "b", names=("arm", "arm")) == 2
    assert "has other actions than the folder before" in capsys.readouterr().err
    record(RecordArguments(env=DOT, out=tmp_path / "tall", episodes=1, max_steps=2, size=(64, 56)))
    sources = [str(folders / "discrete"), str(tmp_path / "tall")]
    out = str(tmp_path / "c")
    assert prepare(["join", "--data", *sources, "--names", "pad", "pad2", "--out", out]) == 2
    assert "64 x 56); give --size" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_joined_folder_is_not_overwritten_by_another(folders, tmp_path, capsys):
    assert join(folders, tmp_path / "joined") == 0
    before = json.loads((tmp_path / "joined" / "info.json").read_text())
    assert join(folders, tmp_path / "joined", names=("pad", "hand")) == 2
    assert "was begun with" in capsys.readouterr().err
    assert json.loads((tmp_path / "joined" / "info.json").read_text()) == before
    assert decode_png(EpisodeDataset(tmp_path / "joined").pngs(0)[0]).shape == (56, 56, 3)


def test_a_task_in_mid_episode_is_no_opening_and_the_embodiment_is_named_before_it(folders):
    (shard,) = (folders / "discrete" / "episodes").glob("*.parquet")
    task, *rest = read_shard(shard)[0].segments
    late = [rest[0], replace(task, text="stop"), *rest[1:]]
    episode = replace(read_shard(shard)[0], segments=late)
    found = embodied(episode, "arm", None, True)
    assert found.segments[0].text == "arm"
    assert [one.text for one in found.segments if one.kind == "text"] == ["arm", "stop"]
    opened = embodied(replace(episode, segments=[task, *late]), "arm", None, True)
    words = [one.text for one in opened.segments if one.kind == "text"]
    assert words == [f"arm: {task.text}", "stop"]


def test_episodes_of_two_folders_of_one_name_have_names_of_their_own(folders, tmp_path):
    join_folders([folders / "box", folders / "box"], ["arm", "arm"], tmp_path / "joined")
    joined = EpisodeDataset(tmp_path / "joined")
    ids = [episode.id for episode in joined]
    own = [f"arm/{episode.id}" for episode in EpisodeDataset(folders / "box")]
    assert ids == [*own, *(f"{one}#2" for one in own)]
