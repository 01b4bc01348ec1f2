"""Flow: paths from data to noise, noise levels, what the network predicts, loss weights.

A noise level s runs from 0, clean, to 1, pure noise, one per frame. A path says what lies between:
`noisy = alpha(s) latents + sigma(s) noise`, and the velocity is its derivative by s.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class NoisePath(Protocol):
    """`noisy = alpha(s) latents + sigma(s) noise`. Levels are tensors of any shape."""

    def alpha(self, levels: Tensor) -> Tensor:
        """Share of the latents."""
        ...

    def sigma(self, levels: Tensor) -> Tensor:
        """Share of the noise."""
        ...

    def slopes(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of alpha and sigma by the level."""
        ...

    def level_of(self, ratio: Tensor) -> Tensor:
        """The level at which sigma / alpha is this."""
        ...


class RectifiedPath:
    """A straight line, `(1 - s) latents + s noise` (rectified flow, arXiv:2209.03003)."""

    def alpha(self, levels: Tensor) -> Tensor:
        """`1 - s`."""
        return 1 - levels

    def sigma(self, levels: Tensor) -> Tensor:
        """`s`."""
        return levels

    def slopes(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """-1 and 1: the velocity is `noise - latents` at every level."""
        return -torch.ones_like(levels), torch.ones_like(levels)

    def level_of(self, ratio: Tensor) -> Tensor:
        """`ratio / (1 + ratio)`."""
        return ratio / (1 + ratio)


class LinearPath:
    """Variance preserving, with a linear beta from 0.1 to 20 (arXiv:2011.13456, equation 33).

    `alpha(s)^2 = exp(-B(s))` with `B(s) = 0.1 s + 19.9 s^2 / 2`, the limit of DDPM's schedule
    (arXiv:2006.11239). At level 1 a share of 0.0066 of the latents is left.
    """

    least, most = 0.1, 20.0

    def _integral(self, levels: Tensor) -> Tensor:
        return levels * (self.least + (self.most - self.least) * levels / 2)

    def alpha(self, levels: Tensor) -> Tensor:
        """`exp(-B(s) / 2)`."""
        return torch.exp(-self._integral(levels) / 2)

    def sigma(self, levels: Tensor) -> Tensor:
        """`sqrt(1 - exp(-B(s)))`."""
        return torch.sqrt(-torch.expm1(-self._integral(levels)))

    def slopes(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """`-beta alpha / 2` and `beta alpha^2 / (2 sigma)`, whose limit at 0 is infinite."""
        levels = levels.clamp(min=1e-5)
        beta, alpha = self.least + (self.most - self.least) * levels, self.alpha(levels)
        return -beta * alpha / 2, beta * alpha.square() / (2 * self.sigma(levels))

    def level_of(self, ratio: Tensor) -> Tensor:
        """Where `B(s) = log(1 + ratio^2)`, at most 1."""
        rise, total = self.most - self.least, torch.log1p(ratio.square())
        levels = (torch.sqrt(self.least**2 + 2 * rise * total) - self.least) / rise
        return levels.clamp(max=1)


class CosinePath:
    """Variance preserving, `cos(pi s / 2) latents + sin(pi s / 2) noise` (arXiv:2202.00512)."""

    def alpha(self, levels: Tensor) -> Tensor:
        """`cos(pi s / 2)`, exactly 0 at level 1."""
        return torch.sin(math.pi / 2 * (1 - levels))

    def sigma(self, levels: Tensor) -> Tensor:
        """`sin(pi s / 2)`."""
        return torch.sin(math.pi / 2 * levels)

    def slopes(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """`-pi / 2 sigma` and `pi / 2 alpha`."""
        return -math.pi / 2 * self.sigma(levels), math.pi / 2 * self.alpha(levels)

    def level_of(self, ratio: Tensor) -> Tensor:
        """`2 / pi atan(ratio)`."""
        return 2 / math.pi * torch.atan(ratio)


RECTIFIED = RectifiedPath()
NOISE_PATHS: dict[str, NoisePath] = {
    "rectified": RECTIFIED,
    "linear": LinearPath(),
    "cosine": CosinePath(),
}


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """How training draws noise levels.

    With compact latents, a noisy frame still shows the answer at most levels. Only at pure noise
    does the model have to use the history and the action. Hence a share of the frames has level 1.
    """

    pure_noise_share: float = 0.4
    """Probability of level 1."""
    distribution: Literal["uniform", "logit_normal"] = "uniform"
    """How other levels are drawn; logit-normal as in Stable Diffusion 3 (arXiv:2403.03206)."""
    mean: float = 0.0
    """Mean of the logit-normal."""
    std: float = 1.0
    """Standard deviation of the logit-normal."""
    shift: float = 1.0
    """Moves levels towards noise when above 1, see `shift_levels`."""
    context_share: float = 0.0
    """Probability that a clean frame gets a little noise, with its level as an input."""
    context_max: float = 0.0
    """Greatest level of such a frame, drawn uniformly from 0 up."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Levels of noisy frames, float32 in [0, 1]."""
        if self.distribution == "uniform":
            levels = torch.rand(shape, generator=generator)
        else:
            normal = torch.randn(shape, generator=generator)
            levels = torch.sigmoid(self.mean + self.std * normal)
        levels = shift_levels(levels, self.shift)
        is_pure = torch.rand(shape, generator=generator) < self.pure_noise_share
        return torch.where(is_pure, 1.0, levels)

    def sample_context(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Levels of the clean stream's frames, float32 in [0, context_max]."""
        levels = torch.rand(shape, generator=generator) * self.context_max
        is_noised = torch.rand(shape, generator=generator) < self.context_share
        return torch.where(is_noised, levels, 0.0)


def shift_levels(levels: Tensor, shift: float) -> Tensor:
    """Moves levels towards noise (shift > 1) or data, ends fixed (arXiv:2403.03206, eq. 23).

    >>> shift_levels(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist()
    [0.0, 0.75, 1.0]
    """
    return shift * levels / (1 + (shift - 1) * levels)


def add_noise(
    latents: Tensor, noise: Tensor, levels: Tensor, path: NoisePath = RECTIFIED
) -> Tensor:
    """`alpha latents + sigma noise`; levels broadcast against latents."""
    return path.alpha(levels) * latents + path.sigma(levels) * noise


def training_target(
    latents: Tensor,
    noise: Tensor,
    levels: Tensor,
    prediction_type: str,
    path: NoisePath = RECTIFIED,
) -> Tensor:
    """What a network of this prediction type should return.

    Args:
        latents: `(..., c)`, clean.
        noise: `(..., c)`, standard normal.
        levels: Broadcasts against both, in [0, 1].
        prediction_type: `sample` is the latents, `epsilon` the noise, `velocity` the derivative of
            the noisy latents by the level, and `v` is `alpha noise - sigma latents`
            (arXiv:2202.00512).
        path: What lies between data and noise.
    """
    if prediction_type == "sample":
        return latents
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "velocity":
        alpha_slope, sigma_slope = path.slopes(levels)
        return alpha_slope * latents + sigma_slope * noise
    if prediction_type == "v":
        return path.alpha(levels) * noise - path.sigma(levels) * latents
    raise _unknown(prediction_type)


def to_sample(
    prediction: Tensor,
    noisy: Tensor,
    levels: Tensor,
    prediction_type: str,
    path: NoisePath = RECTIFIED,
) -> Tensor:
    """The clean latents that a prediction implies: two linear equations, solved for the latents.

    Args:
        prediction: `(..., c)`, the network's output.
        noisy: `(..., c)`, what the network saw.
        levels: Broadcasts against both, in [0, 1].
        prediction_type: See `training_target`. An epsilon says nothing where alpha is 0, so the
            division is clamped there.
        path: As in training.
    """
    if prediction_type == "sample":
        return prediction
    alpha, sigma = path.alpha(levels), path.sigma(levels)
    if prediction_type == "epsilon":
        return (noisy - sigma * prediction) / alpha.clamp(min=1e-3)
    if prediction_type == "v":
        return (alpha * noisy - sigma * prediction) / (alpha.square() + sigma.square())
    if prediction_type == "velocity":
        alpha_slope, sigma_slope = path.slopes(levels)
        turned = sigma_slope * alpha - sigma * alpha_slope
        return (sigma_slope * noisy - sigma * prediction) / turned
    raise _unknown(prediction_type)


def noise_of(sample: Tensor, noisy: Tensor, levels: Tensor, path: NoisePath = RECTIFIED) -> Tensor:
    """The noise in noisy latents, given the clean ones: `(noisy - alpha sample) / sigma`."""
    return (noisy - path.alpha(levels) * sample) / path.sigma(levels).clamp(min=1e-6)


def velocity_of(
    sample: Tensor, noisy: Tensor, levels: Tensor, path: NoisePath = RECTIFIED
) -> Tensor:
    """The derivative of the noisy latents by the level, given the clean ones."""
    if isinstance(path, RectifiedPath):  # the same with less rounding
        return (noisy - sample) / levels.clamp(min=1e-6)
    alpha_slope, sigma_slope = path.slopes(levels)
    return alpha_slope * sample + sigma_slope * noise_of(sample, noisy, levels, path)


def loss_weight(levels: Tensor, weighting: str) -> Tensor:
    """Weight of the flow loss at each level: 1, or 0.9 (1 - s) + 0.1 (arXiv:2509.24527)."""
    if weighting == "uniform":
        return torch.ones_like(levels)
    if weighting == "ramp":
        return 0.9 * (1 - levels) + 0.1
    raise ValueError(f"flow_loss_weighting {weighting!r} is unknown; use uniform or ramp")


def _unknown(prediction_type: str) -> ValueError:
    return ValueError(
        f"prediction_type {prediction_type!r} is unknown; use sample, velocity, epsilon or v"
    )
