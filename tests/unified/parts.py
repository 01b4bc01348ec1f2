"""A small random model with the real tokenizer, action space and codec shape of BabyAI."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
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
