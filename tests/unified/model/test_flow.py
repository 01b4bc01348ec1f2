"""Rectified flow: what is predicted can always be turned into clean latents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unified.model.flow import (
    NoiseSchedule,
    add_noise,
    loss_weight,
    shift_levels,
    to_sample,
    training_target,
    velocity_of,
)

TYPES = ["sample", "velocity", "epsilon"]


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("kind", TYPES)
@given(level=st.floats(0, 0.99))
def test_the_target_of_every_prediction_type_implies_the_clean_latents(kind, level):
    latents, noise = drawn()
    levels = torch.full((2, 3, 1), level, dtype=torch.float64)
    noisy = add_noise(latents, noise, levels)
    target = training_target(latents, noise, kind)
    torch.testing.assert_close(to_sample(target, noisy, levels, kind), latents)


@pytest.mark.parametrize("kind", ["sample", "velocity"])
def test_pure_noise_still_implies_the_clean_latents(kind):
    latents, noise = drawn()
    levels = torch.ones(2, 3, 1, dtype=torch.float64)
    target = training_target(latents, noise, kind)
    torch.testing.assert_close(to_sample(target, noise, levels, kind), latents)


def test_an_epsilon_at_pure_noise_stays_finite():
    latents, noise = drawn()
    levels = torch.ones(2, 3, 1, dtype=torch.float64)
    assert torch.isfinite(to_sample(latents, noise, levels, "epsilon")).all()


@given(level=st.floats(0.01, 1))
def test_the_velocity_is_noise_minus_latents_at_every_level(level):
    latents, noise = drawn()
    levels = torch.full((2, 3, 1), level, dtype=torch.float64)
    found = velocity_of(latents, add_noise(latents, noise, levels), levels)
    torch.testing.assert_close(found, noise - latents)


def test_level_0_is_clean_and_level_1_is_pure_noise():
    latents, noise = drawn()
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert torch.equal(add_noise(latents, noise, zero), latents)
    assert torch.equal(add_noise(latents, noise, one), noise)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_a_share_of_levels_is_pure_noise_and_the_rest_lies_between(distribution):
    schedule = NoiseSchedule(pure_noise_share=0.3, distribution=distribution, shift=2.0)
    levels = schedule.sample((4000,), torch.Generator().manual_seed(0))
    assert abs((levels == 1).float().mean() - 0.3) < 0.03
    assert (levels >= 0).all()
    again = schedule.sample((4000,), torch.Generator().manual_seed(0))
    assert torch.equal(levels, again)


def test_a_share_of_context_frames_is_noised_lightly():
    schedule = NoiseSchedule(context_share=0.25, context_max=0.1)
    levels = schedule.sample_context((4000,), torch.Generator().manual_seed(0))
    assert abs((levels > 0).float().mean() - 0.25) < 0.03
    assert levels.max() <= 0.1
    assert not NoiseSchedule().sample_context((9,), torch.Generator()).any()


@given(shift=st.floats(0.2, 5))
def test_shifting_keeps_the_order_and_both_ends(shift):
    levels = shift_levels(torch.linspace(0, 1, 20), shift)
    assert levels[0] == 0
    torch.testing.assert_close(levels[-1], torch.tensor(1.0))
    assert (levels.diff() > 0).all()


def test_loss_weights_are_one_or_dreamers_ramp():
    levels = torch.tensor([0.0, 0.5, 1.0])
    assert loss_weight(levels, "uniform").tolist() == [1, 1, 1]
    torch.testing.assert_close(loss_weight(levels, "ramp"), torch.tensor([1.0, 0.55, 0.1]))


def test_unknown_words_are_refused():
    latents, noise = drawn()
    with pytest.raises(ValueError, match="'v' is unknown; use sample, velocity or epsilon"):
        training_target(latents, noise, "v")
    with pytest.raises(ValueError, match="'v' is unknown; use sample, velocity or epsilon"):
        to_sample(latents, noise, latents, "v")
    with pytest.raises(ValueError, match="'min_snr' is unknown; use uniform or ramp"):
        loss_weight(latents, "min_snr")
