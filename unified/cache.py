"""The key-value cache: append, truncate, fork, evict.

It holds the clean stream only. Denoise steps read it and write nothing; a finished frame is
committed by one clean pass. Rows are ragged: each has its own length, kept by the `StreamState`
beside the cache, and attention never looks past it.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, `(B, N_kv, capacity, K)` each, in slots.

    Keys are stored with their rotary positions applied, so slots may be moved freely: evicting
    old frames changes no number.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        *,
        capacity: int = 256,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        """An empty cache; it grows by doubling when `reserve` asks for more than `capacity`."""
        shape = (2, num_layers, batch_size, num_heads, capacity, head_dim)
        self.states = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.states.shape[2]

    @property
    def capacity(self) -> int:
        """Number of slots of each row."""
        return self.states.shape[4]

    def reserve(self, capacity: int) -> None:
        """Makes room for at least `capacity` slots, keeping what is there."""
        if capacity <= self.capacity:
            return
        new = max(capacity, 2 * self.capacity)
        self.states = torch.nn.functional.pad(self.states, (0, 0, 0, new - self.capacity))

    def read(self, layer: int, num_slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first slots, `(B, N_kv, num_slots, K)` each."""
        keys, values = self.states[:, layer, :, :, :num_slots]
        return keys, values

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Stores `(B, N_kv, L, K)` keys and values at `slots` `(B, L)`, none where negative."""
        rows, tokens = (slots >= 0).nonzero(as_tuple=True)
        at = slots[rows, tokens]
        self.states[0, layer][rows, :, at] = keys[rows, :, tokens]
        self.states[1, layer][rows, :, at] = values[rows, :, tokens]

    def fork(self, rows: Tensor) -> "KVCache":
        """A copy that holds the given rows (int64 indices, repeats allowed)."""
        copy = object.__new__(KVCache)
        copy.states = self.states[:, :, rows]
        return copy

    def evict(self, row: int, start: int, stop: int) -> None:
        """Drops slots `[start, stop)` of one row; what follows moves down."""
        kept = self.states[:, :, row, :, stop:].clone()
        self.states[:, :, row, :, start : start + kept.shape[3]] = kept
