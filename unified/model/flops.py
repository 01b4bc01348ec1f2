"""How much arithmetic a pass takes, for throughput figures that can be compared.

The usual counts: two operations for each multiply-add of a matrix product, and none for the rest.
Attention counts visible pairs of query and key only. The backward pass counts twice the forward
one, without what is computed again. Model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B) is
this count, divided by the time and by the peak of the device.
"""

from torch import Tensor

from unified.configuration import UnifiedConfig

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 operations a second, by a part of the device's name, from the makers' sheets."""


def peak_flops(device_name: str) -> float | None:
    """Greatest number of operations a second of a GPU, None if it is unknown.

    >>> peak_flops("NVIDIA H200")
    989000000000000.0
    """
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def count_pairs(visible: Tensor) -> int:
    """Visible pairs of query and key of `(B, 3, 2, L)` intervals, which are disjoint."""
    return int((visible[:, :, 1] - visible[:, :, 0]).clamp(min=0).long().sum())


def forward_flops(config: UnifiedConfig, num_tokens: int, num_latents: int, num_pairs: int) -> int:
    """Operations of one forward pass.

    Args:
        config: The model's.
        num_tokens: All tokens, the latent ones included, in all rows.
        num_latents: Latent tokens among them.
        num_pairs: Visible pairs of query and key, in all rows.

    Returns:
        Floating-point operations. The latent path's small maps are counted where they are used.
    """
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    width, queries = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    projections = width * (2 * queries + 2 * keys)
    mlp = 3 * width * config.intermediate_size
    per_layer = projections + mlp  # of modality experts, each token needs one
    heads = width * (config.vocab_size + config.latent_size)
    linear = num_tokens * (config.num_hidden_layers * per_layer + heads)
    linear += num_latents * width * config.latent_size
    attention = 2 * config.num_hidden_layers * num_pairs * queries
    return 2 * (linear + attention)


def training_flops(config: UnifiedConfig, num_tokens: int, num_latents: int, num_pairs: int) -> int:
    """Operations of one forward and backward pass; arguments as in `forward_flops`."""
    return 3 * forward_flops(config, num_tokens, num_latents, num_pairs)


def batch_flops(config: UnifiedConfig, input_ids: Tensor, visible: Tensor) -> int:
    """`training_flops` of a batch, `(B, L)` and `(B, 3, 2, L)`."""
    num_latents = int((input_ids == config.latent_token_id).sum())
    return training_flops(config, input_ids.numel(), num_latents, count_pairs(visible))
