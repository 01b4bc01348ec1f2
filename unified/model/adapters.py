"""LoRA adapters (arXiv:2106.09685): which layers they adapt, and folders that are complete.

peft adapts the model and saves the weights. We write two more things beside its files. One is a
hash of the base's weights, which says what base the adapter belongs to. The other is what belongs
to the adapter besides weights: tokenizer, action space, environment, and the codec if it differs.
`UnifiedModel.from_pretrained` and `UnifiedProcessor.from_pretrained` read such a folder like any
model.
"""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file

from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_folder, write_json
from unified.model.adopted import Adopted
from unified.model.transformer import UnifiedTransformer
from unified.pretrained import INFO_FILE, AdapterInfo, resolve_checkpoint

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

Preset = Literal["agent", "world", "both"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
WEIGHTS_FILE = "adapter_model.safetensors"

DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of every decoder layer."""
_LATENT_EDGES = ("latent_in", "latent_head")


def base_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The base's weights by their names in it, whatever adapters are in the model.

    Args:
        model: A `UnifiedModel`, plain, with adapters, or inside a `PeftModel`.
    """
    found: dict[str, torch.Tensor] = {}
    _gather(getattr(model, "get_base_model", lambda: model)(), "", found)
    return found


def _gather(module: torch.nn.Module, prefix: str, found: dict[str, torch.Tensor]) -> None:
    inner = _wrapped(module)
    if inner is not None:
        _gather(inner, prefix, found)
        return
    if isinstance(module, Adopted):  # not the base's
        return
    silent = module._non_persistent_buffers_set
    own = {**module._parameters, **{n: b for n, b in module._buffers.items() if n not in silent}}
    found.update({prefix + name: tensor for name, tensor in own.items() if tensor is not None})
    for name, child in module.named_children():
        _gather(child, f"{prefix}{name}.", found)


def _wrapped(module: torch.nn.Module) -> torch.nn.Module | None:
    """The base's module inside of peft's; None if it is none of peft's.

    Raises:
        ValueError: If the adapter has been added to its weights.
    """
    if "peft" not in sys.modules:
        return None
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    if not isinstance(module, BaseTunerLayer):
        return None
    if module.merged:
        raise ValueError(
            "the adapter is merged into its base, whose weights are others now; call "
            "unmerge_adapter first"
        )
    return module.get_base_layer() if hasattr(module, "base_layer") else None


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of the base's weights, the same with adapters in it, and in half precision.

    Args:
        model: A `UnifiedModel`, plain, with adapters, or inside a `PeftModel`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(model).items()):
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
) -> "LoraConfig":
    """The config that peft wants for this model.

    `agent` adapts what words and actions pass through, `world` what latents pass through, `both`
    all of it. A model without modality experts has one decoder for both: there `agent` and `world`
    differ by the latents' own maps alone, and the loss decides what is learned. What the model has
    adopted (`UnifiedModel.adopt`) is trained and saved with it, whatever the preset.

    Args:
        model: What will be adapted.
        preset: agent, world or both.
        rank: Of the added matrices.
        alpha: Their scale, times `1 / rank`; None is twice the rank.
        dropout: In front of them.

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
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        target_modules=list(targets),
        modules_to_save=["adopted"] if model.adopted else None,
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
        environment: The environment that it was trained on, so that it can be run there.

    Raises:
        ValueError: If it would lose what its model adopted, trained the base's own biases,
            holds numbers that half precision has not, or would replace its base.
    """
    adopted: Any = model.get_base_model().adopted
    if isinstance(adopted, Adopted) and adopted:
        raise ValueError(
            "the adapter does not hold the tokens and the frame size that its model adopted, and "
            "would lose them; make it with lora_config, or with modules_to_save=['adopted']"
        )
    if Path(resolve_checkpoint(base)).resolve() == Path(folder).resolve():
        raise ValueError(
            f"{folder} is the folder of the adapter's own base; save it into another one"
        )
    name = model.active_adapter
    assert isinstance(name, str)
    bias = getattr(model.peft_config[name], "bias", "none")
    if bias != "none":
        raise ValueError(
            f"the adapter has bias={bias!r}, which trains the base's own biases, so it has no base "
            "to belong to; train it with bias='none', or write it by peft's save_pretrained"
        )
    info = AdapterInfo(
        base=base,
        base_fingerprint=fingerprint(model),
        codec_fingerprint=None if processor.codec is None else processor.codec.fingerprint,
        environment=environment or {},
    )
    model.peft_config[name].base_model_name_or_path = base
    with atomic_folder(Path(folder)) as draft:
        # The table of words is the base's; peft would ask a hub whether it has grown.
        options = {"selected_adapters": [name], "save_embedding_layers": False}
        model.save_pretrained(str(draft), **options)
        flat_folder(draft, name)
        tensors = load_file(draft / WEIGHTS_FILE)
        halves = {k: x.half() if x.is_floating_point() else x for k, x in tensors.items()}
        for key, half in halves.items():
            if bool((half.isinf() & tensors[key].isfinite()).any()):
                raise ValueError(
                    f"{key} of the adapter is larger than 65504, the largest number in half "
                    "precision; train it with a lower learning rate"
                )
        save_file(halves, draft / WEIGHTS_FILE)
        processor.save_pretrained(draft, codec=_differs(processor, base))
        write_json(draft / INFO_FILE, asdict(info))


def flat_folder(folder: Path, name: str) -> None:
    """An adapter as peft wrote it, without a folder of its own, and without peft's template."""
    if name != "default":
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    (folder / "README.md").unlink(missing_ok=True)


def _differs(processor: UnifiedProcessor, base: str) -> bool:
    """Whether the codec is another one than the base's, and so has to be written too."""
    if processor.codec is None:
        return False
    theirs = UnifiedProcessor.from_pretrained(base).codec
    return theirs is None or theirs.fingerprint != processor.codec.fingerprint


def check_base(folder: Path, model: torch.nn.Module) -> None:
    """Refuses a model that an adapter was not trained on, if the adapter says on which it was.

    Raises:
        ValueError: If the model's weights are others than those of the adapter's base.
    """
    info = AdapterInfo.read(folder)
    if info is None:  # peft's own does not
        return
    found = fingerprint(model)
    if found != info.base_fingerprint:
        raise ValueError(
            f"the adapter in {folder} was trained on {info.base!r} (weights "
            f"{info.base_fingerprint}), and this model has weights {found}; load that base, or "
            f"UnifiedModel.from_pretrained({str(folder)!r}), which does"
        )
