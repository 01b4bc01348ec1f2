"""A tiny model, its processor, and conversations for it, all seeded and in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import (
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.conversation.stream import TokenStream
from unified.media.action_space import ActionSpace
from unified.model.plan import TrainingRow, collate, plan_training, span_ranges
from unified.modeling import UnifiedModel

ROOT = Path(__file__).parents[2]
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


class World:
    """Makes configs, models, conversations and rows; what the tests below share."""

    def __init__(self, processor: UnifiedProcessor):
        self.processor = processor

    def config(self, **changes) -> UnifiedConfig:
        fields = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 16,
            "latent_grid": (2, 2),
            "partial_rotary_factor": 0.5,
            "path_layer": 1,
            "path_origin": (1, 0),
            "window_frames": 3,
            "initializer_range": 0.2,
        }
        return UnifiedConfig(**{**self.processor.config_fields(), **fields, **changes})

    def model(self, seed: int = 0, **changes) -> UnifiedModel:
        torch.manual_seed(seed)
        return UnifiedModel(self.config(**changes)).eval()

    def frame(
        self, rng: np.random.Generator, outcome: str | None = "ongoing", **changes
    ) -> Segment:
        shape = changes.pop("shape", (4, 2, 2))
        latents = rng.standard_normal(shape).astype(np.float32)
        return frame_segment(latents=latents, outcome=outcome, **changes)

    def episode(
        self,
        num_frames: int,
        seed: int = 0,
        *,
        task: str | None = "open the red door",
        last_outcome: str | None = "ongoing",
        thoughts: bool = False,
        hindsight: bool = False,
        exchanges: bool = False,
    ) -> Sequence:
        """T frames and the T - 1 actions between them, drawn at random.

        With exchanges, the task speaks after half of the frames, now and then after a reply.
        """
        rng = np.random.default_rng(seed)
        segments = [text_segment(task, "task", weight=0.0)] if task else []
        for i in range(num_frames):
            is_last = i == num_frames - 1
            segments.append(self.frame(rng, last_outcome if is_last else "ongoing"))
            if hindsight and i and segments[-1].outcome:
                segments.append(action_segment(str(rng.choice(ACTIONS)), hindsight=True))
            if exchanges and rng.random() < 0.5:
                if rng.random() < 0.5:
                    segments.append(text_segment("i see a door"))
                segments.append(text_segment("now the blue one", "task", weight=0.0))
            if is_last:
                break
            if thoughts and rng.random() < 0.5:
                segments.append(text_segment("go to the red door"))
            name = None if hindsight else str(rng.choice(ACTIONS))
            segments.append(action_segment(name))
        return Sequence(segments)

    def stream(self, *args, **kwargs) -> TokenStream:
        return self.processor.stream(self.episode(*args, **kwargs))

    def row(
        self,
        stream: TokenStream,
        config: UnifiedConfig,
        kind: Any = "frame",
        seed: int = 0,
        **options,
    ) -> TrainingRow:
        """The stream with all of its frames in noisy spans."""
        generator = torch.Generator().manual_seed(seed)
        num_frames = len(stream.latents)
        spans = span_ranges(num_frames, kind, chunk_frames=2)
        levels = torch.rand(len(spans), num_frames, generator=generator)
        return plan_training(
            stream,
            config,
            spans=spans,
            noise_levels=levels,
            bidirectional=kind == "bidirectional",
            **options,
        )

    def batch(
        self,
        rows: list[TrainingRow],
        config: UnifiedConfig,
        length: int | None = None,
        seed: int = 0,
    ) -> dict[str, torch.Tensor]:
        """Model inputs with their noise."""
        batch = collate(rows, config, length or max(len(row) for row in rows))
        generator = torch.Generator().manual_seed(seed)
        return {**batch, "noise": torch.randn(batch["latents"].shape, generator=generator)}


@pytest.fixture(scope="session")
def tiny_processor(tiny_codec) -> UnifiedProcessor:
    return UnifiedProcessor(
        tokenizer=AutoTokenizer.from_pretrained(ROOT / "tokenizers_cfg" / "text"),
        codec=tiny_codec,
        action_space=ActionSpace.from_config(ROOT / "tokenizers_cfg" / "actions" / "babyai.json"),
    )


@pytest.fixture(scope="session")
def world(tiny_processor) -> World:
    return World(tiny_processor)


@pytest.fixture(scope="session")
def tiny_config(world) -> UnifiedConfig:
    return world.config()


@pytest.fixture(scope="session")
def tiny_model(world) -> UnifiedModel:
    return world.model()
