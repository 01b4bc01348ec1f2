"""Visible intervals -> what each attention back end wants.

`visible` says, for every query, which keys it may attend to, as three half-open intervals (see
`unified.plan`). Every back end derives its own mask from it, so they cannot disagree: a dense
boolean mask for SDPA (the reference, and the one that trains on CPU) and a BlockMask for
FlexAttention (CUDA). FlashAttention will come as calls over the same intervals.

Letters: B rows, Q queries, S keys, N heads, K head size.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

IMPLEMENTATIONS = ("sdpa", "flex_attention")


def dense_mask(visible: Tensor, num_keys: int) -> Tensor:
    """The intervals as a mask for `scaled_dot_product_attention`.

    Args:
        visible: `(B, 3, 2, Q)` int32.
        num_keys: Number of keys S.

    Returns:
        `(B, 1, Q, S)` bool, True where query q may attend to key k.

    >>> intervals = torch.tensor([[[[0], [1]], [[0], [0]], [[2], [4]]]], dtype=torch.int32)
    >>> dense_mask(intervals, 5).int().tolist()
    [[[[1, 0, 1, 1, 0]]]]
    """
    keys = torch.arange(num_keys, device=visible.device, dtype=visible.dtype)
    inside = (keys >= visible[:, :, 0, :, None]) & (keys < visible[:, :, 1, :, None])
    return inside.any(dim=1)[:, None]


def block_mask(visible: Tensor, num_keys: int) -> BlockMask:
    """The intervals as a FlexAttention `BlockMask`, `(B, 1, Q, S)`."""
    bounds = visible

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        first = (k >= bounds[b, 0, 0, q]) & (k < bounds[b, 0, 1, q])
        second = (k >= bounds[b, 1, 0, q]) & (k < bounds[b, 1, 1, q])
        third = (k >= bounds[b, 2, 0, q]) & (k < bounds[b, 2, 1, q])
        return first | second | third

    return create_block_mask(
        mask_mod, visible.shape[0], None, visible.shape[-1], num_keys, device=str(visible.device)
    )


def make_mask(implementation: str, visible: Tensor, num_keys: int) -> Tensor | BlockMask:
    """The mask that `attend` wants for this implementation; made once, used by every layer.

    Raises:
        ValueError: If the implementation is unknown; transformers' own flash path is refused,
            because it would silently drop the bidirectional part of a frame.
    """
    if implementation == "sdpa":
        return dense_mask(visible, num_keys)
    if implementation == "flex_attention":
        return block_mask(visible, num_keys)
    raise ValueError(
        f"attn_implementation={implementation!r} cannot express the visibility of frames; "
        f"use one of {', '.join(IMPLEMENTATIONS)}"
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | BlockMask) -> Tensor:
    """Attention with grouped key and value heads.

    Args:
        query: `(B, N, Q, K)`.
        key: `(B, N_kv, S, K)`, N a multiple of N_kv.
        value: `(B, N_kv, S, K)`.
        mask: From `make_mask`.

    Returns:
        `(B, N, Q, K)`.
    """
    grouped = query.shape[1] != key.shape[1]
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        out = flex(query, key, value, block_mask=mask, enable_gqa=grouped)
        assert isinstance(out, Tensor)
        return out
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, enable_gqa=grouped
    )


@lru_cache(maxsize=1)
def _compiled_flex():
    """FlexAttention has to be compiled; its eager form materialises all scores."""
    return torch.compile(flex_attention, dynamic=False)
