"""The key-value cache: append, truncate, fork, evict. Beside it, the steps of path integration.

It holds the clean stream only. Denoise steps read it and write nothing; a finished frame is
committed by one clean pass. Rows are ragged: each has its own length, kept by the `StreamState`
beside the cache, and attention never looks past it.
"""

import torch
from torch import Tensor


class KVCache:
    """Every layer's keys and values, `(B, N_kv, capacity, K)` each, and steps, `(B, capacity, 3)`.

    Keys are stored with their rotary positions applied, so slots may be moved freely: evicting
    old frames changes no number. The steps of evicted slots are added to those of the next one: a
    path is as long as it was, whatever is forgotten of it.
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
        steps_dtype = torch.promote_types(dtype, torch.float32)
        self.steps = torch.zeros(batch_size, capacity, 3, device=device, dtype=steps_dtype)

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
        more = (0, 0, 0, new - self.capacity)
        self.states = torch.nn.functional.pad(self.states, more)
        self.steps = torch.nn.functional.pad(self.steps, more)

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

    def read_steps(self, num_slots: int) -> Tensor:
        """Steps of the first slots, `(B, num_slots, 3)`: turn, and move in the world."""
        return self.steps[:, :num_slots]

    def write_steps(self, steps: Tensor, slots: Tensor) -> None:
        """Stores `(B, L, 3)` steps at `slots` `(B, L)`, none where negative."""
        rows, tokens = (slots >= 0).nonzero(as_tuple=True)
        self.steps[rows, slots[rows, tokens]] = steps[rows, tokens]

    def fork(self, rows: Tensor) -> "KVCache":
        """A copy that holds the given rows (int64 indices, repeats allowed)."""
        copy = object.__new__(KVCache)
        copy.states, copy.steps = self.states[:, :, rows], self.steps[rows]
        return copy

    def evict(self, row: int, start: int, stop: int) -> None:
        """Drops slots `[start, stop)` of one row; what follows moves down."""
        kept = self.states[:, :, row, :, stop:].clone()
        self.states[:, :, row, :, start : start + kept.shape[3]] = kept
        gone, steps = self.steps[row, start:stop].sum(0), self.steps[row, stop:].clone()
        self.steps[row, start : start + len(steps)] = steps
        if start < stop < self.capacity:
            self.steps[row, start] += gone
