"""A small random model with the real tokenizer, action space and codec shape of BabyAI."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, frame_segment
from unified.media.action_space import ActionSpace
from unified.media.codec import FrameCodec
from unified.modeling import UnifiedModel

TOKENIZERS = Path(__file__).parents[2] / "tokenizers_cfg"
FRAME_SHAPE = (56, 56, 3)


def babyai_parts(seed: int = 0, **changes) -> tuple[UnifiedModel, UnifiedProcessor]:
    """Model and processor; `changes` are fields of the config."""
    torch.manual_seed(seed)
    processor = UnifiedProcessor(
        tokenizer=AutoTokenizer.from_pretrained(TOKENIZERS / "text"),
        codec=FrameCodec.from_config(TOKENIZERS / "codec" / "babyai.json"),
        action_space=ActionSpace.from_config(TOKENIZERS / "actions" / "babyai.json"),
    )
    fields = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "latent_grid": (7, 7),
        "window_frames": 3,
        "initializer_range": 0.2,
    }
    config = UnifiedConfig(**{**processor.config_fields(), **fields, **changes})
    return UnifiedModel(config).eval(), processor


def random_frames(count: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of noise, `(56, 56, 3)` uint8."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, *FRAME_SHAPE), dtype=np.uint8))


def ongoing(model, processor, outcome="ongoing"):
    """The same model, made sure that things stand so after each frame."""
    embedding, config = model.model.embed_tokens.weight, model.config
    others = [i for i in config.outcome_token_ids if i != getattr(config, f"{outcome}_token_id")]
    with torch.no_grad():
        embedding[others] = 0.0
        wanted = getattr(config, f"{outcome}_token_id")
        frame_end = hidden_after_frame(model, processor)
        embedding[wanted] = 20 * frame_end / frame_end.norm()
    return model, processor


@torch.no_grad()
def hidden_after_frame(model, processor):
    """The hidden state at which an outcome is chosen."""
    inputs = processor.encode([Sequence([frame_segment(random_frames(1)[0])])])
    states = []
    hook = model.model.norm.register_forward_hook(lambda *call: states.append(call[2]))
    model(**inputs)
    hook.remove()
    return states[0][0, -1]
