"""A run is the same on one process, on two, and in several batches a step."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.latents import write_latents
from data.recording import record_babyai
from tests.train import tiny_run
from train.recipes import Recipe
from train.trainer import (
    RunArguments,
    checkpoint_to_resume,
    newest_checkpoint,
    training_arguments,
)
from unified import bf16

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tiny_codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    record_babyai(["GoToRedBall"], episodes=4, seed=11, out=folder / "data")
    tiny_codec.save_pretrained(folder / "codec")
    write_latents(folder / "data", tiny_codec, batch=32, device="cpu")
    return folder


def found_in(out):
    """The folder of a run, the weights that it ended with, and its log lines."""
    newest = newest_checkpoint(out)
    assert newest is not None
    state = json.loads((newest / "trainer_state.json").read_text())
    lines = [line for line in state["log_history"] if "loss" in line]
    return out, load_file(newest / "model.safetensors"), lines


def run(folders, name, rows, accumulation=1):
    tiny_run.run(
        folders / "data", folders / "codec", folders / name, rows, accumulation, resume=False
    )
    return found_in(folders / name)


def run_twice(folders, name, rows, *options):
    """On two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.train.tiny_run"]
    command += [folders / "data", folders / "codec", folders / name, rows, 1, *options]
    found = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found_in(folders / name)


@pytest.fixture(scope="module")
def whole(folders):
    return run(folders, "whole", 4)


FIGURES = ("loss", "token_loss", "flow_loss", "motion_loss")


def assert_is_same(found, whole):
    for name, tensor in whole[1].items():
        assert torch.allclose(found[1][name], tensor, atol=2e-4), name
    for line, expected in zip(found[2], whole[2], strict=True):
        names = {n for n in expected if n in FIGURES or n.startswith("flow_error")}
        assert names == {n for n in line if n in FIGURES or n.startswith("flow_error")}
        for name in names:
            assert line[name] == pytest.approx(expected[name], rel=2e-3, abs=2e-4), name


def test_four_batches_of_one_row_are_one_batch_of_four(folders, whole):
    assert_is_same(run(folders, "split", 1, 4), whole)


def test_two_processes_are_one_with_twice_the_rows_even_if_they_were_cut_off(folders, whole):
    out, _, lines = run_twice(folders, "two", 2, "--stop", 2)
    assert [line["step"] for line in lines] == [1, 2]
    assert newest_checkpoint(out) == out / "checkpoint-2"
    found = run_twice(folders, "two", 2, "--resume")
    assert_is_same(found, whole)
    assert (out / "model" / "model.safetensors").exists()
    assert (out / "checkpoint-3" / "rng_state_1.pth").exists()


def test_an_empty_bin_of_the_log_is_absent(whole):
    for line in whole[2]:
        assert all(value != 0 for name, value in line.items() if name.startswith("flow_error"))
        assert "flow_error/noise_1" in line


def test_half_written_checkpoints_go_before_a_run_goes_on(tmp_path):
    for step, names in ((2, ["complete"]), (3, []), (5, [])):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in names:
            (tmp_path / f"checkpoint-{step}" / name).touch()
    arguments = RunArguments(data=tmp_path, out=tmp_path, resume=True)
    assert checkpoint_to_resume(arguments) == tmp_path / "checkpoint-2"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "gpu"}, "device 'gpu': training takes cpu or cuda"),
        ({"device": "cuda:1"}, "choose among several GPUs with CUDA_VISIBLE_DEVICES"),
        ({"accumulation": 0}, "accumulation 0 must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, change, message):
    arguments = replace(RunArguments(data=tmp_path, out=tmp_path), **change)
    with pytest.raises(ValueError, match=message):
        training_arguments(arguments, Recipe())


@pytest.mark.parametrize(
    ("flags", "is_slow"),
    [
        ("flags\t\t: fpu avx2 fma", True),
        ("flags\t\t: fpu avx2 avx512_bf16", False),
        ("flags\t\t: amx_bf16 amx_tile", False),
        ("Features\t: asimd bf16 i8mm", False),
        ("model name\t: bf16 in its name", True),
    ],
)
def test_bf16_is_warned_of_where_the_processor_emulates_it(tmp_path, monkeypatch, flags, is_slow):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(bf16, "CPU_FILE", file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bf16.warn_of_emulated_bf16("cpu")
        bf16.warn_of_emulated_bf16("cuda")
    assert ["emulated" in str(w.message) for w in caught] == [True] * is_slow
