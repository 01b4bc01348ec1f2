"""Back ends agree: the dense mask, FlexAttention, and the definition."""

import pytest
import torch

from unified.attention import attend, block_mask, dense_mask, make_mask
from unified.plan import pack


def definition(query, key, value, mask):
    """Softmax attention over the visible keys, one query at a time."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = torch.empty_like(query)
    for b in range(query.shape[0]):
        for n in range(query.shape[1]):
            for q in range(query.shape[2]):
                keys = mask[b, 0, q].nonzero()[:, 0]
                scores = key[b, n, keys] @ query[b, n, q] / query.shape[-1] ** 0.5
                out[b, n, q] = scores.softmax(0) @ value[b, n, keys]
    return out


def states(length, heads=4, grouped=2, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, length, size), (2, grouped, length, size), (2, grouped, length, size)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.fixture(scope="module")
def visible(world):
    """Two rows of packed documents with noisy spans, under a short window."""
    config = world.config(window_frames=2)
    rows = [
        pack([world.row(world.stream(a), config), world.row(world.stream(b), config)])
        for a, b in ((1, 3), (3, 1))
    ]
    assert len(rows[0]) == len(rows[1])
    return torch.stack([row.visible for row in rows])


def test_attention_is_softmax_over_the_visible_keys(visible):
    query, key, value = states(visible.shape[-1])
    mask = dense_mask(visible, visible.shape[-1])
    torch.testing.assert_close(attend(query, key, value, mask), definition(query, key, value, mask))


def test_the_block_mask_holds_the_very_pairs_of_the_dense_mask(visible):
    length = visible.shape[-1]
    mask = block_mask(visible, length)
    batch, query, key = torch.meshgrid(
        torch.arange(2), torch.arange(length), torch.arange(length), indexing="ij"
    )
    found = mask.mask_mod(batch, torch.zeros_like(batch), query, key)
    assert torch.equal(found, dense_mask(visible, length)[:, 0])


@pytest.mark.parametrize("implementation", ["eager", "flash_attention_2"])
def test_an_implementation_that_cannot_express_frames_is_refused(visible, implementation):
    with pytest.raises(ValueError, match="use one of sdpa, flex_attention"):
        make_mask(implementation, visible, 3)


def test_sdpa_equals_flex_attention(visible):
    length = visible.shape[-1]
    query, key, value = states(length, size=16, dtype=torch.float32)
    dense = attend(query, key, value, make_mask("sdpa", visible, length))
    flex = attend(query, key, value, make_mask("flex_attention", visible, length))
    torch.testing.assert_close(flex, dense, rtol=1e-5, atol=1e-5)
