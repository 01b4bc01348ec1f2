"""Memory by place: what is kept of the past is what the world looks like, cell by cell.

Path integration knows where in the world each latent lies. Of each cell (a place, rounded) two
latents keep their keys and values: the newest, and the newest that looks unlike it. For a cell that
is hidden behind a wall, or on which the agent stands, looks like that and not like what is in it.
The last few frames stay whole, and so does what precedes the first frame, the task; words, actions
and markers of older frames go. What is remembered grows with the world that was seen and not with
time. Keys carry their rotary positions, time among them,
so each memory still tells how old it is.

Frames are forgotten when a frame ends, so what a token sees depends on the conversation alone, not
on how it was told, and a conversation that is told at once is passed through the model frame by
frame.

Letters: B rows, S slots of the cache, L tokens, C latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.memory import Memory
from unified.model.cache import KVCache
from unified.model.layers import latent_places
from unified.model.plan import StreamState
from unified.sampling.queue import QueuedTokens

WIDTH = 1 << 20
"""Cells of the world from side to side; one that is farther is taken for one that is not."""
UNLIKE = 0.5
"""Mean squared difference of latents that show different things; their variance is 1."""


class PlaceMemory:
    """Which frame each slot is of, which cell of the world it shows, and how that looks."""

    def __init__(self, memory: Memory, config: UnifiedConfig, batch_size: int):
        """Begins without any frames."""
        self.recent, self.cells = memory.recent, memory.cells
        self.config = config
        self.opened = torch.zeros(batch_size, dtype=torch.int64)
        self.ended = torch.zeros(batch_size, dtype=torch.int64)
        self.frame = torch.zeros(batch_size, 0, dtype=torch.int64)
        self.cell = torch.zeros(batch_size, 0, dtype=torch.int64)
        self.look = torch.zeros(batch_size, 0, config.latent_size)

    def pieces(self, queued: QueuedTokens) -> list[QueuedTokens]:
        """What is queued, in parts: each but the last ends with a frame that makes others old."""
        if not len(queued):
            return [queued]
        index = torch.arange(len(queued))
        is_there = index < queued.num_tokens[:, None]
        is_end = (queued.input_ids == self.config.frame_end_token_id) & is_there
        ended = self.ended[:, None] + is_end.cumsum(1) - is_end.int()  # before each token
        piece = (ended - self.recent).clamp(min=0)
        piece = piece - (self.ended - self.recent).clamp(min=0)[:, None]
        count = int(piece[is_there].max()) + 1 if bool(is_there.any()) else 1
        if count == 1:
            return [queued]
        starts = torch.stack([((piece < i) & is_there).sum(1) for i in range(count + 1)])
        return [
            queued.between(start, stop) for start, stop in zip(starts[:-1], starts[1:], strict=True)
        ]

    def note(
        self,
        ids: Tensor,
        latents: Tensor | None,
        position_ids: Tensor,
        slots: Tensor,
        cache: KVCache,
    ) -> None:
        """Writes down what the slots show that were just committed.

        Args:
            ids: `(B, L)` int64.
            latents: `(B, L, C)` at the latent tokens; None if there are none.
            position_ids: `(B, 3, L)`, of the plan.
            slots: `(B, L)`, -1 where nothing was committed.
            cache: Holds the steps of the path.
        """
        config, size = self.config, int(slots.max()) + 1
        spare = max(0, size - self.frame.shape[1]) + 1  # and one where padding is written
        self.frame, self.cell = (
            torch.nn.functional.pad(x, (0, spare), value=value)
            for x, value in ((self.frame, 0), (self.cell, -1))
        )
        self.look = torch.nn.functional.pad(self.look, (0, 0, 0, spare))
        is_there = slots >= 0
        opened = self.opened[:, None] + ((ids == config.frame_token_id) & is_there).cumsum(1)
        is_latent = (ids == config.latent_token_id) & is_there
        path = cache.read_steps(size).cumsum(1)
        at = slots.clamp(min=0).to(path.device)[..., None].expand(-1, -1, 3)
        pose = path.gather(1, at).cpu()
        places = latent_places(pose, position_ids, config.path_origin)
        cell = places.round().clamp(-WIDTH // 2, WIDTH // 2 - 1).long() + WIDTH // 2
        cell = torch.where(is_latent, cell[..., 0] * WIDTH + cell[..., 1], -1)
        target = torch.where(is_there, slots, self.frame.shape[1] - 1)
        self.frame = self.frame.scatter(1, target, opened)[:, :-1]
        self.cell = self.cell.scatter(1, target, cell)[:, :-1]
        if latents is not None:
            where = target[..., None].expand(-1, -1, config.latent_size)
            self.look = self.look.scatter(1, where, latents.to("cpu", torch.float32))
        self.look = self.look[:, :-1]
        self.opened = opened[:, -1]
        is_end = (ids == config.frame_end_token_id) & is_there
        self.ended = self.ended + is_end.sum(1)

    def kept(self, state: StreamState, *, needs_room: bool) -> Tensor | None:
        """Which slots stay, `(B, S)` bool; None is all. See `WindowMemory.kept`."""
        if needs_room:  # what is old went when it grew old
            return None
        size = int(state.length.max())
        index = torch.arange(size)
        frame, cell = self.frame[:, :size], self.cell[:, :size]
        is_there = index < state.length[:, None]
        is_old = (frame <= (self.ended - self.recent)[:, None]) & is_there
        is_old &= index >= state.prefix[:, None]
        if not bool(is_old.any()):
            return None
        is_newest, newest = _newest(torch.where(is_there, cell, -1))
        look = self.look[:, :size]
        other = look.gather(1, newest[..., None].expand_as(look))
        is_unlike = (look - other).square().mean(-1) > UNLIKE
        is_second, _ = _newest(torch.where(is_there & is_unlike, cell, -1))
        remembered = is_old & (is_newest | is_second)
        rank = remembered.flip(1).cumsum(1).flip(1)  # 1 is what was seen last
        remembered &= rank <= self.cells
        kept = is_there & (~is_old | remembered)
        return None if bool((kept == is_there).all()) else kept

    def keep(self, kept: Tensor) -> None:
        """Hears that the cache holds these slots alone, which have moved down."""
        order = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
        self.frame, self.cell = self.frame.gather(1, order), self.cell.gather(1, order)
        self.look = self.look.gather(1, order[..., None].expand(-1, -1, self.look.shape[2]))

    def clear(self, rows: list[int]) -> None:
        """Forgets rows."""
        gone = torch.zeros_like(self.opened, dtype=torch.bool)
        gone[rows] = True
        self.opened = self.opened.masked_fill(gone, 0)
        self.ended = self.ended.masked_fill(gone, 0)

    def copy(self) -> PlaceMemory:
        """The notes as they are now; tensors are replaced and never written to."""
        copy = object.__new__(PlaceMemory)
        vars(copy).update(vars(self))
        return copy

    def select(self, rows: Tensor) -> PlaceMemory:
        """A copy for some rows (int64 indices, repeats allowed)."""
        copy = self.copy()
        copy.opened, copy.ended = self.opened[rows], self.ended[rows]
        copy.frame, copy.cell, copy.look = self.frame[rows], self.cell[rows], self.look[rows]
        return copy


def _newest(cell: Tensor) -> tuple[Tensor, Tensor]:
    """Which slots are the last of their cell, and the last slot of each slot's cell.

    Args:
        cell: `(B, S)`, in the order of time; -1 is none.

    Returns:
        `(B, S)` bool, and `(B, S)` int64.
    """
    size = cell.shape[1]
    order = cell.argsort(dim=1, stable=True)
    ordered = cell.gather(1, order)
    is_last = torch.nn.functional.pad(ordered.diff(dim=1) != 0, (0, 1), value=True)
    place = torch.where(is_last, torch.arange(size), size)
    last = order.gather(1, place.flip(1).cummin(1).values.flip(1))
    is_newest = torch.zeros_like(is_last).scatter(1, order, is_last) & (cell >= 0)
    return is_newest, torch.zeros_like(order).scatter(1, order, last)
