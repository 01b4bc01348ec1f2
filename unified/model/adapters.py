"""LoRA adapters (arXiv:2106.09685): which maps they adapt, and folders that are complete.

peft does the adapting. What it leaves out is written beside its files: which base the adapter is
for, by a hash of its weights, and what belongs to the adapter besides weights (tokenizer, action
space, codec if it is another one, the environment). `UnifiedModel.from_pretrained` and
`UnifiedProcessor.from_pretrained` read such a folder like any model.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_folder, write_json
from unified.model.transformer import UnifiedTransformer
from unified.pretrained import INFO_FILE, AdapterInfo, resolve_checkpoint

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

Preset = Literal["agent", "world", "both"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
WEIGHTS_FILE = "adapter_model.safetensors"

CONFIG_FIELDS = (
    "vocab_size",
    "action_token_ids",
    "action_formats",
    "latent_grid",
)
"""Fields of `UnifiedConfig` that an adapter may have of its own: of its actions and its frames."""
DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The maps of every layer."""
_LATENT_EDGES = ("latent_in", "latent_head")
_ADDED = (".lora_", ".modules_to_save.", ".trainable_tokens_")
_WRAPPERS = ("token_adapter.", "base_layer.", "original_module.")


def is_added(name: str) -> bool:
    """Whether a parameter belongs to an adapter, and not to its base."""
    return any(part in name for part in _ADDED)


def fingerprint(model: torch.nn.Module, vocabulary: int | None = None) -> str:
    """A hash of the base's weights, the same with adapters in it, and in half precision.

    Args:
        model: A `UnifiedModel`, plain, with adapters, or inside a `PeftModel`.
        vocabulary: Tokens that the base had, if some were added since.
    """
    tensors = {}
    for key, tensor in model.state_dict().items():
        if not is_added(key):
            name = key.removeprefix("base_model.model.")
            for wrapper in _WRAPPERS:
                name = name.replace(wrapper, "")
            is_table = name in ("model.embed_tokens.weight", "lm_head.weight")
            tensors[name] = tensor[:vocabulary] if is_table else tensor
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        # bfloat16 is what float32 and float16 weights of the same origin have in common.
        bits = tensor.detach().cpu().bfloat16().contiguous().view(torch.int16)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()[:16]


def lora_config(
    model: UnifiedTransformer,
    preset: Preset = "both",
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    base_vocabulary: int | None = None,
) -> "LoraConfig":
    """The config that peft wants for this model.

    `agent` adapts what words and actions pass through, `world` what latents pass through, `both`
    all of it. A model without modality experts has one decoder for both: there `agent` and `world`
    differ by the latents' own maps alone, and the loss decides what is learned. Tokens that the
    model has adopted are trained beside it, whatever the preset.

    Args:
        model: What will be adapted.
        preset: agent, world or both.
        rank: Of the added matrices.
        alpha: Their scale, times `1 / rank`; None is twice the rank.
        dropout: In front of them.
        base_vocabulary: Tokens that the base had before `UnifiedModel.adopt`; None is all.

    Raises:
        ValueError: If the preset is unknown, or the rank is no positive number.
    """
    from peft import LoraConfig

    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; use one of {', '.join(PRESETS)}")
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1; use 8 or 16")
    latent = tuple(f"{name}_latent" for name in DECODER)
    decoder = {"agent": DECODER, "world": latent, "both": (*DECODER, *latent)}[preset]
    if not model.config.modality_experts:
        decoder = DECODER
    targets = decoder if preset == "agent" else (*decoder, *_LATENT_EDGES)
    size = model.config.vocab_size
    new = list(range(size if base_vocabulary is None else base_vocabulary, size))
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        target_modules=list(targets),
        trainable_token_indices={"embed_tokens": new} if new else None,
        bias="none",
    )


def save_adapter(
    model: "PeftModel",
    processor: UnifiedProcessor,
    folder: str | Path,
    *,
    base: str,
    environment: dict[str, Any] | None = None,
) -> None:
    """Writes an adapter with all that it needs besides its base; half precision.

    It replaces what `folder` held, as a whole.

    Args:
        model: From `peft.get_peft_model`; its active adapter is written.
        processor: That it was trained with.
        folder: To write to.
        base: Name of the base, as `UnifiedModel.from_pretrained` takes it.
        environment: What it was trained on, for whoever wants to run it there.
    """
    config: Any = model.get_base_model().config
    vocabulary = UnifiedConfig.from_pretrained(resolve_checkpoint(base)).vocab_size
    info = AdapterInfo(
        base=base,
        base_fingerprint=fingerprint(model, vocabulary),
        base_vocabulary=vocabulary,
        config={field: getattr(config, field) for field in CONFIG_FIELDS},
        codec_fingerprint=None if processor.codec is None else processor.codec.fingerprint,
        environment=environment or {},
    )
    name = model.active_adapter
    assert isinstance(name, str)
    model.peft_config[name].base_model_name_or_path = base
    with atomic_folder(Path(folder)) as draft:
        # The table of words is the base's; peft would ask a hub whether it has grown.
        options = {"selected_adapters": [name], "save_embedding_layers": False}
        model.save_pretrained(str(draft), **options)
        if name != "default":  # peft puts the others in folders of their own
            for file in (draft / name).iterdir():
                file.rename(draft / file.name)
            (draft / name).rmdir()
        tensors = load_file(draft / WEIGHTS_FILE)
        save_file({key: tensor.half() for key, tensor in tensors.items()}, draft / WEIGHTS_FILE)
        (draft / "README.md").unlink(missing_ok=True)  # peft's template
        processor.save_pretrained(draft, codec=_differs(processor, base))
        write_json(draft / INFO_FILE, asdict(info))


def _differs(processor: UnifiedProcessor, base: str) -> bool:
    """Whether the codec is another one than the base's, and so has to be written too."""
    if processor.codec is None:
        return False
    theirs = UnifiedProcessor.from_pretrained(base).codec
    return theirs is None or theirs.fingerprint != processor.codec.fingerprint


def check_base(folder: Path, model: torch.nn.Module) -> AdapterInfo | None:
    """Refuses a model that an adapter was not trained on.

    Returns:
        What the folder says; None if it is peft's own, which does not say what it was trained on.

    Raises:
        ValueError: If the model's weights are others than those of the adapter's base.
    """
    info = AdapterInfo.read(folder)
    if info is None:
        return None
    found = fingerprint(model, info.base_vocabulary)
    if found != info.base_fingerprint:
        raise ValueError(
            f"the adapter in {folder} was trained on {info.base!r} (weights "
            f"{info.base_fingerprint}), and this model has weights {found}; load that base, or "
            f"UnifiedModel.from_pretrained({str(folder)!r}), which does"
        )
    return info


class AdaptableModel(UnifiedTransformer):
    """What `UnifiedModel` does besides transformers' own handling of adapters.

    An adapter may bring an action space, with new tokens, and a frame size. They become the
    model's when the adapter becomes the active one.
    """

    def __init__(self, config: UnifiedConfig):
        """A model without adapters."""
        super().__init__(config)
        self._adapter_configs: dict[str, dict[str, Any]] = {}

    def adopt(self, processor: Any, latent_grid: tuple[int, int] | None = None) -> None:
        """Takes over a processor's vocabulary, action space and codec, to be finetuned with it.

        Tokens that the model does not have begin as the average of its actions. No weight depends
        on the size of a frame. Latents with another number of channels get new maps, with random
        weights, which no adapter can hold.

        Args:
            processor: As the model's own, but for its action space and codec; from
                `UnifiedProcessor.with_action_space` and `with_codec`.
            latent_grid: Rows and columns of a frame's tokens; None leaves them as they are.

        Raises:
            ValueError: If it differs from the model in more than that.
        """
        fields = processor.config_fields()
        for name, value in fields.items():
            ours = getattr(self.config, name)
            if isinstance(ours, list):  # as tuples come back from a file
                ours = tuple(ours)
            if name not in (*CONFIG_FIELDS, "latent_channels") and ours != value:
                raise ValueError(
                    f"the processor has {name}={value}, the model {ours}; begin with the model's "
                    "own processor and change its action space and codec alone"
                )
        if fields.get("latent_channels", self.config.latent_channels) != (
            self.config.latent_channels
        ):
            self._reshape_latents(fields["latent_channels"])
        chosen = {name: fields[name] for name in CONFIG_FIELDS if name in fields}
        if latent_grid is not None:
            chosen["latent_grid"] = latent_grid
        self._configure(chosen)
        processor.latent_grid = tuple(self.config.latent_grid)  # so that it knows the frames' size

    @torch.no_grad()
    def _reshape_latents(self, channels: int) -> None:
        """New maps between latents of another size and the decoder."""
        self.config.latent_channels = channels
        size, width = self.config.latent_size, self.config.hidden_size
        like = {"device": self.lm_head.weight.device, "dtype": self.lm_head.weight.dtype}
        self.latent_in = torch.nn.Linear(size, width, **like)
        self.latent_head = torch.nn.Linear(width, size, **like)
        for module in (self.latent_in, self.latent_head):
            self._init_weights(module)

    @torch.no_grad()
    def _configure(self, fields: dict[str, Any]) -> None:
        """Sets fields that an adapter may have of its own; the vocabulary only grows."""
        config, table = self.config, self.model.embed_tokens.weight
        size, first = config.vocab_size, config.action_token_ids
        if fields["vocab_size"] > size:
            begin = table[first[0] : first[1]].mean(0)
            self.resize_token_embeddings(fields["vocab_size"], mean_resizing=False)
            for module in {self.model.embed_tokens, self.lm_head}:
                module.weight[size:] = begin
        for name, value in fields.items():
            setattr(config, name, max(config.vocab_size, value) if name == "vocab_size" else value)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Makes an adapter the active one, and its action space the model's."""
        super().set_adapter(adapter_name)
        name = adapter_name if isinstance(adapter_name, str) else adapter_name[0]
        for module in self.modules():
            if hasattr(module, "trainable_tokens_delta"):  # peft looks there for any adapter's
                module.enable_adapters(name in module.trainable_tokens_delta)  # pyright: ignore
        if name in self._adapter_configs:
            self._configure(self._adapter_configs[name])

    def load_adapter(self, peft_model_id: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Puts an adapter into the model, and makes it the active one; see transformers' own.

        Several may be loaded under their own `adapter_name`: `set_adapter` chooses one,
        `disable_adapters` gives the base back.

        Raises:
            ValueError: If the adapter was trained on other weights.
        """
        if isinstance(peft_model_id, str | Path):
            info = check_base(Path(peft_model_id), self)
            peft_model_id = str(peft_model_id)
            if info is not None:
                self._configure(info.config)
                name = args[0] if args else kwargs.get("adapter_name") or "default"
                self._adapter_configs[str(name)] = info.config
        loaded = super().load_adapter(peft_model_id, *args, **kwargs)
        for name, parameter in self.named_parameters():
            if is_added(name):  # stored in half precision, computed in the model's
                parameter.data = parameter.data.to(self.model.norm.weight.dtype)
        return loaded
