"""A run that is cut off and resumed is the run that was not; bad runs stop with a word."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from train import pretrain
from train.pretrain import train
from train.trainer import SaveByTime, UnifiedTrainer, newest_checkpoint
from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel

ROOT = Path(__file__).parents[2]


class CutOffError(Exception):
    """Stands for a power failure."""


def cut_off_after(step, monkeypatch):
    """Ends the run as soon as the checkpoint of a step is complete."""
    save = SaveByTime.on_save

    def on_save(self, args, state, control, **kwargs):
        save(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise CutOffError

    monkeypatch.setattr(SaveByTime, "on_save", on_save)


def test_the_average_of_a_short_run_forgets_where_it_began():
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    average = pretrain.AveragedWeights(model, decay=0.998)  # pyright: ignore[reportArgumentType]
    for value in (0.0, *[1.0] * 20):
        model.weight.fill_(value)
        average.on_step_end(None, None, None, model=model)
    found: Any = average.average.module.weight
    assert (found > 0.99).all()
    assert (found < 1).all()


def test_four_steps_are_two_steps_and_two_more_after_a_resume(arguments, tmp_path, monkeypatch):
    whole = replace(arguments, out=tmp_path / "whole")
    train(whole)
    with monkeypatch.context() as patch:
        cut_off_after(2, patch)
        with pytest.raises(CutOffError):
            train(arguments)
    latest = newest_checkpoint(arguments.out)
    assert latest is not None
    assert latest.name == "checkpoint-2"
    half_written = arguments.out / "checkpoint-3"
    half_written.mkdir()  # the next one was being written
    train(replace(arguments, resume=True))
    for name in ("checkpoint-4/model.safetensors", "checkpoint-4/ema.safetensors"):
        expected, found = load_file(whole.out / name), load_file(arguments.out / name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), (name, key)
    logs = [
        json.loads((run.out / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
        for run in (whole, arguments)
    ]
    names = ("step", "loss", "token_loss", "flow_loss", "grad_norm", "learning_rate")
    kept = [[{name: log.get(name) for name in names} for log in history] for history in logs]
    assert kept[0] == kept[1]
    assert [log["step"] for log in kept[0]] == [1, 2, 3, 4]
    assert any(name.startswith("flow_error/noise_") for name in logs[0][0])


def test_what_a_run_leaves_is_a_model_and_its_processor(arguments):
    out = train(replace(arguments, steps=1))
    model, processor = UnifiedModel.from_pretrained(out), UnifiedProcessor.from_pretrained(out)
    assert model.config.latent_channels == 4
    assert processor.config_fields()["vocab_size"] == model.config.vocab_size
    average = load_file(arguments.out / "checkpoint-1" / "ema.safetensors")
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(average[name], tensor), name
    again = train(replace(arguments, steps=1, init=str(out), out=arguments.out / "second"))
    assert (again / "model.safetensors").exists()


def test_a_run_refuses_a_folder_that_holds_another(arguments):
    train(replace(arguments, steps=1))
    with pytest.raises(ValueError, match="checkpoint-1 of an earlier run; add --resume"):
        train(arguments)


def test_a_loss_that_is_not_finite_stops_the_run(arguments, monkeypatch):
    monkeypatch.setattr(
        UnifiedTrainer, "_record", lambda *_: pytest.fail("a NaN loss must not be used")
    )
    monkeypatch.setattr(
        UnifiedModel,
        "embed",
        lambda self, ids, noisy, levels, layout, sizes: self.latent_in(noisy) * torch.nan,
    )
    with pytest.raises(ValueError, match=r"the loss is nan at step 0; lower the learning rate"):
        train(arguments)
    assert newest_checkpoint(arguments.out) is None


def test_latents_of_another_codec_are_refused(arguments, other_codec, tmp_path):
    other_codec.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="with the codec you train with"):
        train(replace(arguments, codec=tmp_path / "other"))


def test_data_without_latents_are_refused(arguments, folders, tmp_path):
    shutil.copytree(folders / "data", tmp_path / "data")
    for name in ("latents.npy", "latents.json"):
        (tmp_path / "data" / name).unlink()
    with pytest.raises(ValueError, match="has no latents; write them with"):
        train(replace(arguments, data=tmp_path / "data"))


def test_an_unknown_recipe_is_refused(arguments):
    with pytest.raises(ValueError, match="'atari' is unknown; use one of babyai"):
        train(replace(arguments, recipe="atari"))


def test_bad_input_ends_the_command_line_with_status_2(monkeypatch, tmp_path):
    folder = str(tmp_path / "nowhere")
    command = ["pretrain", "--data", folder, "--codec", folder, "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stopped:
        pretrain.main()
    assert stopped.value.code == 2
