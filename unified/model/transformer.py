"""UnifiedTransformer: embed -> layers -> token head and latent head; the losses.

Letters: B rows, L tokens, D hidden size, V vocabulary, C latent size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from unified.configuration import UnifiedConfig
from unified.model import flow
from unified.model.adopted import Adopted, AdoptingModel
from unified.model.attention import Mask, check_implementation, compute_dtype, make_mask
from unified.model.cache import KVCache
from unified.model.layers import (
    DecoderLayer,
    FourierFeatures,
    NoiseLevelEmbedding,
    PathIntegration,
    RMSNorm,
    place_angles,
    position_angles,
    rotary_embedding,
)
from unified.model.plan import plan_stream


@dataclass
class UnifiedOutput(ModelOutput):
    """What `UnifiedTransformer.forward` returns.

    Attributes:
        loss: Scalar, the sum of the following losses, each times its weight in the config.
        token_loss: Scalar, weighted mean cross-entropy over the labelled tokens.
        flow_loss: Scalar, weighted mean squared error over the latents that are learned.
        motion_loss: Scalar, mean squared error of the motions of actions that were measured.
        flow_error: `(B, L)`, unweighted squared error of each latent token, for logs.
        logits: `(B, L, V)`.
        prediction: `(B, L, C)`, in the config's prediction type; meaningful at latents only.
    """

    loss: Tensor | None = None
    token_loss: Tensor | None = None
    flow_loss: Tensor | None = None
    motion_loss: Tensor | None = None
    flow_error: Tensor | None = None
    logits: Tensor | None = None
    prediction: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """Positions, masks and kinds of the tokens, computed once for any number of passes.

    Attributes:
        is_latent: `(B, L, 1)` bool.
        is_action: `(B, L, 1)` bool.
        position_ids: `(B, 3, L)`, of the plan.
        path: `(B, 2, 2, L)`, likewise.
        latent_position: `(B, L, D)`, place in the frame; None if the model has no such features.
        rotary: Cosines and sines of the positions.
        mask: Attention mask, from `make_mask`.
        places: Cosines and sines of the path's layer, where they are known beforehand because no
            token is an action. None leaves them to the layer.
    """

    is_latent: Tensor
    is_action: Tensor
    position_ids: Tensor
    path: Tensor
    latent_position: Tensor | None
    rotary: tuple[Tensor, Tensor]
    mask: Mask
    places: tuple[Tensor, Tensor] | None = None


def _add_loss(output: UnifiedOutput, loss: Tensor) -> None:
    output.loss = loss if output.loss is None else output.loss + loss


def _mean(weighted: Tensor, weights: Tensor, total: Tensor | None) -> Tensor:
    """The sum of weighted losses over a total, or over the sum of their own weights."""
    return weighted.sum() / (weights.sum() if total is None else total).clamp(min=1e-6)


class Decoder(nn.Module):
    """The trunk, with Llama's names: `embed_tokens`, `layers`, `norm`."""

    def __init__(self, config: UnifiedConfig):
        """Layers have separate weights."""
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class UnifiedTransformer(AdoptingModel):
    """The network alone: one pass over the tokens of a plan, and the losses.

    `UnifiedModel` adds what users need around it: checkpoints, adapters and generation.

    Attributes:
        is_compiled: Whether passes without a cache (training) run everything but attention as
            compiled code. Compiling takes half a minute for each batch shape.
    """

    config_class = UnifiedConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # The losses are means: Trainer divides by its accumulation steps. What they are means over,
    # `loss_totals`, comes with the batch, since there are three of them.
    accepts_loss_kwargs = False
    _no_split_modules = ["DecoderLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: UnifiedConfig):
        """A model with random weights; see `UnifiedModel.from_pretrained` for trained ones."""
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.latent_in = nn.Linear(config.latent_size, config.hidden_size)
        self.noise_level_embedding = NoiseLevelEmbedding(config.hidden_size)
        self.step_size_embedding = (
            NoiseLevelEmbedding(config.hidden_size) if config.step_size_embedding else None
        )
        self.latent_position = (
            FourierFeatures(2, 4.0, 2.0, 6, config.hidden_size)
            if config.latent_position_features
            else None
        )
        self.path = PathIntegration(config) if config.path_layer is not None else None
        self.latent_head = nn.Linear(config.hidden_size, config.latent_size)
        self.adopted = Adopted(config.hidden_size, is_tied=config.tie_word_embeddings)
        self.is_compiled = False
        self.post_init()
        if self.step_size_embedding is not None:
            nn.init.zeros_(self.step_size_embedding.out.weight)  # at first it says nothing
            nn.init.zeros_(self.step_size_embedding.out.bias)
        if config.path_layer is not None:
            layer = self.model.layers[config.path_layer]
            assert isinstance(layer, DecoderLayer)
            layer.self_attn.look_at_own_place()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws weights from a normal distribution, with standard deviation `initializer_range`.

        The motions of `PathIntegration` have standard deviation 1: a radian, or one token.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, PathIntegration):
            nn.init.normal_(module.motions)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Chooses the attention back end: `sdpa`, `flex_attention` or `flash_attention_2`.

        Raises:
            ValueError: If it is none of these.
        """
        chosen = self._check_and_adjust_attn_implementation(attn_implementation)
        self.config._attn_implementation_internal = chosen

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: Any, *args: Any, **kwargs: Any
    ) -> str:
        """Accepts our own implementations only; transformers calls this whenever one is set."""
        return check_implementation(attn_implementation or "sdpa")

    @property
    def noise_path(self) -> flow.NoisePath:
        """What lies between data and noise."""
        return flow.NOISE_PATHS[self.config.noise_path]

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding."""
        self.model.embed_tokens = value  # pyright: ignore[reportAttributeAccessIssue]

    def get_output_embeddings(self) -> nn.Module:
        """The token head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the token head."""
        self.lm_head = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]

    def forward(
        self,
        input_ids: Tensor,
        latents: Tensor | None = None,
        noise_levels: Tensor | None = None,
        noise: Tensor | None = None,
        step_sizes: Tensor | None = None,
        position_ids: Tensor | None = None,
        visible: Tensor | None = None,
        path: Tensor | None = None,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        flow_weights: Tensor | None = None,
        motions: Tensor | None = None,
        loss_totals: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: KVCache | None = None,
        num_cached: int = 0,
        slots: Tensor | None = None,
        **kwargs: Any,
    ) -> UnifiedOutput:
        """One pass over the tokens of a plan.

        Args:
            input_ids: `(B, L)` int64.
            latents: `(B, L, C)` at the latent tokens. With `noise` they are clean, and the noise is
                added here; without, they are what the model sees.
            noise_levels: `(B, L)` in [0, 1], an input of the model; None is 0, clean.
            noise: `(B, L, C)` standard normal; drawn if None and there is a flow loss to take.
            step_sizes: `(B, L)` in [0, 1], how far the denoise step goes for which the prediction
                is wanted; None and 0 ask for the clean latents that are likely at this level.
            position_ids: `(B, 3, L)`; None plans `input_ids` as a fresh clean stream.
            visible: `(B, 3, 2, L)`, as `position_ids`.
            path: `(B, 2, 2, L)`, as `position_ids`.
            labels: `(B, L)`, what to predict after each token, -100 for nothing. They are not
                shifted: the plan has done that.
            label_weights: `(B, L)`; None weighs every label 1.
            flow_weights: `(B, L)`, weight of each latent token in the flow loss.
            motions: `(B, L, 3)`, how each action token moved the view (see `Segment.motion`), NaN
                where nobody knows.
            loss_totals: `(B, 3)`, what each row adds to the totals by which the weighted sums of
                the token, flow and motion loss are divided; None divides by the weights of these
                very rows. With totals, micro-batches and processes add up to the whole batch.
            attention_mask: `(B, L)`, 1 for tokens and 0 for padding on the right; read only
                when the plan is made here.
            past_key_values: Cache to read, for inference only: it is written in place.
            num_cached: Cached slots in front of the new keys.
            slots: `(B, L)` cache slots to commit to, -1 for none; None commits nothing.
            **kwargs: Ignored.

        Returns:
            The output; losses only where `labels` or `flow_weights` are given.

        Raises:
            ValueError: If the plan is given in part.
        """
        config = self.config
        if position_ids is None and visible is None and path is None:
            num_tokens = None if attention_mask is None else attention_mask.sum(1)
            plan = plan_stream(input_ids, config, None, num_tokens)
            position_ids, visible, path = plan.position_ids, plan.visible, plan.path
        if position_ids is None or visible is None or path is None:
            raise ValueError(
                "position_ids, visible and path belong together; give all three, from one plan, or "
                "none of them"
            )
        layout = self.lay_out(input_ids, position_ids, visible, path, num_cached)
        noisy = levels = None
        if latents is not None:
            levels = torch.zeros_like(latents[..., 0]) if noise_levels is None else noise_levels
            if noise is None and flow_weights is not None:
                noise = torch.randn_like(latents)
            noisy = latents
            if noise is not None:
                noisy = flow.add_noise(latents, noise, levels[..., None], self.noise_path)
        hidden = self.embed(input_ids, noisy, levels, layout, step_sizes)
        if past_key_values is not None:
            past_key_values.reserve(num_cached + input_ids.shape[1])
        is_compiled = self.is_compiled and past_key_values is None
        hidden, predicted_motions = self.decode(
            hidden, layout, past_key_values, num_cached, is_compiled
        )
        if past_key_values is not None and slots is not None:
            past_key_values.commit(num_cached, slots)
        output = UnifiedOutput(
            logits=self.token_logits(hidden), prediction=self.latent_head(hidden)
        )
        totals = [None] * 3 if loss_totals is None else loss_totals.sum(0).unbind()
        if labels is not None:
            self._add_token_loss(output, labels, label_weights, totals[0])
        if flow_weights is not None and latents is not None:
            assert noise is not None
            assert levels is not None
            self._add_flow_loss(output, latents, noise, levels, flow_weights, totals[1])
        if motions is not None and predicted_motions is not None:
            self._add_motion_loss(output, predicted_motions, motions, totals[2])
        return output

    def lay_out(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        visible: Tensor,
        path: Tensor,
        num_cached: int,
    ) -> Layout:
        """A plan in the form that `embed` and `decode` use; arguments as in `forward`."""
        config = self.config
        is_latent = (input_ids == config.latent_token_id)[..., None]
        first, stop = config.action_token_ids
        angles = position_angles(position_ids, config.rotary_dim, config.rope_theta)
        latent_position = None
        if self.latent_position is not None:
            place = position_ids[:, 1:] - position_ids[:, :1]  # row and column in the frame
            latent_position = self.latent_position(place.transpose(1, 2))
        return Layout(
            is_latent=is_latent,
            is_action=((input_ids >= first) & (input_ids < stop))[..., None],
            position_ids=position_ids,
            path=path,
            latent_position=latent_position,
            rotary=rotary_embedding(angles),
            mask=make_mask(
                config._attn_implementation or "sdpa",
                visible,
                num_cached + input_ids.shape[1],
                dtype=compute_dtype(self.device, self.dtype),
            ),
        )

    def embed(
        self,
        input_ids: Tensor,
        noisy: Tensor | None,
        levels: Tensor | None,
        layout: Layout,
        step_sizes: Tensor | None = None,
    ) -> Tensor:
        """Hidden states before the first layer, `(B, L, D)`.

        Args:
            input_ids: `(B, L)` int64.
            noisy: `(B, L, C)` at the latent tokens, as the model sees them; None without any.
            levels: `(B, L)` or `(B, 1)`, their noise levels.
            layout: From `lay_out`.
            step_sizes: As `levels`, see `forward`; None is 0.
        """
        hidden = self.embed_tokens(input_ids)
        if noisy is None or levels is None:
            return hidden
        content = self.latent_in(noisy.to(self.latent_in.weight.dtype))
        content = content + self.noise_level_embedding(levels)
        if self.step_size_embedding is not None:
            sizes = torch.zeros_like(levels) if step_sizes is None else step_sizes
            content = content + self.step_size_embedding(sizes)
        if layout.latent_position is not None:
            content = content + layout.latent_position
        return torch.where(layout.is_latent, content, hidden)

    def decode(
        self,
        hidden: Tensor,
        layout: Layout,
        cache: KVCache | None = None,
        num_cached: int = 0,
        is_compiled: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """All layers and the last norm.

        Args:
            hidden: `(B, L, D)`, from `embed`.
            layout: From `lay_out`.
            cache: Read in front of the tokens, and written behind them as scratch.
            num_cached: Cached slots in front.
            is_compiled: See `DecoderLayer.forward`.

        Returns:
            Hidden states `(B, L, D)`, and the motions that the path's layer gave to each token,
            `(B, L, 3)`; None without such a layer, or where `layout` knows the places.
        """
        motions = None
        for index, layer in enumerate(self.model.layers):
            rotary = layout.rotary
            if self.path is not None and index == self.config.path_layer:
                if layout.places is None:
                    motions = self.path.motions_of(hidden)
                    rotary = self.place_rotary(
                        motions * layout.is_action, layout, cache, num_cached
                    )
                else:
                    rotary = layout.places
            hidden = layer(
                hidden, rotary, layout.mask, layout.is_latent, cache, num_cached, is_compiled
            )
        return self.model.norm(hidden), motions

    def place_rotary(
        self, motions: Tensor, layout: Layout, cache: KVCache | None, num_cached: int
    ) -> tuple[Tensor, Tensor]:
        """Rotary positions of the path's layer: half in the sequence, half in the world."""
        config = self.config
        assert self.path is not None
        assert config.head_dim is not None
        places = self.path(
            motions, layout.path, layout.position_ids, layout.is_latent, cache, num_cached
        )
        half = config.head_dim // 2
        angles = position_angles(layout.position_ids, half, config.rope_theta)
        return rotary_embedding(torch.cat([angles, place_angles(places, half // 2)], -1))

    def _add_token_loss(
        self, output: UnifiedOutput, labels: Tensor, weights: Tensor | None, total: Tensor | None
    ):
        """Cross-entropy, averaged over the labelled tokens by weight."""
        assert output.logits is not None
        losses = functional.cross_entropy(
            output.logits.float().flatten(0, 1), labels.flatten(), reduction="none"
        )
        weights = (labels != -100).float() if weights is None else weights
        weights = weights.flatten()
        output.token_loss = _mean(losses * weights, weights, total)
        _add_loss(output, self.config.token_loss_weight * output.token_loss)

    def _add_flow_loss(
        self,
        output: UnifiedOutput,
        latents: Tensor,
        noise: Tensor,
        levels: Tensor,
        weights: Tensor,
        total: Tensor | None,
    ):
        """Squared error of the prediction, averaged by weight over the latents that are learned."""
        assert output.prediction is not None
        target = flow.training_target(
            latents, noise, levels[..., None], self.config.prediction_type, self.noise_path
        )
        output.flow_error = (output.prediction.float() - target).square().mean(-1)
        by_level = flow.loss_weight(levels, self.config.flow_loss_weighting)
        output.flow_loss = _mean(output.flow_error * by_level * weights, weights, total)
        _add_loss(output, self.config.flow_loss_weight * output.flow_loss)

    def _add_motion_loss(
        self, output: UnifiedOutput, predicted: Tensor, motions: Tensor, total: Tensor | None
    ):
        """Squared error of the motions of actions, averaged over those that were measured."""
        is_known = motions.isfinite().all(-1)
        error = (predicted - torch.where(is_known[..., None], motions, 0.0)).square().sum(-1)
        output.motion_loss = _mean(error * is_known, is_known, total)
        _add_loss(output, self.config.motion_loss_weight * output.motion_loss)
