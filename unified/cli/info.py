"""`unified info`."""

import textwrap
from pathlib import Path

from unified.cli.arguments import InfoArguments
from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel
from unified.pretrained import resolve_checkpoint


def info(arguments: InfoArguments) -> None:
    """Prints what a model is, what it was taught to hear, and its card."""
    processor = UnifiedProcessor.from_pretrained(arguments.model)
    model = UnifiedModel.from_pretrained(arguments.model)
    config, codec, space = model.config, processor.codec, processor.action_space
    rows, cols = config.latent_grid
    facts = {
        "model": arguments.model,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "decoder": f"{config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_attention_heads} heads",
        "vocabulary": f"{config.vocab_size} tokens",
        "memory": f"{config.memory} (trained on {config.window_frames} frames, and the task)",
        "latents": f"{rows}x{cols} tokens of {config.latent_size} numbers",
        "prediction": config.prediction_type,
    }
    if codec is not None:
        side = config.latent_patch_size * codec.downsample_factor
        facts["frames"] = f"{rows * side}x{cols * side} pixels, RGB"
        size = sum(p.numel() for p in codec.parameters())
        facts["codec"] = f"{type(codec.autoencoder).__name__}, {size:,} parameters"
    if space is not None:
        names = getattr(space, "names", None) or space.tokens
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        facts["actions"] = f"{space.name}: {', '.join(names[:12])}{more} ({space.kind})"
    for name, value in facts.items():
        print(f"{name:<12} {value}")
    if processor.lexicon is not None:
        print("\nwhat it was taught to hear")
        print(textwrap.indent(str(processor.lexicon), "  "))
    card = Path(resolve_checkpoint(arguments.model)) / "README.md"
    if card.is_file():
        print("\n" + card.read_text(encoding="utf-8").strip())
