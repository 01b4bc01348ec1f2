"""Recipes: what makes one model, as plain functions that return plain values."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from train.rows.mixture import MixtureConfig
from unified.model.adapters import Preset


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a pretraining run depends on, besides data, tokenizer and codec."""

    model: dict[str, Any] = field(default_factory=dict)
    """Fields of `UnifiedConfig`; the processor adds those that it decides."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """Composition of a training row."""
    steps: int = 4000
    """Optimiser steps."""
    rows: int = 10
    """Rows of one optimiser step."""
    learning_rate: float = 2e-3
    """Peak learning rate, after the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_share: float = 0.3
    """Last share of the steps, over which the learning rate falls to zero."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    ema_decay: float = 0.998
    """Decay of the moving average of the weights; the averaged weights are saved."""
    lora_rank: int | None = None
    """Rank of adapters on a frozen language model. None trains all weights, and needs no language
    model."""


BABYAI_MODEL: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.5,
    "path_layer": 2,
    "latent_grid": (7, 7),
    "window_frames": 16,
    "initializer_range": 0.06,
    "flow_loss_weight": 4.0,
    "motion_loss_weight": 100.0,
}
BABYAI_MIXTURE = MixtureConfig(
    policy_share=0.22,
    joint_share=0.46,
    inverse_share=0.05,
    describe_share=0.07,
    imagine_share=0.2,
    task_dropout=0.1,
    task_swap=0.55,
    promise_share=0.6,
    caption_share=0.15,
    skip_share=0.2,
    recall_weight=1.0,
    recall_draws=2,
    reveal_weight=2.0,
    change_weight=8.0,
    event_weight=4.0,
)
"""What the world does is drawn mostly under another task than the one it was recorded with, or
under none; what it holds is told by the world's own words."""


def babyai_short() -> Recipe:
    """First stage: up to eight frames of an episode.

    Short rows cost less attention a token; the last stage, `babyai`, fills the window.
    """
    return Recipe(
        model=BABYAI_MODEL,
        mixture=replace(
            BABYAI_MIXTURE,
            row_length=800,
            max_frames=8,
            span_share=0.75,
            imagine_share=0.3,
            recall_draws=1,
        ),
        rows=128,
        decay_share=0.1,
        steps=4000,
        learning_rate=3e-3,
    )


def babyai() -> Recipe:
    """Last stage: all queries, episodes as long as a row, and what was seen long ago."""
    return Recipe(
        model=BABYAI_MODEL,
        mixture=replace(BABYAI_MIXTURE, row_length=1536, span_share=0.5),
        rows=64,
        decay_share=0.5,
        steps=3000,
        learning_rate=3e-3,
    )


def babyai_events() -> Recipe:
    """A stage that a CPU can do in hours: what actions and the world's words change.

    Short parts of episodes, most of their spans on frames before which the world said something,
    and as little of all else as keeps it learned.
    """
    return Recipe(
        model=BABYAI_MODEL,
        mixture=replace(
            BABYAI_MIXTURE,
            row_length=800,
            max_frames=8,
            span_share=1.0,
            policy_share=0.1,
            joint_share=0.76,
            inverse_share=0.03,
            describe_share=0.03,
            imagine_share=0.08,
            recall_draws=1,
        ),
        rows=8,
        decay_share=0.6,
        steps=1200,
        learning_rate=6e-4,
        warmup_steps=20,
    )


def babyai_futures() -> Recipe:
    """A stage in which frames are also drawn together: runs of them, causal and bidirectional.

    Half of the spans stay single frames, so that nothing is lost.
    """
    recipe = babyai_events()
    mixture = replace(recipe.mixture, chunk_share=0.5, bidirectional_share=0.3, row_length=1024)
    return replace(recipe, mixture=mixture)


def babyai_smollm2() -> Recipe:
    """A pretrained language model as the decoder: adapters for words, latents' own maps as a whole.

    For SmolLM2-135M on one GPU; on a CPU, `--steps 200 --rows 1` shows that it learns.
    """
    return Recipe(
        model={
            "modality_experts": True,
            "latent_grid": (7, 7),
            "window_frames": 16,
            "flow_loss_weight": 4.0,
        },
        mixture=MixtureConfig(
            row_length=640, policy_share=0.3, joint_share=0.35, describe_share=0.25
        ),
        rows=16,
        steps=6000,
        learning_rate=5e-4,
        weight_decay=0.0,
        lora_rank=16,
    )


def finetune(preset: Preset, *, is_lora: bool) -> Recipe:
    """What a trained model is adapted with.

    `agent` learns words and actions alone, from whole episodes; `world` frames and outcomes alone,
    whoever acted; `both` all of it.
    """
    mixture = MixtureConfig(row_length=1024, span_share=0.4, recall_weight=2.0, recall_draws=3)
    if preset == "agent":
        mixture = replace(mixture, policy_share=0.8, joint_share=0.0, imagine_share=0.0)
    if preset == "world":
        none = {"policy_share": 0.0, "inverse_share": 0.0, "describe_share": 0.0}
        mixture = replace(mixture, joint_share=0.95, action_weight=0.0, **none)
    return Recipe(
        mixture=mixture,
        rows=6,
        steps=400,
        learning_rate=4e-3 if is_lora else 1e-3,
        warmup_steps=20,
        decay_share=0.5,
        weight_decay=0.0 if is_lora else 0.05,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "babyai": babyai,
    "babyai-events": babyai_events,
    "babyai-futures": babyai_futures,
    "babyai-short": babyai_short,
    "babyai-smollm2": babyai_smollm2,
}
