"""An untrained model of BabyAI's shape, for what must run with any model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.media.action_space import ActionSpace
from unified.media.codec import FrameCodec
from unified.modeling import UnifiedModel

CONFIGS = Path(__file__).parents[2] / "tokenizers_cfg"


@pytest.fixture
def untrained(tmp_path: Path) -> Callable[..., str]:
    """Saves a model with its processor, and names the folder; changes are fields of the config."""

    def save(**changes: object) -> str:
        torch.manual_seed(0)
        processor = UnifiedProcessor(
            tokenizer=AutoTokenizer.from_pretrained(CONFIGS / "text"),
            codec=FrameCodec.from_config(CONFIGS / "codec" / "babyai.json"),
            action_space=ActionSpace.from_config(CONFIGS / "actions" / "babyai.json"),
        )
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        fields = {**processor.config_fields(), **sizes, "num_attention_heads": 1, **changes}
        UnifiedModel(UnifiedConfig(**fields)).save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save
