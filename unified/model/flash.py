"""FlashAttention for the visibility of frames, exactly, by several calls of its kernels.

The kernels know two masks over sequences of any lengths ("varlen"): none, and causal. Every
visibility is composed of those:

- Tokens that see everything before them in their document are one causal call. The later tokens of
  a token's own frame are a second call: if the frame's tokens are reversed and shifted by one,
  "later" is causal too. The two results are merged by their log-sum-exps.
- All other queries (noisy spans, windows, sinks) form runs. Within a run, all queries see the same
  keys, or each sees one key more than the query before. The keys of a run are gathered side by
  side: a sequence without a mask, or a causal one.

Softmax over a union of keys follows exactly from softmax over the parts. So does its gradient, if
the backward of every part gets the merged output and log-sum-exp, as in ring attention
(arXiv:2310.01889).

Letters: B rows, Q queries, S keys, N heads, K head size, M queries of a call, in all its sequences.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class VarlenCall:
    """One call of a kernel: sequences of queries, each with keys of its own.

    Attributes:
        queries: `(M,)` int64, indices in the B * Q queries of the batch.
        keys: int64, indices in its B * S keys.
        query_starts: int32, where each sequence starts among the call's queries, and the end.
        key_starts: int32, likewise among its keys.
        max_queries: Number of queries of the longest sequence.
        max_keys: Number of keys of the longest sequence.
        is_causal: Whether each query sees one key more than the one before it; the last sees all.
        adds: Whether these queries have seen other keys in an earlier call.
    """

    queries: Tensor
    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    max_queries: int
    max_keys: int
    is_causal: bool
    adds: bool = False


@dataclass(frozen=True)
class VarlenCalls:
    """All kernel calls of one attention, and the kernel."""

    calls: list[VarlenCall]
    kernel: "VarlenKernel"


def plan_calls(visible: Tensor, num_keys: int) -> VarlenCalls:
    """`varlen_calls` with the best kernel available: flash-attn if installed, else torch's own.

    Without CUDA, the reference in plain torch computes the same, slowly.
    """
    calls = varlen_calls(visible, num_keys)
    if visible.device.type != "cuda":
        return VarlenCalls(calls, ReferenceKernel())
    is_installed = find_spec("flash_attn") is not None
    return VarlenCalls(calls, PackageKernel() if is_installed else TorchKernel())


def varlen_calls(visible: Tensor, num_keys: int) -> list[VarlenCall]:
    """The calls that together attend to what is visible, each query to each of its keys once.

    Args:
        visible: `(B, 3, 2, Q)` int32, disjoint intervals. The queries' own keys are the last Q.
        num_keys: Number of keys S.

    Returns:
        At most four calls. A query that sees nothing is in none.
    """
    batch, _, _, length = visible.shape
    device = visible.device
    bounds = visible.permute(0, 3, 1, 2).reshape(batch * length, 3, 2).long()
    bounds = torch.where(bounds[..., 1:] > bounds[..., :1], bounds, 0)
    index = torch.arange(batch * length, device=device)
    place, row = index % length, index // length
    own = place + num_keys - length

    # Documents: tokens from the first on that see all from there to themselves, or more.
    start = bounds[:, 2, 0]
    is_plain = (bounds[:, :2, 1] == 0).all(-1) & (bounds[:, 2, 1] > own) & (start <= own)
    was_plain = pad(is_plain, (1, 0))[:-1]
    is_new = (place == 0) | (start.diff(prepend=start[:1]) != 0) | ~(is_plain & was_plain)
    document = is_new.cumsum(0) - 1
    heads = is_new.nonzero()[:, 0]
    is_whole = is_plain[heads] & (own[heads] == start[heads])

    # Runs of queries: the same keys, or one interval that grows by one key a query.
    change = bounds.diff(dim=0, prepend=bounds[:1])
    is_still = (change == 0).all(-1).all(-1)
    by_one = (change.abs().sum((1, 2)) == 1)[:, None] & (change[:, :, 1] == 1)
    grows = by_one & (bounds[:, :, 1] - bounds[:, :, 0] > 1)
    kind = torch.where(is_still, 1, (grows * torch.tensor([2, 3, 4], device=device)).sum(1))
    kind[(place == 0) | (is_new & (is_plain | was_plain))] = 0
    before = pad(kind, (1, 0))[:-1]
    first = ((kind == 0) | ((kind != before) & (before != 0))).nonzero()[:, 0]
    size = torch.cat([first, first.new_tensor([batch * length])]).diff()
    last = first + size - 1
    grown = torch.where(size > 1, kind[(first + 1).clamp(max=batch * length - 1)] - 2, -1)
    stops = bounds[last].amax((1, 2))

    # In-frame keys that reach past the run are not for the reversed call.
    closed = (grown >= 0) | (stops == own[last] + 1)
    spoilt = torch.zeros_like(is_whole).index_fill_(0, document[first[~closed]], True)
    is_whole &= ~spoilt
    in_document = is_whole[document]

    calls = []
    sizes = torch.cat([heads, heads.new_tensor([batch * length])]).diff()
    if bool(is_whole.any()):
        queries, counts = in_document.nonzero()[:, 0], sizes[is_whole]
        keys = row[queries] * num_keys + own[queries]
        calls.append(_call(queries, keys, counts, counts, is_causal=True))
    chosen = in_document[first] & (grown < 0) & (size > 1)
    if bool(chosen.any()):
        counts = size[chosen] - 1
        queries = _ranges(last[chosen] - 1, counts, -1)
        keys = row[queries] * num_keys + own[queries] + 1
        calls.append(_call(queries, keys, counts, counts, is_causal=True, adds=True))
    for is_causal in (False, True):
        chosen = ~in_document[first] & ((grown >= 0) == is_causal) & (stops > 0)
        if bool(chosen.any()):
            calls.append(
                _gathered(bounds, row, num_keys, first[chosen], size[chosen], grown[chosen])
            )
    return calls


def _gathered(
    bounds: Tensor, row: Tensor, num_keys: int, first: Tensor, size: Tensor, grown: Tensor
) -> VarlenCall:
    """One call for runs of queries. The keys of a run lie side by side, a growing interval last."""
    is_causal = bool(grown[0] >= 0)
    seen = bounds[first + size - 1]
    if is_causal:
        order = (grown[:, None] + torch.arange(1, 4, device=grown.device)) % 3
        seen = seen.gather(1, order[..., None].expand(-1, -1, 2))
    lengths = seen[..., 1] - seen[..., 0]
    offset = (row[first] * num_keys)[:, None]
    keys = _ranges((seen[..., 0] + offset).flatten(), lengths.flatten())
    return _call(_ranges(first, size), keys, size, lengths.sum(1), is_causal=is_causal)


def _ranges(starts: Tensor, counts: Tensor, step: int = 1) -> Tensor:
    """Runs of indices, one after another.

    >>> _ranges(torch.tensor([5, 0]), torch.tensor([3, 2])).tolist()
    [5, 6, 7, 0, 1]
    """
    begin = counts.cumsum(0) - counts
    total = int(counts.sum())
    within = torch.arange(total, device=starts.device)
    within = within - begin.repeat_interleave(counts, output_size=total)
    return starts.repeat_interleave(counts, output_size=total) + step * within


def _call(
    queries: Tensor,
    keys: Tensor,
    query_counts: Tensor,
    key_counts: Tensor,
    *,
    is_causal: bool,
    adds: bool = False,
) -> VarlenCall:
    return VarlenCall(
        queries,
        keys,
        pad(query_counts.cumsum(0), (1, 0)).to(torch.int32),
        pad(key_counts.cumsum(0), (1, 0)).to(torch.int32),
        int(query_counts.max()),
        int(key_counts.max()),
        is_causal,
        adds,
    )


class VarlenKernel(Protocol):
    """FlashAttention over sequences of any lengths; causal is aligned to the last query and key."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, call: VarlenCall
    ) -> tuple[Tensor, Tensor]:
        """Output `(M, N, K)` and log-sum-exp `(N, M)` of queries `(M, N, K)`, keys, values."""
        ...

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        call: VarlenCall,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values, from output and log-sum-exp over all keys."""
        ...


class ReferenceKernel:
    """The kernels' algorithm in plain torch, on any device and in any precision; slow."""

    @staticmethod
    def _sequences(call: VarlenCall):
        queries, keys = call.query_starts.tolist(), call.key_starts.tolist()
        for i in range(len(queries) - 1):
            yield slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])

    @staticmethod
    def _scores(query: Tensor, key: Tensor, is_causal: bool) -> Tensor:
        """`(N, queries, keys)`, minus infinity where masked."""
        groups = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(groups, 1)
        scores = torch.einsum("qnk,snk->nqs", query, key) * query.shape[-1] ** -0.5
        if is_causal:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
            seen = seen.tril(scores.shape[2] - scores.shape[1])
            scores = scores.masked_fill(~seen, -torch.inf)
        return scores

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, call: VarlenCall
    ) -> tuple[Tensor, Tensor]:
        """See `VarlenKernel`."""
        out = torch.empty_like(query)
        precise = torch.promote_types(query.dtype, torch.float32)
        lse = query.new_empty(query.shape[1], len(query), dtype=precise)
        groups = query.shape[1] // key.shape[1]
        for q, s in self._sequences(call):
            scores = self._scores(query[q], key[s], call.is_causal)
            lse[:, q] = scores.to(precise).logsumexp(-1)
            seen = value[s].repeat_interleave(groups, 1)
            out[q] = torch.einsum("nqs,snk->qnk", scores.softmax(-1), seen)
        return out, lse

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        call: VarlenCall,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `VarlenKernel`; FlashAttention-2's equations (arXiv:2307.08691, section 3.1.2)."""
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        scale = query.shape[-1] ** -0.5
        groups = query.shape[1] // key.shape[1]
        delta = (grad * out).sum(-1).T  # (N, M)
        for q, s in self._sequences(call):
            scores = self._scores(query[q], key[s], call.is_causal)
            shares = (scores - lse[:, q, None]).exp().to(query.dtype)
            keys, values = (x[s].repeat_interleave(groups, 1) for x in (key, value))
            by_share = torch.einsum("qnk,snk->nqs", grad[q], values)
            by_score = shares * (by_share - delta[:, q, None]) * scale
            grads[0][q] = torch.einsum("nqs,snk->qnk", by_score, keys)
            for into, weights, states in (
                (grads[1], by_score, query[q]),
                (grads[2], shares, grad[q]),
            ):
                each = torch.einsum("nqs,qnk->snk", weights, states)
                into[s] = each.unflatten(1, (-1, groups)).sum(2)
        return grads


class TorchKernel:
    """The FlashAttention that torch carries (`torch.nn.attention.varlen`); CUDA, half precision."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, call: VarlenCall
    ) -> tuple[Tensor, Tensor]:
        """See `VarlenKernel`."""
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            call.query_starts,
            call.key_starts,
            call.max_queries,
            call.max_keys,
            0.0,
            call.is_causal,
            return_debug_mask=False,
        )
        return out, lse

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        call: VarlenCall,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `VarlenKernel`."""
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._flash_attention_backward(
            grad,
            query,
            key,
            value,
            out,
            lse,
            call.query_starts,
            call.key_starts,
            call.max_queries,
            call.max_keys,
            0.0,
            call.is_causal,
            no_dropout,
            torch.empty(0, device=query.device),
        )


class PackageKernel:
    """The flash-attn package, 2.7 or later; CUDA, half precision."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, call: VarlenCall
    ) -> tuple[Tensor, Tensor]:
        """See `VarlenKernel`."""
        interface: Any = import_module("flash_attn.flash_attn_interface")
        out, lse, *_ = interface._flash_attn_varlen_forward(
            query,
            key,
            value,
            call.query_starts,
            call.key_starts,
            call.max_queries,
            call.max_keys,
            dropout_p=0.0,
            softmax_scale=query.shape[-1] ** -0.5,
            causal=call.is_causal,
        )
        return out, lse

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        call: VarlenCall,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `VarlenKernel`."""
        interface: Any = import_module("flash_attn.flash_attn_interface")
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        interface._flash_attn_varlen_backward(
            grad,
            query,
            key,
            value,
            out,
            lse,
            *grads,
            call.query_starts,
            call.key_starts,
            call.max_queries,
            call.max_keys,
            dropout_p=0.0,
            softmax_scale=query.shape[-1] ** -0.5,
            causal=call.is_causal,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        return grads


class _Attention(torch.autograd.Function):
    """Attention as the merged result of several calls, over flat tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        calls: list[VarlenCall],
        kernel: VarlenKernel,
    ) -> Tensor:
        """Maps `(B * Q, N, K)` queries and `(B * S, N_kv, K)` keys and values."""
        out = torch.zeros_like(query)
        precise = torch.promote_types(query.dtype, torch.float32)
        lse = query.new_full((query.shape[1], len(query)), -torch.inf, dtype=precise)
        for call in calls:
            at = call.queries
            part, total = kernel.forward(query[at], key[call.keys], value[call.keys], call)
            if call.adds:
                parts = torch.stack([lse[:, at], total])
                total = parts.logsumexp(0)
                shares = (parts - total).exp().transpose(1, 2)[..., None]
                part = (shares[0] * out[at] + shares[1] * part).to(out.dtype)
            out[at], lse[:, at] = part, total
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.calls, ctx.kernel = calls, kernel
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Adds up what each call contributes."""
        query, key, value, out, lse = ctx.saved_tensors
        grad = grads[0].contiguous()
        precise = torch.promote_types(query.dtype, torch.float32)
        totals = [torch.zeros_like(x, dtype=precise) for x in (query, key, value)]
        for call in ctx.calls:
            q, s = call.queries, call.keys
            parts = ctx.kernel.backward(
                grad[q], query[q], key[s], value[s], out[q], lse[:, q].contiguous(), call
            )
            for total, at, part in zip(totals, (q, s, s), parts, strict=True):
                total.index_add_(0, at, part.to(precise))
        return *(t.to(query.dtype) for t in totals), None, None


_apply: Any = torch.compiler.disable(_Attention.apply)


def flash_attention(query: Tensor, key: Tensor, value: Tensor, planned: VarlenCalls) -> Tensor:
    """Attention over the visible keys.

    Args:
        query: `(B, N, Q, K)`.
        key: `(B, N_kv, S, K)`, N a multiple of N_kv.
        value: `(B, N_kv, S, K)`.
        planned: From `plan_calls`.

    Returns:
        `(B, N, Q, K)`; zero for queries that see nothing.

    Raises:
        ValueError: If the kernel does not know the states' dtype.
    """
    dtype = query.dtype
    if not isinstance(planned.kernel, ReferenceKernel) and dtype.itemsize != 2:
        raise ValueError(
            f"flash_attention_2 computes in bfloat16 or float16, not in {dtype}; load the model "
            "with dtype=torch.bfloat16, use autocast (--bf16), or another attn_implementation"
        )
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    with torch.autocast(query.device.type, enabled=False):
        out: Any = _apply(*flat, planned.calls, planned.kernel)
    return out.unflatten(0, (query.shape[0], query.shape[2])).transpose(1, 2)
