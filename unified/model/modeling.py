"""UnifiedModel: embed -> layers -> token head and latent head; the losses.

Letters: B rows, L tokens, D hidden size, V vocabulary, C latent size.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.generic import ModelOutput

from unified.files import check_weights
from unified.model import adapters, flow, language
from unified.model.attention import Mask, check_implementation, compute_dtype, make_mask
from unified.model.cache import KVCache
from unified.model.configuration import UnifiedConfig
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
from unified.sampling.generation import Callback, Generation, Session

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def resolve_checkpoint(name: str | Path) -> str:
    """The folder of an embedded checkpoint such as "babyai"; any other name as it is."""
    folder = CHECKPOINTS / str(name)
    if "/" not in str(name) and (folder / "config.json").exists():
        return str(folder)
    return str(name)


@dataclass
class UnifiedOutput(ModelOutput):
    """What `UnifiedModel.forward` returns.

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
    """What the layers know of each token besides its content: made once, for any number of passes.

    Attributes:
        is_latent: `(B, L, 1)` bool.
        is_action: `(B, L, 1)` bool.
        position_ids: `(B, 3, L)`, of the plan.
        path: `(B, 2, 2, L)`, likewise.
        latent_position: `(B, L, D)`, place in the frame; None if the model has no such features.
        rotary: Cosines and sines of the positions.
        mask: Of the attention.
        places: Cosines and sines of the path's layer where they are known beforehand, because no
            token acts; None leaves them to the layer.
    """

    is_latent: Tensor
    is_action: Tensor
    position_ids: Tensor
    path: Tensor
    latent_position: Tensor | None
    rotary: tuple[Tensor, Tensor]
    mask: Mask
    places: tuple[Tensor, Tensor] | None = None


def _rename_dtype(options: dict[str, Any]) -> None:
    """Takes `torch_dtype`, as transformers called it once, for `dtype`."""
    old = options.pop("torch_dtype", None)
    if old is not None and options.get("dtype") not in (None, old):
        raise ValueError(f"dtype={options['dtype']} and torch_dtype={old} differ; give dtype alone")
    options["dtype"] = options.get("dtype") or old or torch.float32


def _check_folder(folder: Path) -> None:
    """Refuses what transformers would take for something else, or fail on without a reason."""
    if not folder.is_dir():
        return
    check_weights(folder)
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the loader tells
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds {type(content).__name__} and no object of fields; copy the checkpoint "
            "again"
        )


def _add_loss(output: UnifiedOutput, loss: Tensor) -> None:
    output.loss = loss if output.loss is None else output.loss + loss


class Decoder(nn.Module):
    """The trunk, with Llama's names: `embed_tokens`, `layers`, `norm`."""

    def __init__(self, config: UnifiedConfig):
        """Layers share nothing."""
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class UnifiedModel(adapters.AdaptableModel):
    """One decoder-only transformer that is both the agent and the world.

    Tokens (words, actions, outcomes, markers) are predicted one by one; the latents of a frame
    are denoised together, inside the same sequence (Transfusion, arXiv:2408.11039). Use
    `UnifiedProcessor` to make its inputs from messages and to read its replies.

    Attributes:
        is_compiled: Whether passes without a cache, that is, training, run what the layers do
            besides attention as compiled code: once for each batch shape, after half a minute.
    """

    config_class = UnifiedConfig
    config: UnifiedConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the losses are means: Trainer divides by its accumulation steps
    _no_split_modules = ["DecoderLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: UnifiedConfig):
        """A model with random weights; see `from_pretrained` for trained ones."""
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.latent_in = nn.Linear(config.latent_size, config.hidden_size)
        self.noise_level_embedding = NoiseLevelEmbedding(config.hidden_size)
        self.latent_position = (
            FourierFeatures(2, 4.0, 2.0, 6, config.hidden_size)
            if config.latent_position_features
            else None
        )
        self.path = PathIntegration(config) if config.path_layer is not None else None
        self.latent_head = nn.Linear(config.hidden_size, config.latent_size)
        self.is_compiled = False
        self._adapter_configs = {}
        self.post_init()
        if config.path_layer is not None:
            layer = self.model.layers[config.path_layer]
            assert isinstance(layer, DecoderLayer)
            layer.self_attn.look_at_own_place()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; motions of about a radian and a token."""
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Loads a folder, a hub id, or an embedded checkpoint by name ("babyai").

        Weights come in float32 unless `dtype` (or `torch_dtype`, its old name) says otherwise,
        whatever they are stored in. The folder of an adapter gives its base with the adapter in it.

        Raises:
            ValueError: If the folder lacks a file, holds a broken one, or lacks a tensor.
        """
        source = resolve_checkpoint(pretrained_model_name_or_path)
        base = adapters.base_of(Path(source))
        if base is not None:
            loaded: Any = cls.from_pretrained(base, *args, **kwargs)
            model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(source)
            return loaded  # pyright: ignore[reportReturnType]
        _check_folder(Path(source))
        kwargs.setdefault("use_safetensors", True)
        _rename_dtype(kwargs)  # stored in half precision, computed in single
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        try:
            loaded = super().from_pretrained(source, *args, **kwargs)
        except (OSError, RuntimeError, KeyError, StrictDataclassError) as error:
            raise ValueError(
                f"cannot load a model from {source!r}: {error}; give a folder with config.json and "
                "model.safetensors, a hub id, or an embedded name such as 'babyai'"
            ) from error
        except Exception as error:  # safetensors raises its own type for a corrupt file
            if type(error).__module__.startswith("safetensors"):
                raise ValueError(
                    f"the weights in {source!r} are corrupt ({error}); copy the checkpoint again"
                ) from error
            raise
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(
                f"the checkpoint {source!r} lacks {', '.join(sorted(info['missing_keys']))}; copy "
                "it again, or make a new model with UnifiedModel(config)"
            )
        return loaded if wants_info else model

    @classmethod
    def from_language_model(
        cls, source: str | Path, processor: Any, *, dtype: Any = None, **changes: Any
    ) -> Self:
        """Makes a pretrained language model the decoder; see `unified.model.language`.

        Words alone give the logits that they gave before. With `modality_experts=True` latents have
        maps of their own, which begin as copies.

        Args:
            source: Folder or hub id of a Llama-, Qwen2-, Qwen3- or SmolLM2-like model.
            processor: From `UnifiedProcessor.from_language_model` with the same source.
            dtype: Of the weights; None is float32.
            **changes: Fields of `UnifiedConfig`; `gguf_file` is passed on to transformers.

        Raises:
            ValueError: If the language model does something that the decoder cannot.
        """
        options = {"gguf_file": changes.pop("gguf_file")} if "gguf_file" in changes else {}
        changes["dtype"] = dtype
        _rename_dtype(changes)
        dtype, source = changes.pop("dtype"), str(source)
        decoder = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        model = cls(language.language_config(decoder.config, processor, **changes))
        torch.nn.Module.to(model, dtype)
        language.copy_language(model, decoder)
        return model.eval()

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
        """Ours alone; transformers asks for this wherever an implementation is set."""
        return check_implementation(attn_implementation or "sdpa")

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
        position_ids: Tensor | None = None,
        visible: Tensor | None = None,
        path: Tensor | None = None,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        flow_weights: Tensor | None = None,
        motions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: KVCache | None = None,
        num_cached: int = 0,
        slots: Tensor | None = None,
        **kwargs: Any,
    ) -> UnifiedOutput:
        """One pass over the tokens of a plan.

        Args:
            input_ids: `(B, L)` int64.
            latents: `(B, L, C)` at the latent tokens: clean ones, to which noise is added, or
                without noise, what the model sees.
            noise_levels: `(B, L)` in [0, 1], as the model is told; None is 0, clean.
            noise: `(B, L, C)` standard normal; drawn if None and there is a flow loss to take.
            position_ids: `(B, 3, L)`; None plans `input_ids` as a fresh clean stream.
            visible: `(B, 3, 2, L)`, as `position_ids`.
            path: `(B, 2, 2, L)`, as `position_ids`.
            labels: `(B, L)`, what to predict after each token, -100 for nothing. They are not
                shifted: the plan has done that.
            label_weights: `(B, L)`; None weighs every label 1.
            flow_weights: `(B, L)`, weight of each latent token in the flow loss.
            motions: `(B, L, 3)`, how each action token moved the view (see `Segment.motion`), NaN
                where nobody knows.
            attention_mask: `(B, L)`, 1 for tokens and 0 for padding on the right; read only
                when the plan is made here.
            past_key_values: Cache to read, for inference only: it is written in place.
            num_cached: Cached slots in front of the new keys.
            slots: `(B, L)` cache slots to commit to, -1 for none; None commits nothing.
            **kwargs: Ignored, for callers with more to say.

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
            noisy = latents if noise is None else flow.add_noise(latents, noise, levels[..., None])
        hidden = self.embed(input_ids, noisy, levels, layout)
        if past_key_values is not None:
            past_key_values.reserve(num_cached + input_ids.shape[1])
        is_compiled = self.is_compiled and past_key_values is None
        hidden, made = self.decode(hidden, layout, past_key_values, num_cached, is_compiled)
        if past_key_values is not None and slots is not None:
            past_key_values.commit(num_cached, slots)
        output = UnifiedOutput(logits=self.lm_head(hidden), prediction=self.latent_head(hidden))
        if labels is not None:
            self._add_token_loss(output, labels, label_weights)
        if flow_weights is not None and latents is not None:
            assert noise is not None
            assert levels is not None
            self._add_flow_loss(output, latents, noise, levels, flow_weights)
        if motions is not None and made is not None:
            self._add_motion_loss(output, made, motions)
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
        self, input_ids: Tensor, noisy: Tensor | None, levels: Tensor | None, layout: Layout
    ) -> Tensor:
        """Hidden states before the first layer, `(B, L, D)`.

        Args:
            input_ids: `(B, L)` int64.
            noisy: `(B, L, C)` at the latent tokens, as the model sees them; None without any.
            levels: `(B, L)` or `(B, 1)`, their noise levels.
            layout: From `lay_out`.
        """
        hidden = self.model.embed_tokens(input_ids)
        if noisy is None or levels is None:
            return hidden
        content = self.latent_in(noisy.to(self.latent_in.weight.dtype))
        content = content + self.noise_level_embedding(levels)
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
        made = None
        for index, layer in enumerate(self.model.layers):
            rotary = layout.rotary
            if self.path is not None and index == self.config.path_layer:
                if layout.places is None:
                    made = self.path.motions_of(hidden)
                    rotary = self.place_rotary(made * layout.is_action, layout, cache, num_cached)
                else:
                    rotary = layout.places
            hidden = layer(
                hidden, rotary, layout.mask, layout.is_latent, cache, num_cached, is_compiled
            )
        return self.model.norm(hidden), made

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

    def _add_token_loss(self, output: UnifiedOutput, labels: Tensor, weights: Tensor | None):
        """Cross-entropy, averaged over the labelled tokens by weight."""
        assert output.logits is not None
        losses = functional.cross_entropy(
            output.logits.float().flatten(0, 1), labels.flatten(), reduction="none"
        )
        weights = (labels != -100).float() if weights is None else weights
        weights = weights.flatten()
        output.token_loss = (losses * weights).sum() / weights.sum().clamp(min=1e-6)
        _add_loss(output, self.config.token_loss_weight * output.token_loss)

    def _add_flow_loss(
        self, output: UnifiedOutput, latents: Tensor, noise: Tensor, levels: Tensor, weights: Tensor
    ):
        """Squared error of the prediction, averaged by weight over the latents that are learned."""
        assert output.prediction is not None
        target = flow.training_target(latents, noise, self.config.prediction_type)
        output.flow_error = (output.prediction.float() - target).square().mean(-1)
        by_level = flow.loss_weight(levels, self.config.flow_loss_weighting)
        weighted = output.flow_error * by_level * weights
        output.flow_loss = weighted.sum() / weights.sum().clamp(min=1e-6)
        _add_loss(output, self.config.flow_loss_weight * output.flow_loss)

    def _add_motion_loss(self, output: UnifiedOutput, made: Tensor, motions: Tensor):
        """Squared error of the motions of actions, averaged over those that were measured."""
        is_known = motions.isfinite().all(-1)
        error = (made - torch.where(is_known[..., None], motions, 0.0)).square().sum(-1)
        output.motion_loss = (error * is_known).sum() / is_known.sum().clamp(min=1)
        _add_loss(output, self.config.motion_loss_weight * output.motion_loss)

    def start(
        self,
        input_ids: Tensor,
        latents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        compiled: bool = False,
    ) -> Session:
        """A batch of conversations to extend, prefilled with prompts; see `Session`."""
        return Session(self, input_ids, latents, attention_mask, generator, compiled)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        latents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        query: str = "policy",
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        num_inference_steps: int = 4,
        solver: str = "euler",
        max_turns: int = 1,
        max_text_tokens: int = 64,
        think: bool | None = None,
        callback: Callback | None = None,
    ) -> Generation:
        """Answers a prompt: acts, simulates, names an action, or imagines.

        Args:
            input_ids: `(B, L)` prompts, as `UnifiedProcessor` makes them.
            latents: `(B, L, C)`, likewise.
            attention_mask: `(B, L)`, likewise.
            query: `policy` speaks and acts; `forward` shows the next frame and its outcome;
                `inverse` names the action that led to the last frame; `joint` goes on acting and
                showing until an outcome or `max_turns` frames.
            generator: Seeds the noise and the tokens; one for each row makes a row's reply
                independent of its neighbours.
            temperature: 0 takes the likeliest token.
            top_k: Sample among the k likeliest tokens only.
            num_inference_steps: Denoise steps of a frame.
            solver: `euler` or `heun`.
            max_turns: Frames of a `joint` reply.
            max_text_tokens: Longest run of words; then the agent must act.
            think: True makes the agent speak before it acts, False keeps it silent.
            callback: Called with each finished segment: row, token ids, latents.

        Returns:
            The reply's tokens and latents; `UnifiedProcessor.decode` reads them.

        Raises:
            ValueError: If a prompt ends where the one who is asked may not speak.
        """
        session = self.start(input_ids, latents, attention_mask, generator)
        return session.run(
            query,
            temperature=temperature,
            top_k=top_k,
            num_inference_steps=num_inference_steps,
            solver=solver,
            max_turns=max_turns,
            max_text_tokens=max_text_tokens,
            think=think,
            callback=callback,
        )


AutoConfig.register("unified", UnifiedConfig)
AutoModel.register(UnifiedConfig, UnifiedModel)
AutoModelForCausalLM.register(UnifiedConfig, UnifiedModel)
