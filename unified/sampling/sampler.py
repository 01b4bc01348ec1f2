"""Sampling latents: a scheduling matrix of noise levels, and solvers that walk it.

The matrix has one row per denoise step boundary and one column per frame (Diffusion Forcing,
arXiv:2407.01392). Autoregressive, chunked, full-sequence and pyramid sampling are matrices, not
code paths: a frame whose level does not change from one row to the next is left alone.

Letters: B batch, T frames, S denoise steps.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unified.model.flow import shift_levels, velocity_of

Denoise = Callable[[Tensor, Tensor], Tensor]
"""From `(B, T, ...)` noisy latents and `(B, T)` levels to `(B, T, ...)` clean ones."""

ScheduleKind = Literal["autoregressive", "chunked", "full", "pyramid"]


def noise_schedule(num_inference_steps: int, shift: float = 1.0) -> Tensor:
    """Levels from 1 to 0 in equal steps, `(S + 1,)` float32, then shifted.

    >>> noise_schedule(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1")
    return shift_levels(torch.linspace(1.0, 0.0, num_inference_steps + 1), shift)


def scheduling_matrix(
    num_frames: int,
    num_inference_steps: int,
    kind: ScheduleKind = "autoregressive",
    *,
    chunk_frames: int = 1,
    lag: int = 1,
    shift: float = 1.0,
) -> Tensor:
    """Noise level of every frame at every step boundary, `(rows, T)` float32, from 1s to 0s.

    Args:
        num_frames: T.
        num_inference_steps: S, for each frame.
        kind: `full` denoises all frames together, `autoregressive` one after another, `chunked`
            in runs of `chunk_frames`, and `pyramid` lets each start `lag` steps after the last.
        chunk_frames: Frames of a chunk.
        lag: Steps by which a pyramid's frames follow each other.
        shift: See `shift_levels`.

    >>> scheduling_matrix(3, 2, "pyramid").tolist()
    [[1.0, 1.0, 1.0], [0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
    """
    frame = torch.arange(num_frames)
    starts = {
        "full": torch.zeros_like(frame),
        "autoregressive": frame * num_inference_steps,
        "chunked": frame // chunk_frames * num_inference_steps,
        "pyramid": frame * lag,
    }
    if kind not in starts:
        raise ValueError(f"schedule {kind!r} is unknown; use one of {', '.join(starts)}")
    start = starts[kind]
    row = torch.arange(int(start.max()) + num_inference_steps + 1)
    taken = (row[:, None] - start).clamp(0, num_inference_steps)
    return noise_schedule(num_inference_steps, shift)[taken]


def sample_euler(denoise: Denoise, noise: Tensor, schedule: Tensor) -> Tensor:
    """Euler steps along the schedule (arXiv:2209.03003).

    Args:
        denoise: Clean latents from noisy ones and their levels.
        noise: `(B, T, ...)`, pure noise, or frames at the first row's levels.
        schedule: `(rows, T)` levels, never rising.

    Returns:
        `(B, T, ...)` latents at the last row's levels.
    """
    latents = noise
    for level, following in zip(schedule[:-1], schedule[1:], strict=True):
        clean = denoise(latents, _levels(level, latents))
        latents = _euler_step(latents, clean, level, following)
    return latents


def sample_heun(denoise: Denoise, noise: Tensor, schedule: Tensor) -> Tensor:
    """Heun's second-order steps (arXiv:2206.00364, algorithm 1); the last is an Euler step.

    Arguments and result as in `sample_euler`; two calls of `denoise` for each step but the last.
    """
    latents = noise
    for index, (level, following) in enumerate(zip(schedule[:-1], schedule[1:], strict=True)):
        clean = denoise(latents, _levels(level, latents))
        guess = _euler_step(latents, clean, level, following)
        if index == len(schedule) - 2:
            return guess
        again = denoise(guess, _levels(following, guess))
        shape = (1, -1) + (1,) * (latents.dim() - 2)
        now, then = level.view(shape), following.view(shape)
        first = velocity_of(clean, latents, now)
        second = torch.where(then > 0, velocity_of(again, guess, then), first)
        moved = latents + (then - now) * (first + second) / 2
        latents = torch.where(now > then, moved, latents)
    return latents


SOLVERS = {"euler": sample_euler, "heun": sample_heun}


def _euler_step(latents: Tensor, clean: Tensor, level: Tensor, following: Tensor) -> Tensor:
    """`x + (s' - s) v` written as a blend, which is exact at s' = 0 and idle at s' = s."""
    shape = (1, -1) + (1,) * (latents.dim() - 2)
    now, then = level.view(shape), following.view(shape)
    ratio = then / now.clamp(min=1e-6)
    return torch.where(now > then, ratio * latents + (1 - ratio) * clean, latents)


def _levels(level: Tensor, latents: Tensor) -> Tensor:
    return level.to(latents).expand(latents.shape[0], -1)
