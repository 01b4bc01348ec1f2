"""Distillation: what a large step shall say, and that the model before is the model after."""

import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_pretrain import CutOffError, cut_off_after
from train import pretrain
from train.distill import (
    LEARNED,
    SMALLEST,
    DistillArguments,
    draw_step,
    end_of_path,
    train,
    two_half_steps,
    with_step_sizes,
)
from unified.modeling import UnifiedModel


def analytic(noisy, levels, sizes):
    """The best guess where the data are normal around 0.3 with spread 0.5."""
    gain = (1 - levels) * 0.25 / ((1 - levels) ** 2 * 0.25 + levels**2)
    return 0.3 + gain * (noisy - 0.3 * (1 - levels))


def euler(see, noisy, levels, size, steps):
    for _ in range(steps):
        clean = see(noisy, levels, torch.zeros_like(levels))
        noisy = noisy - size / steps * (noisy - clean) / levels
        levels = levels - size / steps
    return noisy


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def test_one_step_to_the_target_leads_where_two_half_steps_lead():
    noisy = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels, sizes = column(1.0, 0.75, 0.5), column(1.0, 0.25, 0.5)
    target = two_half_steps(analytic, noisy, levels, sizes, SMALLEST)
    led = noisy - sizes * (noisy - target) / levels
    torch.testing.assert_close(led, euler(analytic, noisy, levels, sizes, 2))


def test_a_teacher_is_told_half_the_size_unless_it_is_the_smallest():
    told = []

    def see(noisy, levels, sizes):
        told.append(sizes.flatten().tolist())
        return noisy

    two_half_steps(see, torch.zeros(1, 3, 1), column(1, 1, 1), column(1, 0.5, 0.25), SMALLEST)
    assert told == [[0.5, 0.25, 0.0]] * 2


def test_the_end_of_a_path_is_what_is_said_a_small_step_further():
    noisy = torch.ones(1, 2, 1, dtype=torch.float64)
    seen = []

    def see(noisy, levels, sizes):
        seen.append((noisy.flatten().tolist(), levels.flatten().tolist(), sizes.flatten().tolist()))
        return noisy / 2

    found = end_of_path(see, noisy, column(1.0, SMALLEST), column(1.0, SMALLEST), SMALLEST)
    nearer = 1 - SMALLEST * 0.5
    assert seen[1][0][0] == pytest.approx(nearer)
    assert seen[1][1][0] == seen[1][2][0] == 1 - SMALLEST
    torch.testing.assert_close(found.flatten(), torch.tensor([nearer / 2, 0.5]).double())


@pytest.mark.parametrize("method", list(LEARNED))
def test_steps_that_are_learned_are_those_of_equal_steps(method):
    generator = torch.Generator().manual_seed(0)
    steps = {draw_step(method, i / 600, generator) for i in range(600)}
    assert all(0 < size <= level <= 1 for level, size in steps)
    for count in LEARNED[method]:
        wanted = {(1 - i / count, 1 / count) for i in range(count)} - {(0.0, 1.0)}
        if count in (1, 2, 4):
            assert wanted <= steps
    if method in ("shortcut", "progressive"):
        assert {size for _, size in steps} == {1.0, 0.5, 0.25}


def test_progressive_distillation_learns_the_smallest_steps_first():
    generator = torch.Generator().manual_seed(0)
    for progress, size in ((0.0, 0.25), (0.5, 0.5), (0.9, 1.0)):
        assert {draw_step("progressive", progress, generator)[1] for _ in range(20)} == {size}


@pytest.fixture
def trained(arguments):
    """A trained model, and how to distil it."""
    folder = pretrain.train(replace(arguments, out=arguments.out / "before"))
    return folder, DistillArguments(
        data=arguments.data,
        out=arguments.out / "after",
        init=str(folder),
        recipe=arguments.recipe,
        save_seconds=0,
        log_steps=1,
        workers=0,
        sample_steps=0,
    )


@torch.no_grad()
def test_a_model_that_may_be_told_step_sizes_is_bit_by_bit_the_one_before(trained):
    folder, _ = trained
    before, after = UnifiedModel.from_pretrained(folder), with_step_sizes(str(folder))
    config = before.config
    ids = torch.tensor([[config.frame_token_id, *[config.latent_token_id] * config.frame_tokens]])
    latents = torch.randn(*ids.shape, config.latent_size)
    levels, sizes = torch.full(ids.shape, 0.7), torch.full(ids.shape, 0.5)
    expected = before(ids, latents, noise_levels=levels).prediction
    found = after(ids, latents, noise_levels=levels, step_sizes=sizes).prediction
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", list(LEARNED))
def test_a_distilled_model_has_begun_to_listen_and_plays(trained, method):
    _, arguments = trained
    model = UnifiedModel.from_pretrained(train(replace(arguments, method=method)))
    assert model.config.learned_steps == LEARNED[method]
    assert model.step_size_embedding is not None
    assert model.step_size_embedding.out.weight.any()
    ids = torch.tensor([[model.config.task_token_id, 5]])
    for steps in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error" if steps in LEARNED[method] else "ignore")
            reply = model.generate(ids, query="forward", seed=0, num_inference_steps=steps)
        assert torch.isfinite(reply.latents[0]).all()


@pytest.mark.parametrize("method", ["shortcut", "progressive"])
def test_a_distillation_that_was_cut_off_and_resumed_is_the_one_that_was_not(
    trained, method, monkeypatch
):
    _, arguments = trained
    whole = replace(arguments, method=method, out=arguments.out / "whole")
    expected = load_file(train(whole) / "model.safetensors")
    arguments = replace(arguments, method=method, out=arguments.out / "cut")
    with monkeypatch.context() as patch:
        cut_off_after(2, patch)
        with pytest.raises(CutOffError):
            train(arguments)
    found = load_file(train(replace(arguments, resume=True)) / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_what_cannot_be_distilled_is_refused(trained):
    folder, arguments = trained
    with pytest.raises(ValueError, match="share=0 must be above 0"):
        train(replace(arguments, share=0))
    with pytest.raises(ValueError, match="recipe 'tinny' is unknown"):
        train(replace(arguments, recipe="tinny"))
    model = UnifiedModel.from_pretrained(folder)
    model.config.noise_path = "cosine"
    model.save_pretrained(arguments.out / "curved")
    with pytest.raises(ValueError, match="the straight path, 'rectified'"):
        with_step_sizes(str(arguments.out / "curved"))
