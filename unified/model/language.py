"""A pretrained language model becomes the decoder: Llama, SmolLM2, Qwen2, Qwen3 and their like.

Its weights keep their names. Text has the same position on all three rotary axes, so for words
alone the new model gives the logits of the old one. The embeddings of markers and actions, and the
layers for latents, are added.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.model.adapters import DECODER
from unified.model.transformer import UnifiedTransformer

if TYPE_CHECKING:
    from peft import LoraConfig

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose decoder is ours: pre-norm, rotary, gated MLP, perhaps biases or query norms."""


def language_config(config: Any, processor: UnifiedProcessor, **changes: Any) -> UnifiedConfig:
    """The fields of a language model's config, in ours.

    Args:
        config: The language model's.
        processor: From `UnifiedProcessor.from_language_model`.
        **changes: Other fields of `UnifiedConfig`.

    Raises:
        ValueError: If its decoder does something that ours cannot.
    """
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"a {config.model_type!r} cannot become the decoder; use one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    rope = config.rope_parameters
    wrong = {
        "rope_type": rope.get("rope_type", "default") != "default",
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "hidden_act": config.hidden_act != "silu",
        "layer_types": bool(set(getattr(config, "layer_types", None) or ()) - {"full_attention"}),
        # Ours has biases on queries, keys and values alone, as Qwen2.
        "attention_bias": config.model_type != "qwen2"
        and bool(getattr(config, "attention_bias", False)),
    }
    unknown = [f"{name}={getattr(config, name, rope)}" for name, is_so in wrong.items() if is_so]
    if unknown:
        raise ValueError(
            f"this language model has {', '.join(unknown)}, which the decoder cannot do; use one "
            "with plain rotary positions, full attention, silu and no such biases"
        )
    fields = {
        name: getattr(config, name)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
            "initializer_range",
            "tie_word_embeddings",
            "max_position_embeddings",
        )
    }
    fields["head_dim"] = getattr(config, "head_dim", None)
    fields["rope_theta"] = float(rope["rope_theta"])
    fields["qk_norm"] = config.model_type == "qwen3"
    fields["attention_bias"] = config.model_type == "qwen2"
    fields["vocab_size"] = max(config.vocab_size, len(processor.tokenizer))
    return UnifiedConfig(**{**processor.config_fields(), **fields, **changes})


@torch.no_grad()
def copy_language(model: UnifiedTransformer, language: PreTrainedModel) -> None:
    """Copies a language model's weights into ours; latents' own maps begin as copies too.

    Args:
        model: Built from `language_config`.
        language: The language model.
    """
    theirs: dict[str, Tensor] = dict(language.state_dict())
    ours = dict(model.state_dict())
    for name, tensor in ours.items():
        source = theirs.get(name.replace("_proj_latent.", "_proj."))
        if source is None:
            continue
        is_table = name in ("model.embed_tokens.weight", "lm_head.weight")
        if not is_table and source.shape != tensor.shape or source.shape[1:] != tensor.shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(source.shape)} in the language model and "
                f"{tuple(tensor.shape)} here; leave the sizes to language_config"
            )
        if not is_table:
            tensor.copy_(source)
            continue
        # Counted by the tokenizer: a padded table has rows behind the words that nobody trained.
        words = min(model.config.text_token_ids[1], len(source))
        tensor[:words] = source[:words]
        # As likely as the average word: far away, the new tokens would drown the others.
        mean, std = source[:words].float().mean(0), source[:words].float().std()
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # the same tensor as the embeddings
        tensor[words:] = mean + 0.01 * std * torch.randn_like(tensor[words:])
    missing = [name for name in theirs if name not in ours]
    if missing:
        raise ValueError(
            f"the language model has {', '.join(missing[:4])}, which the decoder lacks; it is of "
            "another architecture than its config says"
        )


def language_lora(model: UnifiedTransformer, vocabulary: int, rank: int) -> "LoraConfig":
    """LoRA on the layers that words pass through; layers that were added are trained as a whole.

    Args:
        model: A `UnifiedModel` made from a language model.
        vocabulary: How many tokens were the language model's own; the others are trained.
        rank: Rank of the adapters.

    Returns:
        For `peft.get_peft_model`, which freezes everything else.
    """
    from peft import LoraConfig

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    new = list(range(vocabulary, model.config.vocab_size))
    # A head of its own has rows of its own for them.
    tables = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    whole = ["latent_in", "latent_head", "noise_level_embedding", "latent_position", "path"]
    whole += sorted(name for name in names if name.endswith("_proj_latent"))
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(DECODER),
        modules_to_save=[name for name in whole if name in names],
        trainable_token_indices=dict.fromkeys(tables, new),
        bias="none",
    )


def freeze_language(model: nn.Module, vocabulary: int) -> None:
    """Freezes the layers that words pass through (LMFusion, arXiv:2412.15188).

    Trainable are the layers for latents, which need `modality_experts`, and the embeddings of
    tokens that were added. Their table is trained with a gradient that is zero for
    the language model's own words; give it no weight decay.

    Args:
        model: A `UnifiedModel` made from a language model.
        vocabulary: How many tokens were the language model's own.

    Raises:
        ValueError: If the model has no modality experts: then nothing could be learned.
    """
    config: Any = model.config
    if not config.modality_experts:
        raise ValueError(
            "modality_experts=False leaves latents no maps of their own, so that nothing could be "
            "learned; make the model with modality_experts=True"
        )
    added = ("latent", "noise_level_embedding", "path.")
    for name, parameter in model.named_parameters():
        is_table = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        parameter.requires_grad_(is_table or any(part in name for part in added))
        if is_table:
            parameter.register_hook(lambda gradient: _only_added(gradient, vocabulary))


def _only_added(gradient: Tensor, vocabulary: int) -> Tensor:
    gradient = gradient.clone()
    gradient[:vocabulary] = 0
    return gradient
