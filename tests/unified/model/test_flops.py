"""The formula counts what torch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unified.model.flops import forward_flops, training_flops
from unified.model.plan import collate
from unified.modeling import UnifiedModel


@pytest.mark.parametrize("experts", [False, True])
def test_the_formula_counts_the_products_that_torch_counts(world, experts):
    config = world.config(path_layer=None, latent_position_features=False, modality_experts=experts)
    rows = [world.row(world.stream(2), config)] * 2
    batch = collate(rows, config, len(rows[0]) + 3)
    shape = batch["input_ids"].shape
    model = UnifiedModel(config)
    plain = sdpa_kernel(SDPBackend.MATH)  # torch does not count its fused kernel on CPU
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    # Torch counts pairs that the mask hides, latent maps of all tokens, and the noise embedding.
    pairs = shape[0] * shape[1] ** 2
    counted = counter.get_total_flops()
    expected = forward_flops(config, shape.numel(), shape.numel(), pairs)
    noise = sum(
        2 * shape.numel() * p.numel()
        for p in model.noise_level_embedding.parameters()
        if p.ndim == 2
    )
    assert counted == expected + noise
    assert training_flops(config, 10, 4, 30) == 3 * forward_flops(config, 10, 4, 30)
