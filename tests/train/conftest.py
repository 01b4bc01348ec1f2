"""Fixtures of runs that pretrain or distil: a few episodes, and the options of four steps."""

from pathlib import Path

import pytest

from data.latents import write_latents
from data.recording import record_babyai
from train.pretrain import PretrainArguments
from train.recipes import RECIPES, Recipe
from train.rows.mixture import MixtureConfig

ROOT = Path(__file__).parents[2]
MODEL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "latent_grid": (7, 7),
    "window_frames": 3,
}


@pytest.fixture(scope="module")
def folders(tiny_codec, tmp_path_factory):
    """Latents of a few real episodes, and the untrained codec that made them."""
    folder = tmp_path_factory.mktemp("pretrain")
    record_babyai(["GoToRedBall", "OpenDoor"], episodes=4, seed=11, out=folder / "data")
    tiny_codec.save_pretrained(folder / "codec")
    write_latents(folder / "data", tiny_codec, batch=32, device="cpu")
    return folder


@pytest.fixture
def arguments(folders, tmp_path, monkeypatch):
    """Arguments of a run of four steps that saves at each of them."""
    recipe = Recipe(
        model=MODEL,
        mixture=MixtureConfig(row_length=300, max_frames=3),
        steps=4,
        rows=2,
        ema_decay=0.9,
    )
    monkeypatch.setitem(RECIPES, "tiny", lambda: recipe)
    return PretrainArguments(
        data=folders / "data",
        codec=folders / "codec",
        out=tmp_path / "run",
        recipe="tiny",
        tokenizer=ROOT / "tokenizers_cfg" / "text",
        actions=ROOT / "tokenizers_cfg" / "actions" / "babyai.json",
        save_seconds=0,
        log_steps=1,
        workers=0,
        sample_steps=0,
    )
