"""Scheduling matrices, and solvers that an oracle leads back to the data."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unified.model.flow import add_noise, velocity_of
from unified.sampling.sampler import (
    SOLVERS,
    noise_schedule,
    sample_euler,
    sample_heun,
    scheduling_matrix,
)

KINDS = ["autoregressive", "chunked", "full", "pyramid"]


@given(
    kind=st.sampled_from(KINDS),
    num_frames=st.integers(1, 6),
    steps=st.integers(1, 6),
    chunk=st.integers(1, 3),
    lag=st.integers(1, 4),
    shift=st.floats(0.5, 3),
)
def test_every_matrix_goes_from_noise_to_clean_and_never_rises(
    kind, num_frames, steps, chunk, lag, shift
):
    matrix = scheduling_matrix(num_frames, steps, kind, chunk_frames=chunk, lag=lag, shift=shift)
    torch.testing.assert_close(matrix[0], torch.ones(num_frames))
    assert (matrix[-1] == 0).all()
    assert (matrix.diff(dim=0) <= 0).all()
    assert (matrix.diff(dim=1) >= 0).all()  # no frame is cleaner than the one before
    assert ((matrix.diff(dim=0) < 0).sum(0) == steps).all()


def test_the_kinds_are_what_their_names_say():
    assert (scheduling_matrix(3, 2, "full") == noise_schedule(2)[:, None]).all()
    matrix = scheduling_matrix(4, 2, "chunked", chunk_frames=2)
    assert matrix.tolist() == [
        [1, 1, 1, 1],
        [0.5, 0.5, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0.5, 0.5],
        [0] * 4,
    ]
    moving = ((matrix := scheduling_matrix(3, 4)) > 0) & (matrix < 1)
    assert (moving.sum(1) <= 1).all()  # autoregressive: one frame at a time


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_an_oracle_denoiser_recovers_the_data_in_any_number_of_steps(solver, kind, steps):
    generator = torch.Generator().manual_seed(steps)
    data, noise = torch.randn(2, 2, 4, 3, 5, generator=generator, dtype=torch.float64)
    matrix = scheduling_matrix(4, steps, kind, chunk_frames=2)
    seen = []

    def oracle(noisy, levels):
        # What the solver says of the noise is true.
        expected = add_noise(data, noise, levels[..., None, None])
        torch.testing.assert_close(noisy, expected, rtol=1e-6, atol=1e-6)
        seen.append(levels)
        return data

    found = SOLVERS[solver](oracle, noise, matrix)
    torch.testing.assert_close(found, data, rtol=1e-6, atol=1e-6)
    assert len(seen) >= len(matrix) - 1


def errors(solver, counts):
    """Distance from the exact solution where the best guess of the data depends on the noise.

    For data ~ N(0, a^2) the best guess is a linear function, and the flow only rescales.
    """
    a = 0.5
    noise = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(noisy, levels):
        s = levels[..., None]
        return noisy * (1 - s) * a**2 / ((1 - s) ** 2 * a**2 + s**2)

    exact = a * noise
    return [
        float((solver(denoise, noise, noise_schedule(n).double()[:, None]) - exact).abs().max())
        for n in counts
    ]


def test_euler_is_first_order_and_heun_is_better():
    euler, heun = errors(sample_euler, [16, 32, 64]), errors(sample_heun, [16, 32, 64])
    assert 1.8 < euler[1] / euler[2] < 2.2
    assert heun[0] < euler[0] / 4
    assert heun[1] / heun[2] > 3


def test_a_frame_whose_level_does_not_change_is_left_alone():
    noise = torch.randn(1, 2, 3)
    matrix = torch.tensor([[1.0, 0.3], [0.5, 0.3], [0.0, 0.3]])
    for solver in SOLVERS.values():
        found = solver(lambda noisy, levels: torch.zeros_like(noisy), noise, matrix)
        assert torch.equal(found[:, 1], noise[:, 1])
        assert not found[:, 0].any()


def test_velocities_of_clean_frames_stay_finite():
    zero = torch.zeros(2)
    assert torch.isfinite(velocity_of(zero, zero + 1, zero)).all()


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="num_inference_steps=0 must be at least 1"):
        noise_schedule(0)
    with pytest.raises(ValueError, match="'zigzag' is unknown; use one of full, autoregressive"):
        scheduling_matrix(2, 2, "zigzag")  # pyright: ignore[reportArgumentType]
