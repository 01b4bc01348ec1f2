"""What is asked of a run besides the query: checked before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from unified.sampling.diffusion.guidance import Guidance, read_guidance
from unified.sampling.diffusion.schedules import check_timesteps, read_time_grid
from unified.sampling.diffusion.solvers import read_solver

GREEDY = 1e-6
"""Temperatures up to this one take the likeliest token: the next logit is out of reach."""

MAX_STEPS = 1000
"""Denoise steps; more of them change nothing that float32 holds."""


def count(
    name: str, value: Any, least: int = 1, most: int = 2**62, *, why_none: str | None = None
) -> Any:
    """A whole number as an int.

    Args:
        name: Of the option.
        value: As it was given.
        least: Smallest that makes sense.
        most: Largest.
        why_none: What None means; None where it means nothing.

    Raises:
        ValueError: If it is no whole number, or too small.
    """
    if value is None and why_none is not None:
        return None
    whole = int(value) if value is not None and is_whole(value) else None
    if whole is None or not least <= whole <= most:
        kind = "a whole number of " if whole is None else ""
        is_open = most == 2**62 and (whole is None or whole <= most)
        top = "" if is_open else f" and at most {most}"
        fix = "" if why_none is None else f"; None {why_none}"
        raise ValueError(f"{name}={value!r} must be {kind}at least {least}{top}{fix}")
    return whole


def is_whole(value: Any) -> bool:
    """Whether it is an integer, of any library, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def number(name: str, value: Any) -> float:
    """A finite number as a float.

    Raises:
        ValueError: If it is something else.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        finite = is_number and math.isfinite(value)
    except OverflowError:  # an int that no float holds
        finite = False
    if not finite:
        raise ValueError(f"{name}={value!r} must be a finite number")
    return float(value)


def switch(name: str, value: Any) -> bool | None:
    """True, False, or None.

    Raises:
        ValueError: If it is something else.
    """
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True, False or None")
    return value


@dataclass(frozen=True, kw_only=True)
class Options:
    """How tokens are chosen and frames drawn; see `UnifiedModel.generate` for what they mean.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: Sample among the k likeliest tokens only.
        top_p: Sample among the likeliest tokens that have this probability together.
        num_inference_steps: Denoise steps of a frame; None is the model's.
        solver: How they are taken, see `unified.sampling.diffusion.solvers.SOLVERS`.
        time_grid: Where they lie, see `unified.sampling.diffusion.schedules.noise_schedule`.
        timesteps: Their levels by hand, from 1 to 0, instead of a number and a grid.
        guidance_scale: See `unified.sampling.diffusion.guidance.read_guidance`.
        max_turns: Frames of a `joint` reply.
        max_text_tokens: Longest run of words; then the agent must act.
        max_new_tokens: Longest reply; no frame begins that does not fit.
        think: True makes the agent speak before it acts, False keeps it silent.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    num_inference_steps: int | None = None
    solver: str = "euler"
    time_grid: str = "uniform"
    timesteps: tuple[float, ...] | None = None
    guidance_scale: Guidance = Guidance()
    max_turns: int = 1
    max_text_tokens: int = 64
    max_new_tokens: int | None = None
    think: bool | None = None

    def __post_init__(self):
        """Checks each, and makes plain numbers of them.

        Raises:
            ValueError: Naming the option and the fix.
        """
        temperature = number("temperature", self.temperature)
        if temperature < 0:
            raise ValueError(
                f"temperature={self.temperature} is negative; 0 takes the likeliest token"
            )
        read_time_grid(self.time_grid)
        top_p = self.top_p
        if top_p is not None:
            top_p = number("top_p", top_p)
            if not 0 < top_p <= 1:
                raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        values = {
            "temperature": temperature if temperature > GREEDY else 0.0,
            "top_k": count("top_k", self.top_k, why_none="takes all tokens"),
            "top_p": top_p,
            "num_inference_steps": count(
                "num_inference_steps",
                self.num_inference_steps,
                most=MAX_STEPS,
                why_none="is the model's",
            ),
            "solver": read_solver(self.solver).name,
            "time_grid": self.time_grid,
            "timesteps": check_timesteps(self.timesteps),
            "guidance_scale": read_guidance(self.guidance_scale),
            "max_turns": count("max_turns", self.max_turns),
            "max_text_tokens": count("max_text_tokens", self.max_text_tokens),
            "max_new_tokens": count("max_new_tokens", self.max_new_tokens, why_none="is no limit"),
            "think": switch("think", self.think),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
