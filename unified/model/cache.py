"""The key-value cache: append, truncate, fork, evict. Beside it, the steps of path integration.

It holds the clean stream only: a finished frame is committed by one clean pass. Rows are ragged:
each has its own length, which `StreamState` keeps. The slots behind the longest row are scratch
space, in which every pass writes the keys and values of its own tokens. Attention can thus read
cached and new ones without copying the cached ones.
"""

import torch
from torch import Tensor


class KVCache:
    """Every layer's keys and values, `(B, N_kv, capacity, K)` each, and steps, `(B, capacity, 3)`.

    Keys are stored with their rotary positions applied, so slots may be moved: evicting old frames
    changes no number. The steps of evicted slots are added to the step of the slot that follows
    them, so that path integration still arrives at the same pose.
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

    def put(
        self, layer: int, keys: Tensor, values: Tensor, num_cached: int
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values behind the cached ones, as scratch.

        Args:
            layer: Index of the layer.
            keys: `(B, N_kv, L, K)`.
            values: `(B, N_kv, L, K)`.
            num_cached: Slots of the longest row, S. There has to be room for `S + L`.

        Returns:
            Keys and values, cached and new, `(B, N_kv, S + L, K)` each; views.
        """
        stop = num_cached + keys.shape[2]
        states = self.states[:, layer, :, :, :stop]
        states[0, :, :, num_cached:] = keys
        states[1, :, :, num_cached:] = values
        return states[0], states[1]

    def put_steps(self, steps: Tensor, num_cached: int) -> None:
        """Writes `(B, L, 3)` steps (turn, and move in the world) likewise."""
        self.steps[:, num_cached : num_cached + steps.shape[1]] = steps

    def read_steps(self, num_slots: int) -> Tensor:
        """Steps of the first slots, `(B, num_slots, 3)`."""
        return self.steps[:, :num_slots]

    def commit(self, num_cached: int, slots: Tensor) -> None:
        """Moves what was put, L tokens in all layers, to its slots.

        Args:
            num_cached: As it was put.
            slots: `(B, L)` int64. In each row one run of consecutive slots that begins at
                `num_cached` or before; -1 in front of it and behind it drops a token.
        """
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        targets, sources = moves(num_cached, slots)
        states = self.states.transpose(3, 4)
        states[:, :, rows, targets] = states[:, :, rows, sources]
        self.steps[rows, targets] = self.steps[rows, sources]

    def fork(self, rows: Tensor, num_slots: int | None = None) -> "KVCache":
        """A copy of the first slots (None is all) of the given rows (int64, repeats allowed)."""
        copy = object.__new__(KVCache)
        copy.states = self.states[:, :, :, :, :num_slots][:, :, rows]
        copy.steps = self.steps[:, :num_slots][rows]
        return copy

    def keep(self, kept: Tensor) -> None:
        """Drops slots; those that stay move down, and take on the steps of those in front of them.

        Args:
            kept: `(B, S)` bool, over the first S slots. What lies behind a row's kept slots is
                scratch then.
        """
        kept = kept.to(self.states.device)
        count = kept.sum(1)
        rows = torch.arange(len(kept), device=kept.device)[:, None]
        order = (~kept).int().argsort(dim=1, stable=True)[:, : int(count.max())]
        length, size = kept.shape[1], order.shape[1]
        self.states.transpose(3, 4)[:, :, :, :size] = self.states.transpose(3, 4)[:, :, rows, order]
        following = (kept.cumsum(1) - kept.int()).clamp(max=size)  # the next kept slot, or behind
        steps = self.steps.new_zeros(len(kept), size + 1, 3)
        steps.scatter_add_(1, following[..., None].expand(-1, -1, 3), self.steps[:, :length])
        self.steps[:, :size] = steps[:, :size]

    def load(self, other: "KVCache") -> None:
        """Takes over what a copy holds, without moving to another address if there is room."""
        self.reserve(other.capacity)
        self.states[:, :, :, :, : other.capacity] = other.states
        self.steps[:, : other.capacity] = other.steps


def moves(num_cached: int, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Where `KVCache.commit` writes, and what it reads for that.

    Torch leaves open which of two writes to one place wins, so no slot of a row is written twice:
    L slots in a run are, and those for which there is no token keep what they hold.

    Args:
        num_cached: See `KVCache.commit`.
        slots: See `KVCache.commit`.

    Returns:
        Slots to write, and slots to read, `(B, L)` int64 each.

    >>> targets, sources = moves(5, torch.tensor([[-1, 4, 5]]))
    >>> targets.tolist(), sources.tolist()
    ([[4, 5, 6]], [[6, 7, 6]])
    """
    is_kept = slots >= 0
    count = is_kept.sum(1, keepdim=True)
    lead = is_kept.int().argmax(1, keepdim=True)
    index = torch.arange(slots.shape[1], device=slots.device)
    targets = torch.where(count > 0, slots.gather(1, lead), num_cached) + index
    return targets, torch.where(index < count, num_cached + lead + index, targets)
