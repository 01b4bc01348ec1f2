"""Schedules: time grids of one frame, and scheduling matrices of several."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unified.model.flow import NOISE_PATHS
from unified.sampling.diffusion.schedules import (
    TIME_GRIDS,
    check_timesteps,
    noise_schedule,
    scheduling_matrix,
)

KINDS = ["autoregressive", "chunked", "full", "pyramid"]


@given(
    kind=st.sampled_from(KINDS),
    num_frames=st.integers(1, 6),
    steps=st.integers(1, 6),
    chunk=st.integers(1, 3),
    lag=st.integers(1, 4),
    grid=st.sampled_from([*TIME_GRIDS, "shifted:by=3"]),
)
def test_every_matrix_goes_from_noise_to_clean_and_never_rises(
    kind, num_frames, steps, chunk, lag, grid
):
    levels = noise_schedule(steps, grid)
    matrix = scheduling_matrix(num_frames, levels, kind, chunk_frames=chunk, lag=lag)
    torch.testing.assert_close(matrix[0], torch.ones(num_frames))
    assert (matrix[-1] == 0).all()
    assert (matrix.diff(dim=0) <= 0).all()
    assert (matrix.diff(dim=1) >= 0).all()  # no frame is cleaner than the one before
    assert ((matrix.diff(dim=0) < 0).sum(0) == steps).all()


def test_the_kinds_are_what_their_names_say():
    assert (scheduling_matrix(3, noise_schedule(2), "full") == noise_schedule(2)[:, None]).all()
    matrix = scheduling_matrix(4, noise_schedule(2), "chunked", chunk_frames=2)
    assert matrix.tolist() == [
        [1, 1, 1, 1],
        [0.5, 0.5, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0.5, 0.5],
        [0] * 4,
    ]
    moving = ((matrix := scheduling_matrix(3, noise_schedule(4))) > 0) & (matrix < 1)
    assert (moving.sum(1) <= 1).all()  # autoregressive: one frame at a time


@pytest.mark.parametrize("path", list(NOISE_PATHS))
def test_karras_grid_has_the_ratios_of_its_equation(path):
    levels = noise_schedule(5, "karras", NOISE_PATHS[path]).double()
    alpha, sigma = NOISE_PATHS[path].alpha(levels), NOISE_PATHS[path].sigma(levels)
    root = [80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7)) for i in range(5)]
    expected = torch.tensor([r**7 for r in root], dtype=torch.float64)
    torch.testing.assert_close((sigma / alpha)[1:5], expected[1:], rtol=1e-3, atol=1e-5)
    assert levels[0] == 1
    assert levels[-1] == 0


def test_the_logit_normal_grid_takes_equal_shares_of_the_distribution():
    levels = noise_schedule(4, "logit_normal:mean=0.5,std=2").double()
    logits = torch.logit(levels[1:-1])
    share = torch.distributions.Normal(0.5, 2.0).cdf(logits)
    torch.testing.assert_close(share, torch.tensor([0.75, 0.5, 0.25]).double(), atol=1e-5, rtol=0)


def test_levels_by_hand_fall_from_1_to_0():
    assert check_timesteps(torch.tensor([1.0, 0.5, 0.0])) == (1.0, 0.5, 0.0)
    for wrong in ([1, 0.5], [0.9, 0], [1, 0.2, 0.5, 0], [1], "10", [1, True, 0], 3, [1, None, 0]):
        with pytest.raises(ValueError, match="must fall from 1"):
            check_timesteps(wrong)


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="num_inference_steps=0 must be at least 1"):
        noise_schedule(0)
    with pytest.raises(ValueError, match="'zigzag' is unknown; use one of full, autoregressive"):
        scheduling_matrix(2, noise_schedule(2), "zigzag")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'karas' is unknown; did you mean 'karras'"):
        noise_schedule(2, "karas")
    with pytest.raises(ValueError, match="by is '0', and must be from 0.001 to 1000"):
        noise_schedule(2, "shifted:by=0")
    with pytest.raises(ValueError, match="uniform has no settings"):
        noise_schedule(2, "uniform:by=2")
    with pytest.raises(ValueError, match="by is given twice"):
        noise_schedule(2, "shifted:by=2,by=3")
