"""Evaluation in any environment: what is counted, and what it is compared with."""

import json
import shutil

import numpy as np
import pytest

from data.record import RecordArguments, record
from data.sources.gymnasium import GymnasiumRecorder
from eval.babyai.tally import psnr
from eval.comparison import Comparison, Recording, ssim
from eval.environment import EnvironmentArguments, evaluate
from eval.statistics import mean_over_episodes
from tests.unified.parts import babyai_parts
from unified.media.action_space import ActionSpace

DOT = "tests.data.dot:Dot-v0"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with episodes of the dot, and a random model that has its actions."""
    folder = tmp_path_factory.mktemp("dot")
    record(
        RecordArguments(
            env=DOT,
            out=folder / "data",
            policy="tests.data.dot:make_runner",
            episodes=2,
            max_steps=9,
            outcome="info:won",
            bins=8,
            options={"actions": "box"},
        )
    )
    model, processor = babyai_parts()
    space = ActionSpace.from_config(folder / "data" / "action_space.json")
    processor = processor.with_action_space(space)
    model.adopt(processor)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


def arguments(folder, **changes):
    options = {
        "model": str(folder / "model"),
        "data": folder / "data",
        "out": folder / "report",
        "agent_episodes": 3,
        "episodes": 3,
        "parallel": 2,
        "context_frames": 2,
        "horizon": 2,
        "num_inference_steps": 1,
    }
    return EnvironmentArguments(**{**options, **changes})


def test_the_agent_stands_between_the_policy_and_random_actions(recorded, tmp_path):
    report = evaluate(arguments(recorded))
    assert list(report.success) == ["tests.data.dot:make_runner", "random", "model"]
    assert report.success["tests.data.dot:make_runner"] == {"go right": [3, 3]}
    assert report.success["model"]["go right"][1] == 3
    report.save(tmp_path)
    figures = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert figures["success/tests.data.dot:make_runner/all"]["value"] == 1.0
    assert {"next/model/psnr", "rollout/2/codec/ssim", "outcome/model/balanced"} <= set(figures)
    assert "| rollout, frame 2: SSIM |" in (tmp_path / "report.md").read_text()
    for name in ("frames.png", "rollouts.mp4", "index.html"):
        assert (tmp_path / name).stat().st_size > 0


def test_ends_that_nobody_knows_are_neither_won_nor_lost(recorded, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(recorded / "data", data)
    info = json.loads((data / "info.json").read_text())
    info["recorder"]["outcome"] = None  # and the dot has no threshold
    (data / "info.json").write_text(json.dumps(info))
    report = evaluate(arguments(recorded, data=data, out=tmp_path / "out", episodes=1))
    runner = "tests.data.dot:make_runner"
    assert (report.success[runner], report.unknown[runner]) == ({}, 3)
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"is unknown for 3 of {runner}" in text
    figures = json.loads((tmp_path / "out" / "report.json").read_text())["figures"]
    assert not [name for name in figures if name.startswith(f"success/{runner}")]


def test_the_floor_is_the_last_true_frame_repeated(recorded):
    settings = json.loads((recorded / "data" / "info.json").read_text())["recorder"]
    episode = Recording.of(GymnasiumRecorder(**settings).record(1_000_000))
    frames = [view.frame for view in episode.views]
    assert episode.task == "go right"
    assert [view.action is None for view in episode.views] == [True] + [False] * (len(frames) - 1)
    report = evaluate(arguments(recorded, episodes=1))
    found = report.found.quality["next/repeat/psnr"][0]
    assert found == [psnr(a, b) for a, b in zip(frames, frames[1:], strict=False)]
    assert report.found.quality["rollout/2/repeat/ssim"][0] == [ssim(frames[1], frames[3])]


def test_equal_frames_are_entirely_similar():
    frame = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    assert ssim(frame, frame) == pytest.approx(1.0)
    assert ssim(frame, 255 - frame) < 0.1


def test_similarity_of_plain_frames_is_that_of_the_formula():
    dark, light = (np.full((16, 24, 3), value, np.uint8) for value in (20, 30))
    first = (0.01 * 255) ** 2  # Wang et al. 2004, equation 13; plain frames have no variance
    expected = (2 * 20 * 30 + first) / (20**2 + 30**2 + first)
    assert ssim(dark, light) == pytest.approx(expected, abs=1e-4)
    assert abs(expected - 0.923) < 1e-3  # another range of values would say 1.000 or 0.308


def test_where_frames_differ_counts_these_pixels_alone():
    still = np.zeros((16, 16, 3), np.uint8)
    truth, drawn = still.copy(), still.copy()
    truth[4:6, 4:6] = 200
    drawn[4:6, 4:6] = 190
    drawn[0, 0] = 90  # wrong, but nothing moved there
    report = Comparison()
    report.score("next", 0, {"model": drawn, "repeat": still}, truth, still)
    report.score("next", 0, {"model": drawn, "repeat": still}, still, still)
    assert report.quality["next/model/differing"][0] == [pytest.approx(10 * np.log10(255**2 / 100))]
    expected = 10 * np.log10(255**2 / 200**2)
    assert report.quality["next/repeat/differing"][0] == [pytest.approx(expected)]
    assert len(report.quality["next/model/psnr"][0]) == 2


def test_a_mean_counts_frames_and_varies_by_episode():
    found = mean_over_episodes([[1.0, 1.0, 1.0], [3.0], []])
    assert found.value == 1.5
    assert found.low < 1.0 < 3.0 < found.high  # two episodes know little
    with pytest.raises(ValueError, match="at least one value"):
        mean_over_episodes([[]])


def test_folders_and_seeds_that_cannot_be_played_are_refused(recorded, tmp_path):
    with pytest.raises(ValueError, match="first_seed=3 belongs to training"):
        evaluate(arguments(recorded, first_seed=3))
    with pytest.raises(ValueError, match="horizon=0 must be at least 1"):
        evaluate(arguments(recorded, horizon=0))
    (tmp_path / "data").mkdir()
    info = json.loads((recorded / "data" / "info.json").read_text())
    info["recorder"]["success"] = "any_reward"  # an option of an earlier version
    (tmp_path / "data" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="another version, with success, .*; record it anew"):
        evaluate(arguments(recorded, data=tmp_path / "data"))
    del info["recorder"]
    (tmp_path / "data" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"was not written by data\.record"):
        evaluate(arguments(recorded, data=tmp_path / "data"))


def test_data_recorded_with_a_task_are_played_from_a_fresh_start(recorded, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    info = json.loads((recorded / "data" / "info.json").read_text())
    info["recorder"]["task"] = "run"
    (data / "info.json").write_text(json.dumps(info))
    report = evaluate(arguments(recorded, data=data, out=tmp_path / "report"))
    played = {who: list(tasks) for who, tasks in report.success.items()}
    assert set(map(tuple, played.values())) == {("run",)}
    assert report.success["tests.data.dot:make_runner"] == {"run": [3, 3]}


def test_what_was_found_is_on_disk_when_a_later_part_fails(recorded, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the simulator behind the environment crashed")

    monkeypatch.setattr("eval.environment.play_agent", broken)
    with pytest.raises(RuntimeError, match="crashed"):
        evaluate(arguments(recorded, out=tmp_path))
    figures = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert {"next/model/psnr", "rollout/2/model/ssim", "success/random/all"} <= set(figures)
    assert "success/model/all" not in figures


def test_a_device_that_is_not_there_is_named(recorded):
    with pytest.raises(ValueError, match="device 'nosuch' cannot be used"):
        evaluate(arguments(recorded, device="nosuch"))
