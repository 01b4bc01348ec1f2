"""What the earlier frames of an episode show: where latents lie, and when each was last seen."""

from typing import NamedTuple

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.conversation.sequence import Motion
from unified.model.layers import turn_by


def places_in_world(motions: list[Motion], config: UnifiedConfig) -> Tensor:
    """Where each latent of an episode lies, seen from where it began: T motions, T + 1 frames.

    Returns:
        `(T + 1, n, 2)` float32, tokens of a frame ahead and to the right.
    """
    start = torch.zeros(1, 3)
    turns, moves = torch.cat([start, torch.tensor(motions).view(-1, 3)]).split([1, 2], -1)
    heading = turns.cumsum(0)
    agent = turn_by(heading, moves).cumsum(0)
    rows, columns = config.latent_grid
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    offset = (grid - torch.tensor(config.path_origin)) * torch.tensor([-1.0, 1.0])
    return agent[:, None] + turn_by(heading[:, None], offset)


class Seen(NamedTuple):
    """What the earlier of T frames show of each latent, `(T, n)` each.

    Attributes:
        age: int64. How many frames ago it was last shown, 0 if never.
        is_changed: bool. Its place was in sight before, and showed something else the last time.
    """

    age: Tensor
    is_changed: Tensor


def last_seen(latents: Tensor, places: Tensor | None, tolerance: float = 0.5) -> Seen:
    """When each latent was last shown, and whether its place showed something else since.

    Args:
        latents: `(T, n, C)`, clean, in frame order.
        places: `(T, n, 2)`, see `places_in_world`: only what lay at the same place counts. None,
            where motions are unknown, counts the same thing anywhere, and nothing as changed.
        tolerance: Largest Euclidean distance of latents, and of places, that count as the same.
    """
    count, size, _ = latents.shape
    is_same = _is_near(latents.float(), tolerance)
    at_place = None if places is None else _is_near(places, tolerance)
    shown = is_same if at_place is None else is_same & at_place
    frames = torch.arange(count)
    is_earlier = (frames[None] < frames[:, None])[:, None]

    def newest(pairs: Tensor) -> Tensor:
        """The last earlier frame with a latent that is paired with (t, i); -1 is none."""
        has = pairs.view(count, size, count, size).any(-1)
        return torch.where(has & is_earlier, frames, -1).amax(-1)

    last = newest(shown)
    is_changed = torch.zeros_like(last, dtype=torch.bool)
    if at_place is not None:
        is_changed = last < newest(at_place)
    return Seen(torch.where(last >= 0, frames[:, None] - last, 0), is_changed)


def _is_near(points: Tensor, tolerance: float) -> Tensor:
    """Which of `(T, n, d)` points are close to one another, `(T n, T n)` bool."""
    flat = points.flatten(0, 1)
    return torch.cdist(flat, flat) <= tolerance
