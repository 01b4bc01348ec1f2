"""A data folder says what it holds, and shows it."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.dataset import EpisodeDataset
from data.inspect import InspectArguments, inspect, main, summary
from data.record import RecordArguments, record
from data.sources.jsonl import import_jsonl


def test_the_summary_counts_what_the_episodes_hold(babyai_folder):
    dataset = EpisodeDataset(babyai_folder)
    rows = dict(summary(dataset))
    assert rows["source"] == "babyai"
    assert rows["episodes"] == "16"
    assert rows["frames"] == f"{dataset.num_frames} of 56 x 56 pixels"
    assert "GoToRedBall (8)" in rows["levels"]
    actions = [action for episode in dataset for action in episode.actions]
    weights = [weight for episode in dataset for weight in episode.action_weights]
    learned = sum(weight > 0 for weight in weights)
    assert rows["actions"] == f"{len(actions)}, of which {learned} are learned"
    assert f"forward ({actions.count('forward')})" in rows["which actions"]
    assert rows["latents"] == "none yet"


def test_a_slip_of_the_pen_is_among_the_actions_that_are_listed(tmp_path):
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(tmp_path / "a.png")
    frame = {"kind": "frame", "frame": "a.png", "outcome": "ongoing"}
    taken = [f"move {i}" for i in range(9)] * 2 + ["go left"]
    acts = [{"kind": "action", "action": name} for name in taken]
    segments = [frame, *[part for act in acts for part in (act, frame)]]
    (tmp_path / "a.jsonl").write_text(json.dumps({"segments": segments}))
    import_jsonl(tmp_path / "a.jsonl", tmp_path / "data")
    names = dict(summary(EpisodeDataset(tmp_path / "data")))["which actions"].split(", ")
    assert names == [*[f"move {i} (2)" for i in range(9)], "go left (1)"]


def test_the_page_shows_frames_with_what_was_done(babyai_folder, tmp_path, capsys):
    arguments = InspectArguments(data=babyai_folder, out=tmp_path / "page.html", samples=2)
    text = inspect(arguments).read_text()
    assert "episodes" in capsys.readouterr().out
    dataset = EpisodeDataset(babyai_folder)
    pictures = re.findall(r"base64,([^']*)'", text)
    expected = dataset.pngs(0)[:24] + dataset.pngs(15)[:24]
    assert [base64.b64decode(picture) for picture in pictures] == expected
    assert f"<b>{dataset[0].actions[0]}</b>" in text
    few = inspect(replace(arguments, frames=1)).read_text()
    assert few.count("<img") == 2


def test_vectors_are_summed_up_by_their_ranges(tmp_path):
    options = {"actions": "box"}
    arguments = RecordArguments(
        env="tests.data.dot:Dot-v0", out=tmp_path, episodes=2, max_steps=5, options=options
    )
    record(arguments)
    rows = dict(summary(EpisodeDataset(tmp_path)))
    assert rows["action vectors"].startswith("2 numbers: -")
    assert "of which 0 are learned" in rows["actions"]


def test_bad_input_ends_the_command_line_with_status_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["inspect", "--data", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "does not exist" in capsys.readouterr().err
