"""Schedules: the noise levels of a frame's denoise steps, and of several frames together.

Levels go from 1, pure noise, to 0, clean. A time grid says where the steps of one frame lie. A
scheduling matrix says the levels of frames that are drawn together: one row per step boundary and
one column per frame (Diffusion Forcing, arXiv:2407.01392). Autoregressive, chunked, full-sequence
and pyramid sampling are matrices, not code paths: a frame whose level does not change from one row
to the next is left alone.

Letters: T frames, S denoise steps.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from unified.model.flow import RECTIFIED, NoisePath, shift_levels
from unified.settings import split_settings

ScheduleKind = Literal["autoregressive", "chunked", "full", "pyramid"]
TIME_GRIDS: dict[str, dict[str, tuple[float, float, float]]] = {
    "uniform": {},
    "shifted": {"by": (1.0, 1e-3, 1e3)},
    "logit_normal": {"mean": (0.0, -10.0, 10.0), "std": (1.0, 1e-3, 10.0)},
    "karras": {"rho": (7.0, 0.1, 100.0)},
}
"""Grid -> its settings: the default, the least and the most of each."""
_KARRAS = (0.002, 80.0)  # least and greatest ratio of noise to signal, arXiv:2206.00364, table 1


def noise_schedule(
    num_inference_steps: int, time_grid: str = "uniform", path: NoisePath = RECTIFIED
) -> Tensor:
    """Levels of one frame's step boundaries, from 1 to 0, `(S + 1,)` float32.

    Args:
        num_inference_steps: S.
        time_grid: `uniform` has equal steps. `shifted:by=3` moves them towards noise (see
            `shift_levels`). `logit_normal:mean=0,std=1` has steps that take equal shares of that
            distribution, as training may draw them (arXiv:2403.03206). `karras:rho=7` has them
            where the ratio of noise to signal is that of arXiv:2206.00364, equation 5.
        path: Of the model; only Karras' grid asks for it.

    >>> noise_schedule(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1")
    kind, settings = read_time_grid(time_grid)
    even = torch.linspace(1.0, 0.0, num_inference_steps + 1)
    if kind == "shifted":
        return shift_levels(even, settings["by"])
    if kind == "logit_normal":
        normal = math.sqrt(2) * torch.erfinv(2 * even.double() - 1)
        return torch.sigmoid(settings["mean"] + settings["std"] * normal).float()
    if kind == "karras":
        least, most = (ratio ** (1 / settings["rho"]) for ratio in _KARRAS)
        part = torch.linspace(0.0, 1.0, num_inference_steps, dtype=torch.float64)
        levels = path.level_of((most + part * (least - most)) ** settings["rho"])
        levels[0] = 1.0  # a frame begins as nothing but noise
        return torch.cat([levels, levels.new_zeros(1)]).float()
    return even


def read_time_grid(text: str) -> tuple[str, dict[str, float]]:
    """A time grid as it is written: its kind and settings.

    Raises:
        ValueError: If the kind or a setting is unknown, or a number out of range.

    >>> read_time_grid("shifted:by=3")
    ('shifted', {'by': 3.0})
    """
    kind, told = split_settings("time_grid", text, TIME_GRIDS, "shifted:by=3")
    settings = {name: default for name, (default, _, _) in TIME_GRIDS[kind].items()}
    for name, number in told.items():
        _, least, most = TIME_GRIDS[kind][name]
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise ValueError(
                f"time_grid {text!r}: {name} is {number!r}, and must be from {least:g} to {most:g}"
            )
        settings[name] = value
    return kind, settings


def check_timesteps(timesteps: Any) -> tuple[float, ...] | None:
    """Levels that a user gave by hand, from 1 down to 0; None stays None.

    Raises:
        ValueError: If they are no such numbers.
    """
    if timesteps is None:
        return None
    levels = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
    is_list = isinstance(levels, Sequence) and not isinstance(levels, str | bytes)
    numbers: list[Any] = list(levels) if is_list else []
    if not all(isinstance(level, Real) and not isinstance(level, bool) for level in numbers):
        numbers = []
    falls = all(a > b for a, b in zip(numbers[:-1], numbers[1:], strict=True))
    if len(numbers) < 2 or numbers[0] != 1 or numbers[-1] != 0 or not falls:
        raise ValueError(
            f"timesteps={timesteps!r} must fall from 1 (noise) to 0 (clean), such as [1, 0.6, 0]"
        )
    return tuple(float(level) for level in numbers)


def scheduling_matrix(
    num_frames: int,
    levels: Tensor,
    kind: ScheduleKind = "autoregressive",
    *,
    chunk_frames: int = 1,
    lag: int = 1,
) -> Tensor:
    """Noise level of every frame at every step boundary, `(rows, T)` float32, from 1s to 0s.

    Args:
        num_frames: T.
        levels: `(S + 1,)`, those of each frame, from `noise_schedule`.
        kind: `full` denoises all frames together, `autoregressive` one after another, `chunked`
            in runs of `chunk_frames`, and `pyramid` lets each start `lag` steps after the last.
        chunk_frames: Frames of a chunk.
        lag: Steps by which a pyramid's frames follow each other.

    >>> scheduling_matrix(3, noise_schedule(2), "pyramid").tolist()
    [[1.0, 1.0, 1.0], [0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
    """
    frame, steps = torch.arange(num_frames), len(levels) - 1
    starts = {
        "full": torch.zeros_like(frame),
        "autoregressive": frame * steps,
        "chunked": frame // chunk_frames * steps,
        "pyramid": frame * lag,
    }
    if kind not in starts:
        raise ValueError(f"schedule {kind!r} is unknown; use one of {', '.join(starts)}")
    start = starts[kind]
    row = torch.arange(int(start.max()) + steps + 1)
    taken = (row[:, None] - start).clamp(0, steps)
    return levels[taken]
