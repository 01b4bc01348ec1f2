"""The benchmark itself, at tiny sizes: what it times is checked, and failures are said."""

import json
from dataclasses import replace

import pytest
import torch

from eval import gpu_check
from eval.speed import bench, parts
from eval.speed.bench import SpeedArguments, Table, medians
from eval.speed.parts import measure

TINY = SpeedArguments(
    width=32,
    layers=1,
    heads=1,
    batch=2,
    frames=2,
    evaluations=2,
    rounds=1,
    play_frames=(1, 3),
    play_steps=(1, 4),
    lengths=(200, 400),
    parts=("train", "sample", "play", "profile", "scaling"),
)


@pytest.mark.slow
def test_every_part_measures_both_sides_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("tyro.cli", lambda *_, **__: replace(TINY, out=tmp_path))
    parts.main()
    measured = json.loads((tmp_path / "speed.json").read_text())
    train, sample, play, profile, scaling = measured["tables"]
    notes = [note for table in measured["tables"] for note in table["notes"]]
    assert not [note for note in notes if "FAILED" in note]
    assert [row[0] for row in train["rows"]] == [
        "ours, clean history",
        "ours, clean history, compiled",
        "ours, noisy history",
        "ours, noisy history, compiled",
        "transfusion-pytorch, noisy history",
    ]
    assert {(row[0], row[1]) for row in sample["rows"]} == {
        (side, rows)
        for side in ("ours", "ours, compiled", "transfusion-pytorch")
        for rows in (1, 2)
    }
    assert [row[:3] for row in play["rows"]] == [
        [name, steps, frame]
        for name in ("eager", "compiled")
        for steps, frame in ((1, 1), (4, 1), (4, 3))
    ]
    assert [row[1] for row in scaling["rows"]] == [200, 400]
    assert len(profile["rows"]) == 4
    for row in profile["rows"]:
        assert sum(row[1:5]) == pytest.approx(100)
        assert row[1] > 0
        assert row[2] > 0
    assert "| transfusion-pytorch |" in (tmp_path / "speed.md").read_text()
    assert {"processor", "torch", "commit", "date"} <= set(measured["machine"])


@pytest.mark.slow
def test_bfloat16_is_measured_likewise():
    (table,) = measure(replace(TINY, bf16=True, parts=("play",), play_steps=(1,)))
    assert not [note for note in table.notes if "FAILED" in note]
    assert table.rows


@pytest.mark.slow
def test_parts_for_large_models_run_at_any_size(monkeypatch):
    shape = {"width": 32, "layers": 1, "heads": 1, "head_size": 32}
    monkeypatch.setattr(parts, "SIZES", {"10M": shape})
    monkeypatch.setattr(parts, "LARGE", shape)
    monkeypatch.setattr(parts, "SIZES_LENGTH", 300)
    monkeypatch.setattr(parts, "LARGE_FRAMES", 3)
    sizes, large = measure(replace(TINY, parts=("sizes", "large")))
    assert [row[:2] for row in sizes.rows] == [["10M", "sdpa"]]
    assert [row[:2] for row in large.rows][:2] == [["eager", 4], ["eager", 10]]


def test_a_part_that_fails_says_so_and_the_others_go_on(monkeypatch):
    def broken(bench):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(parts.MEASURES, "play", broken)
    monkeypatch.setitem(parts.MEASURES, "sizes", lambda bench: Table("Sizes", ["a"], [[1]]))
    play, sizes = measure(replace(TINY, parts=("play", "sizes")))
    assert play.notes == ["play FAILED: RuntimeError: no kernel image"]
    assert "no kernel image" in play.markdown()
    assert sizes.rows == [[1]]


def test_sides_take_turns_and_the_first_two_rounds_do_not_count(monkeypatch):
    clock = iter([9.0, 9.0, 9.0, 9.0, 1.0, 5.0, 3.0, 7.0, 2.0, 6.0])
    order = []
    monkeypatch.setattr(bench, "timed", lambda run: (run(), next(clock))[1])
    took = medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert took == {"a": 2.0, "b": 6.0}
    assert order == ["a", "b"] * 5


def test_the_gpu_check_goes_on_after_a_step_that_fails_or_hangs(tmp_path, capsys):
    python = [gpu_check.sys.executable, "-c"]
    endings = [
        gpu_check.run(gpu_check.Step("x", command, 1), tmp_path / "log", seconds)
        for command, seconds in (
            ([*python, "print('fine')"], 60),
            ([*python, "raise SystemExit(3)"], 60),
            ([*python, "import time; time.sleep(60)"], 1),
            (["/no/such/command"], 60),
        )
    ]
    statuses = [ending.split(" (")[0] for ending in endings]
    assert statuses == ["ok", "exit 3", "ran out of time", "could not start"]
    assert "fine" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_the_gpu_check_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr("tyro.cli", lambda *_, **__: gpu_check.GpuCheckArguments())
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "sees no CUDA device" in capsys.readouterr().err


def test_every_step_of_the_gpu_check_is_a_command_that_exists(tmp_path):
    for step in gpu_check.steps(tmp_path):
        assert step.command[1] == "-m"
        if step.command[2] == "eval.speed":
            chosen = step.command[step.command.index("--parts") + 1 :]
            assert set(chosen) <= set(parts.MEASURES)
