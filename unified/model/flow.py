"""Rectified flow: noise levels, what the network predicts, loss weights.

A noise level s runs from 0, clean, to 1, pure noise, one per frame (arXiv:2209.03003):
`noisy = (1 - s) latents + s noise` and `velocity = noise - latents`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


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


def add_noise(latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """`(1 - s) latents + s noise`; levels broadcast against latents."""
    return (1 - levels) * latents + levels * noise


def training_target(latents: Tensor, noise: Tensor, prediction_type: str) -> Tensor:
    """What a network of this prediction type should return."""
    if prediction_type == "sample":
        return latents
    if prediction_type == "velocity":
        return noise - latents
    if prediction_type == "epsilon":
        return noise
    raise _unknown(prediction_type)


def to_sample(prediction: Tensor, noisy: Tensor, levels: Tensor, prediction_type: str) -> Tensor:
    """The clean latents that a prediction implies.

    Args:
        prediction: `(..., c)`, the network's output.
        noisy: `(..., c)`, what the network saw.
        levels: Broadcasts against both, in [0, 1].
        prediction_type: sample, velocity or epsilon. An epsilon says nothing at level 1, where
            the division is clamped.
    """
    if prediction_type == "sample":
        return prediction
    if prediction_type == "velocity":
        return noisy - levels * prediction
    if prediction_type == "epsilon":
        return (noisy - levels * prediction) / (1 - levels).clamp(min=1e-3)
    raise _unknown(prediction_type)


def velocity_of(sample: Tensor, noisy: Tensor, levels: Tensor) -> Tensor:
    """`noise - latents`, from the clean latents and the noisy ones: `(noisy - sample) / s`."""
    return (noisy - sample) / levels.clamp(min=1e-6)


def loss_weight(levels: Tensor, weighting: str) -> Tensor:
    """Weight of the flow loss at each level: 1, or 0.9 (1 - s) + 0.1 (arXiv:2509.24527)."""
    if weighting == "uniform":
        return torch.ones_like(levels)
    if weighting == "ramp":
        return 0.9 * (1 - levels) + 0.1
    raise ValueError(f"flow_loss_weighting {weighting!r} is unknown; use uniform or ramp")


def _unknown(prediction_type: str) -> ValueError:
    return ValueError(
        f"prediction_type {prediction_type!r} is unknown; use sample, velocity or epsilon"
    )
