"""Calls without a mask, merged, equal attention under the mask, and so do their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unified.model.test_attention import states
from unified.model.attention import attend, dense_mask
from unified.model.flash import ReferenceKernel, VarlenCalls, flash_attention, varlen_calls
from unified.model.plan import pack, plan_stream


def pairs(calls, batch, length, num_keys):
    """How often each query meets each key, `(B, Q, S)`."""
    count = torch.zeros(batch * length, batch * num_keys, dtype=torch.int64)
    for call in calls:
        queries, keys = call.query_starts.tolist(), call.key_starts.tolist()
        for i in range(len(queries) - 1):
            q = call.queries[queries[i] : queries[i + 1]]
            s = call.keys[keys[i] : keys[i + 1]]
            for j, one in enumerate(q):
                seen = s[: len(s) - len(q) + j + 1] if call.is_causal else s
                count[one, seen] += 1
    blocks = count.view(batch, length, batch, num_keys)
    for row in range(batch):
        others = [other for other in range(batch) if other != row]
        assert not blocks[row, :, others].any()  # no row meets another's keys
    return torch.stack([blocks[row, :, row] for row in range(batch)])


def assert_exact(visible, num_keys):
    """The pairs are those of the mask, and values and gradients those of dense attention."""
    batch, length = visible.shape[0], visible.shape[-1]
    calls = varlen_calls(visible, num_keys)
    mask = dense_mask(visible, num_keys)
    assert torch.equal(pairs(calls, batch, length, num_keys), mask[:, 0].long())
    query, key, value = (x[:batch] for x in states(num_keys))
    query = query[:, :, :length]
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    others = [x.clone().requires_grad_() for x in (query, key, value)]
    out = flash_attention(inputs[0], inputs[1], inputs[2], VarlenCalls(calls, ReferenceKernel()))
    dense = attend(others[0], others[1], others[2], mask).where(mask.any(-1, keepdim=True), 0.0)
    torch.testing.assert_close(out, dense, rtol=1e-10, atol=1e-10)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    for found, expected in zip(
        torch.autograd.grad(out, inputs, weights),
        torch.autograd.grad(dense, others, weights),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    return calls


@pytest.mark.parametrize("window_frames", [1, 2, 9])
@pytest.mark.parametrize("spans", ["frame", "sequence", "bidirectional"])
def test_packed_rows_with_noisy_spans_are_exact(world, window_frames, spans):
    config = world.config(window_frames=window_frames)
    rows = [
        pack([world.row(world.stream(a), config, kind=spans) for a in order])
        for order in ((1, 3), (3, 1))
    ]
    visible = torch.stack([row.visible for row in rows])
    assert_exact(visible, visible.shape[-1])


def test_a_document_without_window_is_two_calls_and_copies_nothing(world):
    ids = world.stream(3).input_ids
    visible = plan_stream(ids[None], world.config(window_frames=9)).visible
    past, later = assert_exact(visible, len(ids))
    assert torch.equal(past.queries, torch.arange(len(ids)))
    assert torch.equal(past.keys, past.queries)
    assert len(later.queries) == 3 * (world.config().frame_tokens - 1)
    assert later.adds


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_disjoint_intervals_are_exact(data):
    length = data.draw(st.integers(1, 7))
    num_keys = length + data.draw(st.integers(0, 3))
    rows = []
    for _ in range(2):
        queries = []
        while len(queries) < length:
            cuts = sorted(data.draw(st.lists(st.integers(0, num_keys), min_size=6, max_size=6)))
            run = data.draw(st.integers(1, 4))
            growing = data.draw(st.sampled_from([None, 0, 1, 2]))
            for i in range(run):
                moved = torch.tensor(cuts).view(3, 2)
                if growing is not None:
                    following = [cuts[2], cuts[4], num_keys][growing]
                    moved[growing, 1] = min(moved[growing, 1] + i, following)
                queries.append(moved)
        rows.append(torch.stack(queries[:length], -1))
    assert_exact(torch.stack(rows).to(torch.int32), num_keys)
