"""Back ends agree: the dense mask, FlexAttention, and the definition."""

import pytest
import torch
from transformers import AutoModel

from unified.model.attention import attend, block_mask, dense_mask, make_mask
from unified.model.plan import collate, pack
from unified.modeling import UnifiedModel


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


@pytest.mark.parametrize("length", [257, 300])
def test_gathered_parts_of_a_long_row_equal_the_dense_mask_gradients_included(length):
    generator = torch.Generator().manual_seed(length)
    own = torch.arange(length).expand(2, -1)
    cuts = torch.rand(2, 4, length, generator=generator).sort(1).values * own[:, None]
    cuts = torch.cat([cuts.long(), own[:, None], own[:, None] + 1], 1)
    visible = cuts.unflatten(1, (3, 2)).to(torch.int32)  # up to two runs of the past, and itself
    inputs = [x.requires_grad_() for x in states(length)]
    weights = torch.randn(inputs[0].shape, generator=generator, dtype=torch.float64)

    def result(mask):
        query, key, value = inputs
        out = attend(query, key, value, mask)
        return [out, *torch.autograd.grad(out, inputs, weights)]

    gathered = make_mask("sdpa", visible, length, torch.float64)
    assert isinstance(gathered, list)
    for found, expected in zip(result(gathered), result(dense_mask(visible, length)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_block_mask_holds_the_very_pairs_of_the_dense_mask(visible):
    length = visible.shape[-1]
    mask = block_mask(visible, length)
    batch, query, key = torch.meshgrid(
        torch.arange(2), torch.arange(length), torch.arange(length), indexing="ij"
    )
    found = mask.mask_mod(batch, torch.zeros_like(batch), query, key)
    assert torch.equal(found, dense_mask(visible, length)[:, 0])


@pytest.mark.parametrize("implementation", ["eager", "flash_attention_3", "paged|sdpa"])
def test_an_implementation_that_cannot_express_frames_is_refused(visible, world, implementation):
    with pytest.raises(ValueError, match="use one of sdpa, flex_attention, flash_attention_2"):
        make_mask(implementation, visible, 3)
    with pytest.raises(ValueError, match="cannot express the visibility of frames"):
        AutoModel.from_config(world.config(), attn_implementation=implementation)
    model = UnifiedModel(world.config())
    with pytest.raises(ValueError, match="cannot express the visibility of frames"):
        model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == "sdpa"


def test_flash_attention_is_ours_and_never_that_of_transformers(world, monkeypatch):
    rows = [world.row(world.stream(2), world.config())]
    batch = collate(rows, world.config(), len(rows[0]))
    model = UnifiedModel(world.config()).double()
    expected = model(**batch, noise=torch.zeros_like(batch["latents"]))
    model.set_attn_implementation("flash_attention_2")
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    found = model(**batch, noise=torch.zeros_like(batch["latents"]))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("num_frames", [2, 30])
def test_under_autocast_all_back_ends_train(world, implementation, num_frames):
    model = UnifiedModel(world.config(window_frames=99))
    model.set_attn_implementation(implementation)
    rows = [world.row(world.stream(num_frames), model.config)]
    batch = collate(rows, model.config, len(rows[0]))
    noise = torch.zeros_like(batch["latents"])
    expected = model(**batch, noise=noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, noise=noise).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (256, 512), (1, 130)])
def test_blocks_are_whole_where_all_is_visible_and_absent_only_where_nothing_is(queries, keys):
    generator = torch.Generator().manual_seed(0)
    cuts = torch.randint(0, keys + 1, (2, queries // 40 + 1, 6), generator=generator)
    cuts = cuts.sort(-1).values.repeat_interleave(40, 1)[:, :queries]
    visible = cuts.view(2, queries, 3, 2).permute(0, 2, 3, 1).to(torch.int32)
    mask = block_mask(visible, keys)
    spare = (0, -keys % 128, 0, -queries % 128)
    pairs = torch.nn.functional.pad(dense_mask(visible, keys)[:, 0], spare)
    blocks = pairs.unflatten(1, (-1, 128)).unflatten(3, (-1, 128))
    some, every = blocks.any(4).any(2), blocks.all(4).all(2)
    part, whole = torch.zeros_like(some), torch.zeros_like(some)
    for table, counts, indices in (
        (part, mask.kv_num_blocks, mask.kv_indices),
        (whole, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        assert counts is not None
        assert indices is not None
        for b in range(2):
            for q in range(some.shape[1]):
                table[b, q, indices[b, 0, q, : counts[b, 0, q]].long()] = True
    assert not (part & whole).any()
    assert (some <= part | whole).all()
    assert (whole <= every).all()


def test_sdpa_equals_flex_attention(visible):
    length = visible.shape[-1]
    query, key, value = states(length, size=16, dtype=torch.float32)
    dense = attend(query, key, value, make_mask("sdpa", visible, length))
    flex = attend(query, key, value, make_mask("flex_attention", visible, length))
    torch.testing.assert_close(flex, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    [
        ("sdpa", torch.float32, 1e-4),
        ("sdpa", torch.bfloat16, 1e-2),
        ("flex_attention", torch.float32, 1e-4),
        ("flex_attention", torch.bfloat16, 1e-2),
        ("flash_attention_2", torch.bfloat16, 1e-2),
    ],
)
@pytest.mark.parametrize("window_frames", [2, 99])
def test_on_a_gpu_each_back_end_equals_the_dense_mask(
    world, implementation, dtype, tolerance, window_frames
):
    config = world.config(window_frames=window_frames)
    rows = [
        pack([world.row(world.stream(frames), config) for frames in order])
        for order in ((30, 9), (9, 30))
    ]
    visible = torch.stack([row.visible for row in rows]).cuda()
    length = visible.shape[-1]
    shapes = [(2, 4, length, 64), (2, 2, length, 64), (2, 2, length, 64)]
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=generator).to(dtype).cuda() for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator).cuda()

    def result(name, to):
        inputs = [x.to(to).requires_grad_() for x in exact]
        query, key, value = inputs
        out = attend(query, key, value, make_mask(name, visible, length))
        return [out, *torch.autograd.grad(out, inputs, weights.to(to))]

    for found, expected in zip(
        result(implementation, dtype), result("sdpa", torch.float64), strict=True
    ):
        error = (found.double() - expected).norm() / expected.norm()
        assert error < tolerance
