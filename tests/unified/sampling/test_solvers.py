"""Solvers: equal to those of diffusers, of the order that they claim, and right on any matrix."""

import importlib
import math
from typing import Any

import pytest
import torch

from unified.model.flow import NOISE_PATHS, RECTIFIED, add_noise
from unified.sampling.diffusion.schedules import noise_schedule, scheduling_matrix
from unified.sampling.diffusion.solvers import SOLVERS, read_solver

diffusers: Any = importlib.import_module("diffusers")  # its types fight their own documentation
KINDS = ["autoregressive", "chunked", "full", "pyramid"]
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.is_stochastic]
STEPS = [1, 2, 3, 7, 20]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("path", list(NOISE_PATHS))
@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_an_oracle_denoiser_recovers_the_data_in_any_number_of_steps(solver, kind, steps, path):
    data = normal(2, 4, 3, 5)
    matrix = scheduling_matrix(4, noise_schedule(steps), kind, chunk_frames=2).double()
    fresh = normal(len(matrix) - 1, 2, 4, 3, 5, seed=1)
    found = SOLVERS[solver](
        lambda *_: data, normal(2, 4, 3, 5, seed=2), matrix, NOISE_PATHS[path], fresh
    )
    torch.testing.assert_close(found, data, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", DETERMINISTIC)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_solver_says_of_the_noise_is_true(solver, kind):
    """On the straight path an oracle's latents stay on the line between data and noise."""
    data, noise = normal(2, 4, 3, 5), normal(2, 4, 3, 5, seed=1)

    def oracle(noisy, levels):
        expected = add_noise(data, noise, levels[..., None, None])
        torch.testing.assert_close(noisy, expected, rtol=1e-6, atol=1e-6)
        return data

    SOLVERS[solver](oracle, noise, scheduling_matrix(4, noise_schedule(4), kind).double())


class Table:
    """The path of a diffusers scheduler: what it has at each of its steps."""

    def __init__(self, alphas, sigmas):
        self.alphas, self.sigmas = alphas, sigmas

    def alpha(self, levels):
        return self.alphas[levels.long()]

    def sigma(self, levels):
        return self.sigmas[levels.long()]

    def slopes(self, levels):
        raise NotImplementedError

    def level_of(self, ratio):
        raise NotImplementedError


def best_guess(noisy, alpha, sigma, spread=0.5):
    """The mean of the clean latents where the data are normal with this spread around 0.3."""
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    return 0.3 + gain * (noisy - 0.3 * alpha)


def theirs(scheduler, noise, scales, generator=None):
    """Runs a scheduler of diffusers; `scales` are alpha and sigma at each of its calls."""
    latents = noise
    options = {} if generator is None else {"generator": generator}
    for index, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = scales(index, timestep)
        said = best_guess(latents, alpha, sigma)
        latents = scheduler.step(said, timestep, latents, **options).prev_sample
    return latents


def ours(solver, noise, schedule, path, fresh=None):
    def denoise(noisy, levels):
        level = levels[..., None]
        return best_guess(noisy, path.alpha(level), path.sigma(level))

    return read_solver(solver)(denoise, noise[None], schedule[:, None], path, fresh)[0]


def multistep(kind, steps, **options):
    """A scheduler over a linear beta, its table as a path, and our levels: rows of the table."""
    scheduler = kind(
        num_train_timesteps=1000, beta_schedule="linear", prediction_type="sample", **options
    )
    scheduler.set_timesteps(steps)
    ratio = scheduler.sigmas.double()
    alphas = 1 / (1 + ratio.square()).sqrt()
    table = Table(alphas.flip(0), (ratio * alphas).flip(0))  # level 0 is clean
    levels = torch.arange(steps, -1, -1).double()
    return scheduler, table, levels


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("solver", "kind", "options"),
    [
        ("dpm++2m", diffusers.DPMSolverMultistepScheduler, {"lower_order_final": True}),
        ("unipc", diffusers.UniPCMultistepScheduler, {"solver_type": "bh2"}),
    ],
)
def test_solvers_of_several_steps_equal_those_of_diffusers(solver, kind, options, steps):
    scheduler, path, levels = multistep(kind, steps, final_sigmas_type="zero", **options)
    noise = normal(3, 5)
    alphas, sigmas = path.alphas.flip(0), path.sigmas.flip(0)
    expected = theirs(scheduler, noise, lambda index, _: (alphas[index], sigmas[index]))
    torch.testing.assert_close(ours(solver, noise, levels, path), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_the_stochastic_form_of_dpm_solver_equals_that_of_diffusers(steps):
    scheduler, path, levels = multistep(
        diffusers.DPMSolverMultistepScheduler,
        steps,
        algorithm_type="sde-dpmsolver++",
        final_sigmas_type="zero",
    )
    noise = normal(3, 5)
    alphas, sigmas = path.alphas.flip(0), path.sigmas.flip(0)
    generator = torch.Generator().manual_seed(7)
    fresh = torch.stack(
        [torch.randn(noise.shape, generator=generator) for _ in range(steps)]
    ).double()
    expected = theirs(
        scheduler,
        noise,
        lambda index, _: (alphas[index], sigmas[index]),
        generator.manual_seed(7),
    )
    found = ours("dpm++2m-sde", noise, levels, path, fresh[:, None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def discrete(kind, steps, **options):
    """A scheduler over single timesteps, its table as a path, and our levels."""
    scheduler = kind(
        num_train_timesteps=1000,
        beta_schedule="linear",
        prediction_type="sample",
        clip_sample=False,
        **options,
    )
    scheduler.set_timesteps(steps)
    cumulative = torch.cat([torch.ones(1), scheduler.alphas_cumprod]).double()
    table = Table(cumulative.sqrt(), (1 - cumulative).sqrt())
    levels = torch.cat([scheduler.timesteps + 1, torch.zeros(1)]).double()
    return scheduler, table, levels


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_equals_that_of_diffusers(steps, eta):
    scheduler, path, levels = discrete(
        diffusers.DDIMScheduler, steps, set_alpha_to_one=True, steps_offset=0
    )
    noise, fresh = normal(3, 5), normal(steps, 3, 5, seed=1)
    latents = noise
    for index, timestep in enumerate(scheduler.timesteps):
        level = levels[index]
        said = best_guess(latents, path.alpha(level), path.sigma(level))
        latents = scheduler.step(
            said, timestep, latents, eta=eta, variance_noise=fresh[index]
        ).prev_sample
    name = f"ddim:eta={eta}"
    found = ours(name, noise, levels, path, fresh[:, None])
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_equals_that_of_diffusers(steps):
    scheduler, path, levels = discrete(diffusers.DDPMScheduler, steps)
    noise = normal(3, 5)
    generator = torch.Generator().manual_seed(3)
    fresh = torch.stack(
        [torch.randn(noise.shape, generator=generator, dtype=torch.float64) for _ in range(steps)]
    )
    expected = theirs(
        scheduler,
        noise,
        lambda _, timestep: (path.alpha(timestep + 1), path.sigma(timestep + 1)),
        generator.manual_seed(3),
    )
    found = ours("ddpm", noise, levels, path, fresh[:, None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_the_straight_path_equals_that_of_diffusers(steps, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    levels = noise_schedule(steps, f"shifted:by={shift}").double()
    torch.testing.assert_close(scheduler.sigmas.double(), levels, rtol=1e-5, atol=1e-6)
    noise = latents = normal(3, 5)
    for index, timestep in enumerate(scheduler.timesteps):
        level = levels[index]
        clean = best_guess(latents, 1 - level, level)
        latents = scheduler.step((latents - clean) / level, timestep, latents).prev_sample
    found = ours("euler", noise, levels, RECTIFIED)
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_heun_on_the_straight_path_equals_that_of_diffusers(steps):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    noise = latents = normal(3, 5)
    for index, timestep in enumerate(scheduler.timesteps):
        level = sigmas[index]
        clean = best_guess(latents, 1 - level, level)
        latents = scheduler.step((latents - clean) / level, timestep, latents).prev_sample
    levels = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    assert len(levels) == steps + 1
    found = ours("heun", noise, levels, RECTIFIED)
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", list(NOISE_PATHS))
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        ("euler", 1),
        ("ddim", 1),
        ("heun", 2),
        ("midpoint", 2),
        ("dpm++2m", 2),
        ("unipc", 3),
        ("rk4", 4),
    ],
)
def test_the_error_falls_with_the_order_of_the_solver(solver, order, path):
    """Between levels 0.9 and 0.1, where the exact flow of normal data only rescales."""
    path = NOISE_PATHS[path]
    spread = 0.5
    levels = torch.tensor([0.9, 0.1], dtype=torch.float64)
    alpha, sigma = path.alpha(levels), path.sigma(levels)
    noise = normal(1, 64)
    scale = (alpha**2 * spread**2 + sigma**2).sqrt()
    exact = 0.3 * alpha[1] + (noise - 0.3 * alpha[0]) * scale[1] / scale[0]

    def error(steps):
        grid = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        grid = torch.cat([grid, grid[-1:]])
        waits = (torch.arange(steps + 2) <= steps).double()  # a frame that ends the matrix

        def denoise(noisy, levels):
            level = levels[..., None]
            return best_guess(noisy, path.alpha(level), path.sigma(level))

        matrix = torch.stack([grid, waits], 1)
        found = read_solver(solver)(denoise, torch.stack([noise, noise], 1), matrix, path)
        return float((found[:, 0] - exact).abs().max())

    steps = 200 if order < 4 else 24
    found = math.log2(error(steps) / error(2 * steps))
    assert order - 0.3 < found < order + 1.2, found


@pytest.mark.parametrize("solver", ["dpm++2m-sde", "ddpm", "ddim:eta=0.5"])
def test_a_stochastic_solver_draws_from_the_data_s_distribution(solver):
    """With many steps, mean and spread are those of the data: normal around 0.3."""
    noise = normal(1, 20_000)
    fresh = normal(200, 1, 1, 20_000, seed=1)
    found = ours(solver, noise, noise_schedule(200).double(), NOISE_PATHS["cosine"], fresh)
    assert abs(float(found.mean()) - 0.3) < 0.02
    assert abs(float(found.std()) - 0.5) < 0.02


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_frame_whose_level_does_not_change_is_left_alone(solver):
    noise = normal(1, 2, 3)
    matrix = torch.tensor([[1.0, 0.3], [0.5, 0.3], [0.0, 0.3]])
    found = SOLVERS[solver](
        lambda noisy, levels: torch.zeros_like(noisy), noise, matrix, RECTIFIED, normal(2, 1, 2, 3)
    )
    assert torch.equal(found[:, 1], noise[:, 1])
    assert found[:, 0].abs().max() < 1e-12


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_frame_that_waits_in_a_matrix_is_drawn_as_alone(solver):
    """A pyramid of frames that do not see each other is each frame by itself."""
    noise, levels = normal(1, 3, 5), noise_schedule(4).double()
    matrix = scheduling_matrix(3, levels, "pyramid", lag=2)
    fresh = normal(len(matrix) - 1, 1, 3, 5, seed=1)

    def denoise(noisy, level):
        return best_guess(noisy, 1 - level[..., None], level[..., None])

    together = SOLVERS[solver](denoise, noise, matrix, RECTIFIED, fresh)
    for frame in range(3):
        own = fresh[2 * frame : 2 * frame + 4, :, frame : frame + 1]
        alone = SOLVERS[solver](
            denoise, noise[:, frame : frame + 1], levels[:, None], RECTIFIED, own
        )
        torch.testing.assert_close(together[:, frame], alone[:, 0])


def test_solvers_are_named_where_one_is_unknown():
    with pytest.raises(ValueError, match="'dpm' is unknown; .*use one of euler, heun"):
        read_solver("dpm")
    with pytest.raises(ValueError, match="'ddim:eta=2': eta is '2', and must be a number from 0"):
        read_solver("ddim:eta=2")
    with pytest.raises(ValueError, match="'ddpm' adds noise at each step"):
        SOLVERS["ddpm"](lambda *_: torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(2, 1))
