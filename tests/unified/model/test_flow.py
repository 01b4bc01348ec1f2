"""Flow: on every path, what is predicted can always be turned into clean latents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unified.model.flow import (
    NOISE_PATHS,
    NoiseSchedule,
    add_noise,
    loss_weight,
    noise_of,
    shift_levels,
    to_sample,
    training_target,
    velocity_of,
)

TYPES = ["sample", "velocity", "epsilon", "v"]
PATHS = list(NOISE_PATHS)


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", TYPES)
@given(level=st.floats(0, 0.99))
def test_the_target_of_every_prediction_type_implies_the_clean_latents(kind, path, level):
    latents, noise = drawn()
    path = NOISE_PATHS[path]
    levels = torch.full((2, 3, 1), level, dtype=torch.float64)
    noisy = add_noise(latents, noise, levels, path)
    target = training_target(latents, noise, levels, kind, path)
    torch.testing.assert_close(to_sample(target, noisy, levels, kind, path), latents)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["sample", "velocity", "v"])
def test_pure_noise_still_implies_the_clean_latents(kind, path):
    latents, noise = drawn()
    levels = torch.ones(2, 3, 1, dtype=torch.float64)
    noisy = add_noise(latents, noise, levels, NOISE_PATHS[path])
    target = training_target(latents, noise, levels, kind, NOISE_PATHS[path])
    found = to_sample(target, noisy, levels, kind, NOISE_PATHS[path])
    torch.testing.assert_close(found, latents)


def test_an_epsilon_at_pure_noise_stays_finite():
    latents, noise = drawn()
    levels = torch.ones(2, 3, 1, dtype=torch.float64)
    assert torch.isfinite(to_sample(latents, noise, levels, "epsilon")).all()


@pytest.mark.parametrize("path", PATHS)
@given(level=st.floats(0.01, 0.99))
def test_the_velocity_is_how_the_noisy_latents_change_with_the_level(path, level):
    latents, noise = drawn()
    path, step = NOISE_PATHS[path], 1e-6
    levels = torch.full((2, 3, 1), level, dtype=torch.float64)
    later, earlier = (add_noise(latents, noise, levels + x, path) for x in (step, -step))
    noisy = add_noise(latents, noise, levels, path)
    found = velocity_of(latents, noisy, levels, path)
    torch.testing.assert_close(found, (later - earlier) / (2 * step), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(noise_of(latents, noisy, levels, path), noise)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@given(level=st.floats(0, 1))
def test_a_path_that_preserves_variance_does(path, level):
    levels = torch.tensor(level, dtype=torch.float64)
    alpha, sigma = NOISE_PATHS[path].alpha(levels), NOISE_PATHS[path].sigma(levels)
    assert float(alpha**2 + sigma**2) == pytest.approx(1)


@pytest.mark.parametrize("path", PATHS)
@given(level=st.floats(0.01, 0.99))
def test_a_level_is_told_from_its_ratio_of_noise_to_signal(path, level):
    path, levels = NOISE_PATHS[path], torch.tensor(level, dtype=torch.float64)
    found = path.level_of(path.sigma(levels) / path.alpha(levels))
    torch.testing.assert_close(found, levels, rtol=1e-6, atol=1e-9)


def test_the_linear_path_is_the_limit_of_ddpm_s_schedule():
    """Of a thousand steps with beta from 1e-4 to 0.02 (arXiv:2006.11239)."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = (1 - betas).cumprod(0).sqrt()
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    found = NOISE_PATHS["linear"].alpha(levels)
    torch.testing.assert_close(found, expected, rtol=0.06, atol=2e-3)


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
    message = "'score' is unknown; use sample, velocity, epsilon or v"
    with pytest.raises(ValueError, match=message):
        training_target(latents, noise, latents, "score")
    with pytest.raises(ValueError, match=message):
        to_sample(latents, noise, latents, "score")
    with pytest.raises(ValueError, match="'min_snr' is unknown; use uniform or ramp"):
        loss_weight(latents, "min_snr")
