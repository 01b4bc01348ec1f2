"""Memory of the last frames, whole: and of the first ones, if there are sinks.

Letters: B rows, S slots of the cache, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.memory import Memory
from unified.model.cache import KVCache
from unified.model.plan import StreamState, seen_frames
from unified.sampling.queue import QueuedTokens


class WindowMemory:
    """Drops what no later token can see, when the cache needs room."""

    def __init__(self, memory: Memory, config: UnifiedConfig):
        """Holds nothing of its own: the state of the stream says where frames are."""
        self.frames = seen_frames(memory, config)

    def pieces(self, queued: QueuedTokens) -> list[QueuedTokens]:
        """The queued tokens, in the pieces in which the model reads them: here a single one."""
        return [queued]

    def note(
        self,
        ids: Tensor,
        latents: Tensor | None,
        position_ids: Tensor,
        slots: Tensor,
        cache: KVCache,
    ) -> None:
        """Hears what was written to the cache; a window needs no notes."""

    def kept(self, state: StreamState, *, needs_room: bool) -> Tensor | None:
        """Which slots stay, `(B, S)` bool; None is all.

        Args:
            state: Where each row stands.
            needs_room: Whether the cache would grow otherwise.
        """
        if not needs_room or not state.frame_slots.shape[1]:
            return None
        index = torch.arange(int(state.length.max()))
        first = (state.num_frames - self.frames).clamp(min=0)
        start = state.frame_slots.gather(1, first[:, None])
        is_seen = (index < state.prefix[:, None]) | (index >= start) | (first == 0)[:, None]
        is_there = index < state.length[:, None]
        return None if bool((is_seen | ~is_there).all()) else is_seen & is_there

    def keep(self, kept: Tensor) -> None:
        """Hears that the cache holds these slots alone."""

    def clear(self, rows: list[int]) -> None:
        """Forgets rows."""

    def copy(self) -> WindowMemory:
        """A window has no notes to copy."""
        return self

    def select(self, rows: Tensor) -> WindowMemory:
        """A copy for some rows (int64 indices, repeats allowed)."""
        return self
