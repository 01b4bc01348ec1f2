"""The decoder's layers: RMSNorm, three-axis rotary positions, attention, path integration, MLP.

Names are Llama's, so that its checkpoints load and peft's usual targets work.

Letters: B rows, L tokens, D hidden size, N heads, K head size, S keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_layers import GradientCheckpointingLayer

from unified.attention import attend
from unified.cache import KVCache
from unified.configuration import UnifiedConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv:1910.07467), computed in float32."""

    def __init__(self, size: int, eps: float):
        """Weights start at one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalises the last axis."""
        normed = functional.rms_norm(hidden.float(), self.weight.shape, eps=self.eps)
        return self.weight * normed.to(hidden.dtype)


def rotary_embedding(position_ids: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for three-axis rotary positions.

    Frequency j belongs to axis j mod 3 (time, row, column). Text stands at the same place on all
    three axes, for which this is the ordinary one-axis rotary (arXiv:2104.09864).

    Args:
        position_ids: `(B, 3, L)` int64.
        rotary_dim: Dimensions of a head that are rotated, even, at most K.
        theta: Base of the frequencies.

    Returns:
        Two tensors `(B, 1, L, rotary_dim)`, float32.
    """
    half = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = 1.0 / (theta ** (half / rotary_dim))
    axis = torch.arange(rotary_dim // 2, device=position_ids.device) % 3
    angles = position_ids[:, axis].float() * frequencies[:, None]
    angles = torch.cat([angles, angles], dim=1).transpose(1, 2)[:, None]
    return angles.cos(), angles.sin()


def rotate(states: Tensor, rotary: tuple[Tensor, Tensor], angles: Tensor | None = None) -> Tensor:
    """Turns `(B, N, L, K)` queries or keys: the first dimensions by position, the others by path.

    Args:
        states: Queries or keys.
        rotary: From `rotary_embedding`.
        angles: `(B, L, P)` from `PathIntegration`, P / (K - rotary_dim) * 2 key heads one after the
            other; None leaves the other dimensions as they are.
    """
    cos, sin = rotary
    size = cos.shape[-1]
    turning, still = states[..., :size], states[..., size:]
    if angles is not None:
        pairs = still.shape[-1] // 2
        by_head = angles.unflatten(-1, (-1, pairs)).transpose(1, 2)
        by_head = by_head.repeat_interleave(states.shape[1] // by_head.shape[1], dim=1)
        by_head = torch.cat([by_head, by_head], dim=-1)
        still = turn(still, by_head.cos(), by_head.sin())
    return torch.cat([turn(turning, cos, sin), still], dim=-1)


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + half) of the last axis."""
    left, right = states.chunk(2, dim=-1)
    turned = states * cos + torch.cat([-right, left], dim=-1) * sin
    return turned.to(states.dtype)


class ModalityLinear(nn.Linear):
    """A linear map of which latent tokens may have their own copy.

    With `experts` the copy sits in the submodule `latent`; without, this is a plain `nn.Linear`.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, experts: bool):
        """Like `nn.Linear`."""
        super().__init__(inputs, outputs, bias=bias)
        self.latent = nn.Linear(inputs, outputs, bias=bias) if experts else None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: Tensor, is_latent: Tensor | None = None
    ) -> Tensor:
        """Maps `(B, L, inputs)`; `is_latent` `(B, L, 1)` bool chooses the copy."""
        out = super().forward(hidden)
        if self.latent is None or is_latent is None:
            return out
        return torch.where(is_latent, self.latent(hidden), out)


class Attention(nn.Module):
    """Grouped-query attention over the visible keys, with an optional cache."""

    def __init__(self, config: UnifiedConfig, layer: int):
        """Projections named as in Llama; `q_norm` and `k_norm` as in Qwen3."""
        super().__init__()
        self.layer = layer
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        options = {"bias": config.attention_bias, "experts": config.modality_experts}
        self.q_proj = ModalityLinear(config.hidden_size, queries, **options)
        self.k_proj = ModalityLinear(config.hidden_size, keys, **options)
        self.v_proj = ModalityLinear(config.hidden_size, keys, **options)
        self.o_proj = ModalityLinear(
            queries, config.hidden_size, bias=False, experts=config.modality_experts
        )
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | BlockMask,
        angles: Tensor | None = None,
        is_latent: Tensor | None = None,
        cache: KVCache | None = None,
        num_cached: int = 0,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Attends from the new tokens to `num_cached` cached slots and to themselves.

        Args:
            hidden: `(B, L, D)`.
            rotary: From `rotary_embedding`.
            mask: From `make_mask`, over `num_cached + L` keys.
            angles: `(B, L, P)` from `PathIntegration`, if there is one.
            is_latent: `(B, L, 1)` bool, read by modality experts.
            cache: Read if given.
            num_cached: Cached slots in front of the new keys.
            slots: `(B, L)` where to commit the new keys and values; None writes nothing.

        Returns:
            `(B, L, D)`.
        """
        batch, length, _ = hidden.shape
        shape = (batch, length, -1, self.head_dim)
        query = self.q_proj(hidden, is_latent).view(shape)
        key = self.k_proj(hidden, is_latent).view(shape)
        value = self.v_proj(hidden, is_latent).view(shape).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query.transpose(1, 2), rotary, angles)
        key = rotate(key.transpose(1, 2), rotary, angles)
        keys, values = key, value
        if cache is not None and num_cached:
            past_keys, past_values = cache.read(self.layer, num_cached)
            keys, values = torch.cat([past_keys, key], 2), torch.cat([past_values, value], 2)
        out = attend(query, keys, values, mask)
        if cache is not None and slots is not None:
            cache.write(self.layer, key, value, slots)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1), is_latent)


class PathIntegration(nn.Module):
    """Where a token stands after all that was done before it: angles that actions turn.

    Each action token turns P angles by amounts computed from its hidden state (a step that was
    blocked, say, by other amounts than one that was taken). Their sums along a token's `path` turn
    the dimensions of its query and key that positions leave alone, so that what lies at the same
    place matches; and their cosines and sines are added to the token. A layer thus counts, and
    counts in circles, what attention can only average: the heading after any number of turns, and
    in the next layer, the place after any number of steps. It is a means to find again what was
    out of sight for more than a few frames, and has to be learned from data that ask for it.

    Transformers with such action-driven positions grow the grid cells of a hippocampus
    (arXiv:2112.04035); as phases of the rotary they are known as Selective RoPE (arXiv:2511.17388).
    """

    def __init__(self, config: UnifiedConfig, layer: int):
        """Angles start near zero, and what is added at zero."""
        super().__init__()
        self.layer = layer
        size, angles = config.hidden_size, config.path_angles
        self.step_weight = nn.Parameter(torch.randn(angles, size) * 0.01)
        self.out_weight = nn.Parameter(torch.zeros(size, 2 * angles))

    def forward(
        self,
        hidden: Tensor,
        path: Tensor,
        is_action: Tensor,
        cache: KVCache | None = None,
        num_cached: int = 0,
        slots: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sums in float32 at least.

        Args:
            hidden: `(B, L, D)`.
            path: `(B, 2, 2, L)`, from the plan.
            is_action: `(B, L, 1)` bool.
            cache: See `Attention.forward`, as for the following.
            num_cached: See `Attention.forward`.
            slots: See `Attention.forward`.

        Returns:
            What to add to the tokens, `(B, L, D)`, and the angles, `(B, L, P)`.
        """
        steps = functional.linear(hidden, self.step_weight) * is_action
        steps = steps.to(torch.promote_types(steps.dtype, torch.float32))
        past = steps
        if cache is not None and num_cached:
            past = cache.read_steps(self.layer, num_cached)
        angles = sum_between(past, path[:, 0]) + sum_between(steps, path[:, 1] - num_cached)
        if cache is not None and slots is not None:
            cache.write_steps(self.layer, steps, slots)
        features = torch.cat([angles.cos() - 1, angles.sin()], -1)  # zero before anything is done
        return functional.linear(features.to(hidden.dtype), self.out_weight), angles


def sum_between(steps: Tensor, bounds: Tensor) -> Tensor:
    """Sums of `(B, S, P)` steps over the intervals `(B, 2, L)`: `(B, L, P)`."""
    sums = functional.pad(steps.cumsum(1), (0, 0, 1, 0))  # sums[:, i] is over what precedes i
    start, stop = bounds.long()[..., None].expand(-1, -1, -1, steps.shape[-1]).unbind(1)
    return sums.gather(1, stop) - sums.gather(1, start)


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: UnifiedConfig):
        """Projections named as in Llama."""
        super().__init__()
        options = {"bias": False, "experts": config.modality_experts}
        self.gate_proj = ModalityLinear(config.hidden_size, config.intermediate_size, **options)
        self.up_proj = ModalityLinear(config.hidden_size, config.intermediate_size, **options)
        self.down_proj = ModalityLinear(config.intermediate_size, config.hidden_size, **options)

    def forward(self, hidden: Tensor, is_latent: Tensor | None = None) -> Tensor:
        """Maps `(B, L, D)` to `(B, L, D)`."""
        gate = functional.silu(self.gate_proj(hidden, is_latent))
        return self.down_proj(gate * self.up_proj(hidden, is_latent), is_latent)


class DecoderLayer(GradientCheckpointingLayer):
    """Attention (with path integration beside it) and MLP, each behind a norm and a residual."""

    def __init__(self, config: UnifiedConfig, layer: int):
        """Modules named as in Llama."""
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.path = PathIntegration(config, layer) if config.path_integration else None
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | BlockMask,
        path: Tensor,
        is_latent: Tensor,
        is_action: Tensor,
        cache: KVCache | None = None,
        num_cached: int = 0,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Arguments as in `Attention.forward` and `PathIntegration.forward`."""
        normed = self.input_layernorm(hidden)
        caching = (cache, num_cached, slots)
        angles = None
        if self.path is not None:
            place, angles = self.path(normed, path, is_action, *caching)
            hidden = hidden + place
        hidden = hidden + self.self_attn(normed, rotary, mask, angles, is_latent, *caching)
        return hidden + self.mlp(self.post_attention_layernorm(hidden), is_latent)


class FourierFeatures(nn.Module):
    """Sines and cosines of scalars, mapped to the hidden size.

    Knows no table and no largest value, so it serves any resolution.
    """

    def __init__(self, num_scalars: int, periods: list[float], hidden_size: int):
        """`periods` are in the scalars' unit."""
        super().__init__()
        self.periods = tuple(periods)
        self.proj = nn.Linear(2 * num_scalars * len(periods), hidden_size, bias=False)

    def forward(self, scalars: Tensor) -> Tensor:
        """Maps `(..., num_scalars)` to `(..., D)`."""
        periods = torch.tensor(self.periods, device=scalars.device, dtype=torch.float32)
        angles = (scalars.float()[..., None] * (2 * torch.pi / periods)).flatten(-2)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.proj(features.to(self.proj.weight.dtype))


class NoiseLevelEmbedding(nn.Module):
    """A noise level in [0, 1] as a vector that is added to its latent tokens."""

    def __init__(self, hidden_size: int):
        """Fourier features, then a two-layer MLP."""
        super().__init__()
        periods = [4.0 / 2**k for k in range(8)]
        self.features = FourierFeatures(1, periods, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, levels: Tensor) -> Tensor:
        """Maps `(B, L)` to `(B, L, D)`."""
        return self.out(functional.silu(self.features(levels[..., None])))
