"""Solvers: from noise to latents along a scheduling matrix, by one call of the network or more.

A solver sees the network as a function that says what the clean latents are. Every frame has its
own level at every row of the matrix. A frame whose level does not change from one row to the next
is left alone, with all that a solver of several steps remembers of it.

The last step of a frame ends at level 0, where the velocity of some paths is infinite and the noise
can no longer be told. There each solver takes a formula that does not look at the end.

Letters: B rows, T frames, S denoise steps; `s` a level, `alpha` and `sigma` its path, `lambda` the
logarithm of alpha / sigma, `h` how much lambda grows in a step.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from unified.model.flow import RECTIFIED, NoisePath, RectifiedPath, noise_of, velocity_of

Denoise = Callable[[Tensor, Tensor], Tensor]
"""From `(B, T, ...)` noisy latents and `(B, T)` levels to `(B, T, ...)` clean ones."""
Walk = Callable[[Denoise, Tensor, list["_Step"], Tensor | None], Tensor]
"""From a denoiser, noise, the steps to take and fresh noise for them to latents."""


@dataclass(frozen=True)
class Solver:
    """A way to walk a scheduling matrix.

    Attributes:
        name: As the user writes it.
        walk: The function.
        is_stochastic: Whether each step adds noise.
        evaluations: Calls of the network for each step but the last.
        takes_whole_steps: Whether each call is for one step as it stands, so that a distilled model
            can be told its size.
    """

    name: str
    walk: Walk
    is_stochastic: bool = False
    evaluations: int = 1
    takes_whole_steps: bool = False

    def __call__(
        self,
        denoise: Denoise,
        noise: Tensor,
        schedule: Tensor,
        path: NoisePath = RECTIFIED,
        fresh_noise: Tensor | None = None,
    ) -> Tensor:
        """Walks from noise to latents.

        Args:
            denoise: Clean latents from noisy ones and their levels.
            noise: `(B, T, ...)`, pure noise, or frames at the first row's levels.
            schedule: `(rows, T)` levels, never rising, and 0 in the last row.
            path: That of the network's training.
            fresh_noise: `(rows - 1, B, T, ...)` standard normal, for a stochastic solver.

        Returns:
            `(B, T, ...)` latents at the last row's levels.
        """
        if self.is_stochastic and fresh_noise is None:
            raise ValueError(f"solver {self.name!r} adds noise at each step; give fresh_noise")
        steps = [_Step(now, then, noise, path) for now, then in pairwise(schedule)]
        return self.walk(denoise, noise, steps, fresh_noise)


class _Step:
    """Levels of a step, in the shape of the latents, and what follows from them."""

    def __init__(self, level: Tensor, following: Tensor, latents: Tensor, path: NoisePath):
        shape = (1, -1) + (1,) * (latents.dim() - 2)
        self.path, self.batch = path, len(latents)
        self.now, self.then = level.to(latents).view(shape), following.to(latents).view(shape)
        self.moves = self.now > self.then
        self.is_last = self.moves & (self.then <= 0)

    # What only some solvers ask for is computed when it is asked for.

    @property
    def next_alpha(self) -> Tensor:
        """`alpha'`."""
        return self.path.alpha(self.then)

    @property
    def next_sigma(self) -> Tensor:
        """`sigma'`."""
        return self.path.sigma(self.then)

    @cached_property
    def rise(self) -> Tensor:
        """How much lambda grows, h."""
        return _log_ratio(self.path, self.then) - _log_ratio(self.path, self.now)

    def level(self, part: Tensor | float = 0.0) -> Tensor:
        """Levels `(B, T)` after a part of the step."""
        level = self.now + part * (self.then - self.now)
        return level.reshape(1, -1).expand(self.batch, -1)

    def settle(self, moved: Tensor, latents: Tensor) -> Tensor:
        """What has moved, where the level changes, and the latents elsewhere."""
        return torch.where(self.moves, moved, latents)

    def choose(self, last: float, other: float) -> Tensor:
        """A number for the frames that take their last step, and another for the rest."""
        # Tensors that are filled on the device: a CUDA graph may not copy any from the host.
        return torch.where(
            self.is_last, torch.full_like(self.now, last), torch.full_like(self.now, other)
        )

    def ratio(self) -> Tensor:
        """`sigma' / sigma`."""
        return self.next_sigma / self.path.sigma(self.now).clamp(min=1e-12)


def _log_ratio(path: NoisePath, levels: Tensor) -> Tensor:
    """Half the logarithm of the signal-to-noise ratio; infinite at the ends of some paths."""
    return torch.log(path.alpha(levels)) - torch.log(path.sigma(levels))


# Runge-Kutta methods for the flow's own equation, dx / ds = velocity(x, s). In a tableau, each row
# is a stage: how far into the step it lies, its weight in the result, and its shares of the stages
# before.

_HEUN = [[0.0, 1 / 2, 0.0, 0.0], [1.0, 1 / 2, 1.0, 0.0]]
_MIDPOINT = [[0.0, 0.0, 0.0, 0.0], [1 / 2, 1.0, 1 / 2, 0.0]]
_RK4 = [
    [0.0, 1 / 6, 0.0, 0.0, 0.0, 0.0],
    [1 / 2, 1 / 3, 1 / 2, 0.0, 0.0, 0.0],
    [1 / 2, 1 / 3, 0.0, 1 / 2, 0.0, 0.0],
    [1.0, 1 / 6, 0.0, 0.0, 1.0, 0.0],
]
_RALSTON = [
    [0.0, 2 / 9, 0.0, 0.0, 0.0, 0.0],
    [1 / 2, 1 / 3, 1 / 2, 0.0, 0.0, 0.0],
    [3 / 4, 4 / 9, 0.0, 3 / 4, 0.0, 0.0],
]
"""Of third order and away from the end: one such step keeps the fourth order of those before."""


def _euler(
    denoise: Denoise, latents: Tensor, steps: list[_Step], fresh_noise: Tensor | None
) -> Tensor:
    """`x + (s' - s) velocity` (arXiv:2209.03003)."""
    for step in steps:
        clean = denoise(latents, step.level())
        if isinstance(step.path, RectifiedPath):  # as a blend, which is exact at the end
            ratio = step.then / step.now.clamp(min=1e-6)
            moved = ratio * latents + (1 - ratio) * clean
        else:
            velocity = velocity_of(clean, latents, step.now, step.path)
            moved = latents + (step.then - step.now) * velocity
            moved = torch.where(step.is_last, clean, moved)
        latents = step.settle(moved, latents)
    return latents


def _runge_kutta(tableau: list[list[float]], last: list[list[float]] | None) -> Walk:
    """The method of a tableau, and of another for the step that ends at level 0.

    Args:
        tableau: Stages, see above.
        last: Likewise; None takes one stage. On a straight path it is a step like others, with None
            Euler's; on any other a frame ends as what its last stage says is clean.
    """
    final, num_last = [[0.0] * len(tableau[0])] * len(tableau), 1
    if last is not None:
        # Stages that the last step does without repeat its last one, at no weight.
        num_last, missing = len(last), len(tableau) - len(last)
        idle = [last[-1][0], 0.0, *last[-1][2:]]
        final = [*last, *[idle] * missing]

    def walk(
        denoise: Denoise, latents: Tensor, steps: list[_Step], fresh_noise: Tensor | None
    ) -> Tensor:
        for index, step in enumerate(steps):
            # In the last row, every frame that moves takes its last step.
            stages = num_last if index == len(steps) - 1 else len(tableau)
            span = step.then - step.now
            moved, said, velocities = latents, latents, []
            for stage in range(stages):
                part, weight, *shares = (
                    step.choose(at_end, else_)
                    for at_end, else_ in zip(final[stage], tableau[stage], strict=True)
                )
                point = latents
                for share, velocity in zip(shares, velocities, strict=False):
                    point = point + span * share * velocity
                said = denoise(point, step.level(part))
                velocities.append(velocity_of(said, point, step.now + part * span, step.path))
                moved = moved + span * weight * velocities[-1]
            if last is None or not isinstance(step.path, RectifiedPath):
                moved = torch.where(step.is_last, said, moved)
            latents = step.settle(moved, latents)
        return latents

    return walk


# Solvers for the equation in lambda, which is exact where the clean latents do not change.


def _ddim(eta: float) -> Walk:
    """DDIM (arXiv:2010.02502, equation 16), in signal-to-noise ratios so that any path will do.

    Args:
        eta: Share of the noise that is drawn anew: 0 none, 1 as DDPM's ancestral sampling.
    """

    def walk(
        denoise: Denoise, latents: Tensor, steps: list[_Step], fresh_noise: Tensor | None
    ) -> Tensor:
        for index, step in enumerate(steps):
            clean = denoise(latents, step.level())
            kept = step.next_sigma
            moved = step.next_alpha * clean
            if eta and fresh_noise is not None:
                fresh = eta * step.next_sigma * torch.sqrt(-torch.expm1(-2 * step.rise))
                kept = torch.sqrt((kept.square() - fresh.square()).clamp(min=0))
                moved = moved + fresh * fresh_noise[index].to(latents)
            moved = moved + kept * noise_of(clean, latents, step.now, step.path)
            latents = step.settle(moved, latents)
        return latents

    return walk


@dataclass
class _Past:
    """What each frame's last step was, for solvers of several steps; `(1, T, 1, ...)` but `clean`.

    Attributes:
        clean: What the network said at its beginning, as the latents.
        slope: How that had changed, as the latents; 0 where nothing was known.
        reached: Where it led without the slope, as the latents.
        rise: Its h.
        ratio: h of the step before it, over its own.
        scale: `alpha' (e^-h - 1)`.
        steps: How many steps there were.
    """

    clean: Tensor
    slope: Tensor
    reached: Tensor
    rise: Tensor
    ratio: Tensor
    scale: Tensor
    steps: Tensor

    @classmethod
    def none(cls, latents: Tensor, step: _Step) -> "_Past":
        """That of frames that have not moved."""
        zero, one = torch.zeros_like(latents), torch.ones_like(step.now)
        return cls(zero, zero, zero, one, one, one, torch.zeros_like(step.now))

    def take(self, step: _Step, **new: Tensor) -> None:
        """Notes what has just been done, for the frames that moved."""
        for name, value in new.items():
            setattr(self, name, torch.where(step.moves, value, getattr(self, name)))
        self.steps = self.steps + step.moves

    def corrected(self, said: Tensor, latents: Tensor, step: _Step) -> Tensor:
        """The latents after the last step, now that the network has spoken at its end.

        The weights solve UniPC's equations of second order, and of first after a frame's first
        step (arXiv:2302.04867, equation 9).
        """
        growth = torch.expm1(-self.rise)
        one = growth / -self.rise - 1
        two = (one / -self.rise - 1 / 2) * 2
        of_slope = (one - two) / growth / (1 + self.ratio)
        of_news = one / growth - of_slope
        is_first = self.steps == 1
        of_slope = torch.where(is_first, 0.0, of_slope)
        of_news = torch.where(is_first, 0.5, of_news)
        fixed = self.reached - self.scale * (of_slope * self.slope + of_news * (said - self.clean))
        return torch.where(step.moves & (self.steps > 0), fixed, latents)


def _multistep(*, is_stochastic: bool = False, corrects: bool = False) -> Walk:
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), its SDE form, or UniPC with B(h) = e^h - 1.

    Each step also uses what the network said at the step before. A frame's first and last steps are
    of first order. UniPC (arXiv:2302.04867) is the same, but what the network says at the end of a
    step also corrects that step, at no further call.
    """

    def walk(
        denoise: Denoise, latents: Tensor, steps: list[_Step], fresh_noise: Tensor | None
    ) -> Tensor:
        past = None
        for index, step in enumerate(steps):
            clean = denoise(latents, step.level())
            past = _Past.none(latents, step) if past is None else past
            if corrects:
                latents = past.corrected(clean, latents, step)
            ratio = past.rise / step.rise
            is_known = (past.steps > 0) & ~step.is_last & step.moves
            slope = torch.where(is_known, (clean - past.clean) / ratio, 0.0)
            scale = step.next_alpha * torch.expm1(-step.rise)
            reached = step.ratio() * latents - scale * clean
            moved = reached - scale * slope / 2
            if is_stochastic and fresh_noise is not None:
                lost = torch.expm1(-2 * step.rise)
                kept = step.ratio() * torch.exp(-step.rise) * latents
                moved = kept - step.next_alpha * lost * (clean + slope / 2)
                fresh = step.next_sigma * torch.sqrt(-lost)
                moved = moved + fresh * fresh_noise[index].to(latents)
            past.take(
                step,
                clean=clean,
                slope=slope,
                reached=reached,
                rise=step.rise,
                ratio=ratio,
                scale=scale,
            )
            latents = step.settle(moved, latents)
        return latents

    return walk


SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Solver("euler", _euler, takes_whole_steps=True),
        Solver("heun", _runge_kutta(_HEUN, None), evaluations=2),
        Solver("midpoint", _runge_kutta(_MIDPOINT, _MIDPOINT), evaluations=2),
        Solver("rk4", _runge_kutta(_RK4, _RALSTON), evaluations=4),
        Solver("dpm++2m", _multistep()),
        Solver("dpm++2m-sde", _multistep(is_stochastic=True), is_stochastic=True),
        Solver("unipc", _multistep(corrects=True)),
        Solver("ddim", _ddim(0.0)),
        Solver("ddpm", _ddim(1.0), is_stochastic=True),
    )
}


def read_solver(text: str) -> Solver:
    """A solver as it is written: a key of `SOLVERS`, or "ddim:eta=0.5".

    Raises:
        ValueError: If it is unknown, or eta is not in [0, 1].
    """
    if isinstance(text, str) and text in SOLVERS:
        return SOLVERS[text]
    kind, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    name, _, value = rest.partition("=")
    if kind != "ddim" or name != "eta":
        like = difflib.get_close_matches(kind, SOLVERS, 1)
        hint = f"did you mean {like[0]!r}? " if like else ""
        raise ValueError(
            f"solver {text!r} is unknown; {hint}use one of {', '.join(SOLVERS)}, or 'ddim:eta=0.5'"
        )
    try:
        eta = float(value)
    except ValueError:
        eta = math.nan
    if not 0 <= eta <= 1:
        raise ValueError(f"solver {text!r}: eta is {value!r}, and must be a number from 0 to 1")
    return Solver(text, _ddim(eta), is_stochastic=eta > 0)
