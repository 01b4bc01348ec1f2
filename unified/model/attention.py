"""Visible intervals -> what each attention back end wants.

`visible` says, for every query, which keys it may attend to, as three half-open intervals (see
`unified.model.plan`). Every back end derives its own form from it, so they cannot disagree: a dense
mask for SDPA (the reference, and the one that trains on CPU), a BlockMask for FlexAttention
(CUDA), and calls without a mask for FlashAttention (`unified.model.flash`). On a CPU, long rows are
split into blocks of queries, each with only the keys that it needs: SDPA computes every pair,
masked or not, and in a training row two of three pairs are masked.

Letters: B rows, Q queries, S keys, N heads, K head size.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from unified.model.compilation import compile_function
from unified.model.flash import VarlenCalls, flash_attention, plan_calls

IMPLEMENTATIONS = ("sdpa", "flex_attention", "flash_attention_2")
BLOCK_SIZE = 128
"""Queries, and keys, of a block of FlexAttention."""


@dataclass(frozen=True)
class GatheredKeys:
    """Keys that at least one query of a block of `BLOCK_SIZE` queries sees.

    Attributes:
        keys: `(B, M)` int64, indices of the keys. A row with fewer is filled up with masked ones.
        mask: `(B, 1, queries, M)`, to be added to the scores.
    """

    keys: Tensor
    mask: Tensor


Mask = Tensor | list[GatheredKeys] | BlockMask | VarlenCalls
"""Returned by `make_mask`, one type for each implementation; an argument of `attend`."""


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


def additive_mask(visible: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """`dense_mask` as numbers to add to the scores: 0 or minus infinity.

    SDPA would convert a boolean mask to this form in every layer.
    """
    is_hidden = ~dense_mask(visible, num_keys)
    return torch.zeros_like(is_hidden, dtype=dtype).masked_fill_(is_hidden, -torch.inf)


def gathered_masks(visible: Tensor, num_keys: int, dtype: torch.dtype) -> list[GatheredKeys]:
    """Splits the queries into blocks of `BLOCK_SIZE`, each with the keys that it needs."""
    parts = []
    for bounds in visible.split(BLOCK_SIZE, -1):
        mask = additive_mask(bounds, num_keys, dtype)
        is_needed = (mask == 0).any(2)[:, 0]
        size = int(is_needed.sum(1).max())
        keys = is_needed.int().argsort(dim=1, descending=True, stable=True)[:, :size]
        chosen = keys[:, None, None].expand(-1, -1, mask.shape[2], -1)
        parts.append(GatheredKeys(keys, mask.gather(3, chosen)))
    return parts


def block_mask(visible: Tensor, num_keys: int) -> BlockMask:
    """The intervals as a FlexAttention `BlockMask`, `(B, 1, Q, S)`.

    The least and the greatest bounds of each block of queries say which blocks of keys are visible
    in part, and which as a whole. No pair of query and key is evaluated.
    """
    bounds = visible

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        first = (k >= bounds[b, 0, 0, q]) & (k < bounds[b, 0, 1, q])
        second = (k >= bounds[b, 1, 0, q]) & (k < bounds[b, 1, 1, q])
        third = (k >= bounds[b, 2, 0, q]) & (k < bounds[b, 2, 1, q])
        return first | second | third

    num_queries = visible.shape[-1]
    start, stop = visible[:, :, 0], visible[:, :, 1]
    is_empty = start >= stop
    start, stop = start.masked_fill(is_empty, num_keys), stop.masked_fill(is_empty, 0)
    spare = (0, -num_queries % BLOCK_SIZE)
    # Padded queries see nothing; a block that holds some is never visible as a whole.
    starts = pad(start, spare, value=num_keys).unflatten(-1, (-1, BLOCK_SIZE))
    stops = pad(stop, spare, value=0).unflatten(-1, (-1, BLOCK_SIZE))
    first = torch.arange(0, num_keys, BLOCK_SIZE, device=visible.device)
    last = first + BLOCK_SIZE  # beyond the end for a block that is cut off: never whole either
    touches = (starts.amin(-1)[..., None] < last) & (stops.amax(-1)[..., None] > first)
    holds = (starts.amax(-1)[..., None] <= first) & (stops.amin(-1)[..., None] >= last)
    is_whole = holds.any(1)[:, None]
    is_part = touches.any(1)[:, None] & ~is_whole
    return BlockMask.from_kv_blocks(
        *_listed(is_part),
        *_listed(is_whole),
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=mask_mod,
        seq_lengths=(num_queries, num_keys),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys are chosen for each block of queries, and which, in order."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)


def check_implementation(implementation: str) -> str:
    """Returns the name of an attention back end of ours.

    Raises:
        ValueError: If it is none of them. Transformers' own paths, eager and flash, are refused:
            their causal masks would hide the latents of a frame from each other.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation={implementation!r} cannot express the visibility of frames; "
            f"use one of {', '.join(IMPLEMENTATIONS)}"
        )
    return implementation


def make_mask(
    implementation: str, visible: Tensor, num_keys: int, dtype: torch.dtype = torch.float32
) -> Mask:
    """The mask in the form that this implementation needs; computed once, used by every layer.

    Args:
        implementation: One of `IMPLEMENTATIONS`.
        visible: `(B, 3, 2, Q)` int32.
        num_keys: Number of keys S.
        dtype: Dtype of the queries.

    Raises:
        ValueError: If the implementation is unknown.
    """
    if check_implementation(implementation) == "sdpa":
        is_long = visible.shape[-1] > 2 * BLOCK_SIZE and visible.device.type == "cpu"
        return (gathered_masks if is_long else additive_mask)(visible, num_keys, dtype)
    if implementation == "flex_attention":
        return block_mask(visible, num_keys)
    return plan_calls(visible, num_keys)


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Dtype of attention: that of autocast where it is on, else the given one."""
    kind = device.type
    is_mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_mixed else dtype


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Attention with grouped key and value heads.

    Args:
        query: `(B, N, Q, K)`.
        key: `(B, N_kv, S, K)`, N a multiple of N_kv.
        value: `(B, N_kv, S, K)`.
        mask: From `make_mask`.

    Returns:
        `(B, N, Q, K)`.
    """
    dtype = compute_dtype(query.device, value.dtype)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)  # norms may be more precise
    if isinstance(mask, VarlenCalls):
        return flash_attention(query, key, value, mask)
    if isinstance(mask, list):
        return _attend_gathered(query, key, value, mask)
    if isinstance(mask, BlockMask):
        grouped = query.shape[1] != key.shape[1]
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        out = flex(query, key, value, block_mask=mask, enable_gqa=grouped)
        assert isinstance(out, Tensor)
        return out
    return _attend_dense(query, key, value, mask)


def _attend_dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """SDPA with a boolean mask, or one to be added to the scores."""
    if mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    if query.device.type == "cuda":
        return _attend_without_cudnn(query, key, value, mask)
    grouped = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, enable_gqa=grouped
    )


def _attend_without_cudnn(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """SDPA by the memory-efficient kernel, or by plain products where that one cannot.

    With a mask, cuDNN's kernel reads a float32 mask as if it were bfloat16 (pytorch PR 191612),
    and its gradients are NaN if the length is 64 modulo 128 (pytorch issue 196678). The efficient
    kernel wants as many key heads as query heads.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _attend_gathered(
    query: Tensor, key: Tensor, value: Tensor, parts: list[GatheredKeys]
) -> Tensor:
    """Attention block by block.

    Keys and values are gathered for all blocks at once, so that backward adds up gradients once.
    """
    batch, heads, num_keys, size = key.shape
    head = torch.arange(batch * heads, device=key.device).view(batch, heads, 1) * num_keys
    chosen = [(head + part.keys[:, None]).flatten() for part in parts]
    sizes = [len(indices) for indices in chosen]
    keys, values = (
        x.reshape(-1, size).index_select(0, torch.cat(chosen)).split(sizes) for x in (key, value)
    )
    shape = (batch, heads, -1, size)
    out = [
        _attend_dense(q, k.view(shape), v.view(shape), part.mask)
        for q, k, v, part in zip(query.split(BLOCK_SIZE, 2), keys, values, parts, strict=True)
    ]
    return torch.cat(out, 2)


@lru_cache(maxsize=1)
def _compiled_flex():
    """FlexAttention has to be compiled; its eager form materialises all scores."""
    return compile_function(flex_attention)
