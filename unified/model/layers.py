"""The decoder's layers: RMSNorm, three-axis rotary positions, attention, MLP; path integration.

Names are Llama's, so that its checkpoints load and peft's usual targets work.

Letters: B rows, L tokens, D hidden size, N heads, K head size, S keys.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from unified.configuration import UnifiedConfig
from unified.model.attention import Mask, attend
from unified.model.cache import KVCache
from unified.model.compilation import compile_function

PLACE_BIAS = 4.0
"""Initial bias of queries and keys in the pairs that places turn; their variance is one."""
PLACE_NORM = 1.4
"""Initial weight of the query and key norms. A third of the attention then falls on a token's own
place."""


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


def position_angles(position_ids: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Angles of three-axis rotary positions.

    Frequency j belongs to axis j mod 3 (time, row, column). Text stands at the same place on all
    three axes, for which this is the ordinary one-axis rotary (arXiv:2104.09864).

    Args:
        position_ids: `(B, 3, L)` int64.
        rotary_dim: Dimensions of a head that are rotated, even, at most K.
        theta: Base of the frequencies.

    Returns:
        `(B, L, rotary_dim / 2)` float32.
    """
    half = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = 1.0 / (theta ** (half / rotary_dim))
    axis = torch.arange(rotary_dim // 2, device=position_ids.device) % 3
    return (position_ids[:, axis].float() * frequencies[:, None]).transpose(1, 2)


def place_angles(places: Tensor, num_angles: int) -> Tensor:
    """Angles of places in the world: rotary positions on two axes, ahead and right.

    Periods are 3, 6, 12, ... tokens. The shortest one distinguishes neighbours; an error of a
    quarter of a token changes it little.

    Args:
        places: `(B, L, 2)` float32.
        num_angles: Even.

    Returns:
        `(B, L, num_angles)` float32.
    """
    octaves = torch.arange(num_angles // 2, device=places.device)
    frequencies = 2 * torch.pi / (3.0 * 2.0**octaves)
    return (places[..., None] * frequencies).flatten(-2)


def rotary_embedding(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, `(B, 1, L, 2 A)` each, of `(B, L, A)` angles, for the heads of a layer."""
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the first dimensions of `(B, N, L, K)` queries or keys by their positions."""
    cos, sin = rotary
    size = cos.shape[-1]
    turning, still = states[..., :size], states[..., size:]
    left, right = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([turned.to(states.dtype), still], dim=-1)


def expert_pair(
    inputs: int, outputs: int, *, bias: bool = False, experts: bool = False
) -> tuple[nn.Linear, nn.Linear | None]:
    """A linear map, and with `experts` a second one that latent tokens have to themselves.

    Both are plain `nn.Linear`s, so that peft can adapt either.
    """
    latent = nn.Linear(inputs, outputs, bias=bias) if experts else None
    return nn.Linear(inputs, outputs, bias=bias), latent


def modality_linear(
    linear: nn.Module, latent: nn.Module | None, hidden: Tensor, is_latent: Tensor | None
) -> Tensor:
    """Maps `(B, L, inputs)`; by `latent`, if it exists, where `is_latent` `(B, L, 1)` is True."""
    if latent is None or is_latent is None:
        return linear(hidden)
    if torch.compiler.is_compiling() or hidden.is_cuda:  # shapes that never change, no waiting
        return torch.where(is_latent, latent(hidden), linear(hidden))
    chosen = is_latent[..., 0]
    of_words, of_latents = linear(hidden[~chosen]), latent(hidden[chosen])
    out = of_words.new_empty(*hidden.shape[:-1], of_words.shape[-1])
    out[~chosen], out[chosen] = of_words, of_latents
    return out


class Attention(nn.Module):
    """Projections and norms of grouped-query attention, around `attend`."""

    def __init__(self, config: UnifiedConfig, layer: int):
        """Projections named as in Llama; `q_norm` and `k_norm` as in Qwen3."""
        super().__init__()
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        bias, experts = config.attention_bias, config.modality_experts
        by_place = {"bias": bias or layer == config.path_layer, "experts": experts}
        width = config.hidden_size
        self.q_proj, self.q_proj_latent = expert_pair(width, queries, **by_place)
        self.k_proj, self.k_proj_latent = expert_pair(width, keys, **by_place)
        self.v_proj, self.v_proj_latent = expert_pair(width, keys, bias=bias, experts=experts)
        self.o_proj, self.o_proj_latent = expert_pair(queries, width, experts=experts)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    @torch.no_grad()
    def look_at_own_place(self) -> None:
        """Initialises the path's layer so that every head attends to its own place.

        The biases give queries and keys a constant part in the pairs that places turn. The product
        of these parts is greatest where query and key are at the same place. With random weights
        alone, the layer does not find that out.
        """
        maps = (self.q_proj, self.k_proj, self.q_proj_latent, self.k_proj_latent)
        for projection in maps:
            if projection is None:
                continue
            assert projection.bias is not None
            pairs = projection.bias.view(-1, 2, 2, self.head_dim // 4)  # head, half, by what
            pairs[:, :, 1] = PLACE_BIAS
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.weight.fill_(PLACE_NORM)

    def project(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], is_latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, the former two turned by their positions.

        Args:
            hidden: `(B, L, D)`.
            rotary: From `rotary_embedding`.
            is_latent: `(B, L, 1)` bool, read by modality experts.

        Returns:
            `(B, N, L, K)`, and twice `(B, N_kv, L, K)`.
        """
        shape = (*hidden.shape[:2], -1, self.head_dim)
        query = modality_linear(self.q_proj, self.q_proj_latent, hidden, is_latent).view(shape)
        key = modality_linear(self.k_proj, self.k_proj_latent, hidden, is_latent).view(shape)
        value = modality_linear(self.v_proj, self.v_proj_latent, hidden, is_latent)
        value = value.view(shape).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return rotate(query.transpose(1, 2), rotary), rotate(key.transpose(1, 2), rotary), value

    def combine(self, attended: Tensor, is_latent: Tensor | None = None) -> Tensor:
        """Projects the output of the heads, `(B, N, L, K)`, to `(B, L, D)`."""
        heads = attended.transpose(1, 2).flatten(2)
        return modality_linear(self.o_proj, self.o_proj_latent, heads, is_latent)


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: UnifiedConfig):
        """Projections named as in Llama."""
        super().__init__()
        width, size = config.hidden_size, config.intermediate_size
        experts = config.modality_experts
        self.gate_proj, self.gate_proj_latent = expert_pair(width, size, experts=experts)
        self.up_proj, self.up_proj_latent = expert_pair(width, size, experts=experts)
        self.down_proj, self.down_proj_latent = expert_pair(size, width, experts=experts)

    def forward(self, hidden: Tensor, is_latent: Tensor | None = None) -> Tensor:
        """Maps `(B, L, D)` to `(B, L, D)`."""
        gate = functional.silu(
            modality_linear(self.gate_proj, self.gate_proj_latent, hidden, is_latent)
        )
        up = modality_linear(self.up_proj, self.up_proj_latent, hidden, is_latent)
        return modality_linear(self.down_proj, self.down_proj_latent, gate * up, is_latent)


class DecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: UnifiedConfig, layer: int):
        """Modules named as in Llama."""
        super().__init__()
        self.layer = layer
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Mask,
        is_latent: Tensor | None = None,
        cache: KVCache | None = None,
        num_cached: int = 0,
        is_compiled: bool = False,
    ) -> Tensor:
        """Attends from the new tokens to `num_cached` cached slots and to themselves.

        The computation before attention and the one after it do not depend on how much is cached.
        They are two functions, so that each can be compiled once for all layers and frames.

        Args:
            hidden: `(B, L, D)`.
            rotary: From `rotary_embedding`.
            mask: From `make_mask`, over `num_cached + L` keys.
            is_latent: `(B, L, 1)` bool, read by modality experts.
            cache: Keys and values before these; the new ones are put there as scratch.
            num_cached: Cached slots in front of the new keys.
            is_compiled: Whether to run the compiled forms of these two functions.

        Returns:
            `(B, L, D)`.
        """
        before, after = _compiled_halves() if is_compiled else _halves()
        query, key, value = before(self, hidden, rotary, is_latent)
        if cache is not None:
            key, value = cache.put(self.layer, key, value, num_cached)
        return after(self, hidden, attend(query, key, value, mask), is_latent)

    def before(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], is_latent: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the layer's input; see `Attention.project`."""
        return self.self_attn.project(self.input_layernorm(hidden), rotary, is_latent)

    def after(self, hidden: Tensor, attended: Tensor, is_latent: Tensor | None) -> Tensor:
        """The layer's output, from its input and the output of attention."""
        hidden = hidden + self.self_attn.combine(attended, is_latent)
        return hidden + self.mlp(self.post_attention_layernorm(hidden), is_latent)


def _halves() -> tuple[Callable[..., Any], Callable[..., Any]]:
    return DecoderLayer.before, DecoderLayer.after


@lru_cache(maxsize=1)
def _compiled_halves() -> tuple[Callable[..., Any], Callable[..., Any]]:
    before, after = (compile_function(half) for half in _halves())
    return before, after


class FourierFeatures(nn.Module):
    """Sines and cosines of scalars, mapped to the hidden size.

    There is no table and no largest value, so it works at any resolution.
    """

    def __init__(
        self, num_scalars: int, first_period: float, ratio: float, num_periods: int, hidden: int
    ):
        """Periods, in the scalars' unit, are `first_period`, `first_period * ratio`, and so on."""
        super().__init__()
        self.first_period, self.ratio, self.num_periods = first_period, ratio, num_periods
        self.proj = nn.Linear(2 * num_scalars * num_periods, hidden, bias=False)

    def forward(self, scalars: Tensor) -> Tensor:
        """Maps `(..., num_scalars)` to `(..., D)`."""
        exponents = torch.arange(self.num_periods, device=scalars.device)
        periods = self.first_period * self.ratio**exponents
        angles = (scalars.float()[..., None] * (2 * torch.pi / periods)).flatten(-2)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.proj(features.to(self.proj.weight.dtype))


class PathIntegration(nn.Module):
    """The place of each token in the world, integrated from the motions of all actions before it.

    A view that was seen a few frames ago can be found by comparing frames. To find an older one,
    the model has to know where it stands. Turns and steps do not commute, so no sum of rotary
    angles gives that place, and a transformer hardly learns to compute it.

    Here the hidden state of each action token selects a motion: a turn, then a displacement. A
    blocked step can thus select none. The motions along a token's `path` are integrated to a pose,
    as in odometry. The pose gives each latent a place on the plane. One layer of the decoder uses
    these places as rotary positions, beside the usual ones. There a token attends to what was last
    seen at its own place, however long ago.

    Motions are trained by regression where the data have measured ones, and through the flow loss
    everywhere. Relative poses as rotary positions: GTA (arXiv:2310.10375); integrated actions as a
    position code: arXiv:2112.04035.
    """

    NUM_MOTIONS = 16
    """Number of learned motions. Each action takes a softmax mixture of them."""

    def __init__(self, config: UnifiedConfig):
        """Leaves `motions` to be initialised by `UnifiedTransformer._init_weights`."""
        super().__init__()
        self.origin = tuple(config.path_origin)
        self.lattice = config.path_lattice
        self.choice = nn.Linear(config.hidden_size, self.NUM_MOTIONS, bias=False)
        self.motions = nn.Parameter(torch.empty(self.NUM_MOTIONS, 3))

    def motions_of(self, hidden: Tensor) -> Tensor:
        """The motion that each token would make if it were an action; float32 at least.

        Args:
            hidden: `(B, L, D)`.

        Returns:
            `(B, L, 3)`: a turn in radians to the right, and how far ahead and to the right of where
            the agent looks then.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            normed = functional.rms_norm(hidden.to(dtype), hidden.shape[-1:])
            choice = functional.linear(normed, self.choice.weight.to(dtype)).softmax(-1)
            return choice @ self.motions.to(dtype)

    def forward(
        self,
        motions: Tensor,
        path: Tensor,
        position_ids: Tensor,
        is_latent: Tensor,
        cache: KVCache | None = None,
        num_cached: int = 0,
    ) -> Tensor:
        """Sums motions up, in float32 at least.

        Args:
            motions: `(B, L, 3)`, zero for all but actions.
            path: `(B, 2, 2, L)`, from the plan.
            position_ids: `(B, 3, L)`, likewise.
            is_latent: `(B, L, 1)` bool.
            cache: See `Attention.forward`, as for the following.
            num_cached: See `Attention.forward`.

        Returns:
            Places, `(B, L, 2)` float32, in tokens of a frame ahead and to the right of where the
            path began: a latent's own, and the agent's for other tokens.
        """
        if self.lattice is not None:
            motions = motions + (rounded(motions, *self.lattice) - motions).detach()
        turns, moves = motions.split([1, 2], -1)
        past = cache.read_steps(num_cached) if cache is not None and num_cached else None
        before, own = path[:, 0], path[:, 1] - num_cached
        past_turns = turns if past is None else past[..., :1]
        heading = sum_between(past_turns, before) + sum_between(turns, own)
        moves = turn_by(heading, moves)  # in directions of the world, which may be added
        past_moves = moves if past is None else past[..., 1:]
        agent = sum_between(past_moves, before) + sum_between(moves, own)
        if cache is not None:
            cache.put_steps(torch.cat([turns, moves], -1), num_cached)
        return agent + turn_by(heading, latent_offsets(position_ids, self.origin) * is_latent)


def latent_offsets(position_ids: Tensor, origin: tuple[int, ...] | list[int]) -> Tensor:
    """How far ahead and to the right of the agent latents lie, `(B, L, 2)`, from `(B, 3, L)`."""
    row, column = (position_ids[:, 1:] - position_ids[:, :1]).float().unbind(1)
    return torch.stack([origin[0] - row, column - origin[1]], -1)


def latent_places(
    pose: Tensor, position_ids: Tensor, origin: tuple[int, ...] | list[int]
) -> Tensor:
    """Where latents lie in the world, `(B, L, 2)`, seen from poses `(B, L, 3)` (turn and place)."""
    heading, agent = pose.split([1, 2], -1)
    return agent + turn_by(heading, latent_offsets(position_ids, origin))


def rounded(motions: Tensor, turns: float, length: float) -> Tensor:
    """The nearest of the motions that a grid has: so many turns of a circle, moves of a length."""
    unit = motions.new_full((3,), length)
    unit[0] = 2 * torch.pi / turns
    return (motions / unit).round() * unit


def sum_between(steps: Tensor, bounds: Tensor) -> Tensor:
    """Sums of `(B, S, P)` steps over the intervals `(B, 2, L)`: `(B, L, P)`."""
    sums = functional.pad(steps.cumsum(1), (0, 0, 1, 0))  # sums[:, i] is over what precedes i
    start, stop = bounds.long()[..., None].expand(-1, -1, -1, steps.shape[-1]).unbind(1)
    return sums.gather(1, stop) - sums.gather(1, start)


def turn_by(heading: Tensor, vectors: Tensor) -> Tensor:
    """Turns `(..., 2)` vectors (ahead, right) by `(..., 1)` radians to the right."""
    ahead, right = vectors.unbind(-1)
    cos, sin = heading[..., 0].cos(), heading[..., 0].sin()
    return torch.stack([cos * ahead - sin * right, sin * ahead + cos * right], -1)


class NoiseLevelEmbedding(nn.Module):
    """A noise level in [0, 1] as a vector that is added to its latent tokens."""

    def __init__(self, hidden_size: int):
        """Fourier features, then a two-layer MLP."""
        super().__init__()
        self.features = FourierFeatures(1, 4.0, 0.5, 8, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, levels: Tensor) -> Tensor:
        """Maps `(B, L)` to `(B, L, D)`."""
        return self.out(functional.silu(self.features(levels[..., None])))
