"""Points of a session to rewind to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unified.model.cache import KVCache
from unified.model.plan import StreamState
from unified.sampling.memory.place import PlaceMemory
from unified.sampling.memory.window import WindowMemory


@dataclass(frozen=True)
class Past:
    """What a savepoint needs of a session that went on in another way since: a copy of it.

    Attributes:
        cache: All that was committed.
        ids: Tokens of each row, in pieces.
        latents: Those at them.
    """

    cache: KVCache
    ids: list[list[Tensor]]
    latents: list[list[Tensor]]


@dataclass(eq=False)
class Savepoint:
    """A moment of a session.

    As long as the session only adds to what it was then, nothing is copied. Before it drops slots,
    or goes back behind this moment, it leaves `past` to the savepoints that somebody still holds.

    Attributes:
        state: Where each row stood.
        last: Last token of each row.
        opener: Whose turn it was.
        logits: Of what followed.
        sizes: Pieces that each row had been told in.
        memory: Its notes of what was committed.
        past: None while the session still holds all of it.
    """

    state: StreamState
    last: Tensor
    opener: Tensor
    logits: Tensor
    sizes: tuple[int, ...]
    memory: WindowMemory | PlaceMemory
    past: Past | None = None

    def is_later(self, other: Savepoint) -> bool:
        """Whether some row had been told more than at another savepoint."""
        return any(a > b for a, b in zip(self.sizes, other.sizes, strict=True))
