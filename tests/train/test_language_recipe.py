"""A recipe on a language model: adapters for words, whole weights for latents."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.latents import write_latents
from data.recording import record_babyai
from tests.train.test_pretrain import CutOffError, cut_off_after
from tests.unified.model.test_language import LANGUAGE, save
from train.pretrain import PretrainArguments, train
from train.recipes import RECIPES, Recipe
from train.rows.mixture import MixtureConfig
from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel

pytest.importorskip("peft")

RANK = 2


@pytest.fixture(scope="module")
def folders(tiny_codec, tmp_path_factory):
    """Latents of a few real episodes, the codec that made them, and a language model."""
    folder = tmp_path_factory.mktemp("language")
    record_babyai(["GoToRedBall"], episodes=3, seed=11, out=folder / "data")
    tiny_codec.save_pretrained(folder / "codec")
    write_latents(folder / "data", tiny_codec, batch=32, device="cpu")
    torch.manual_seed(0)
    save(LANGUAGE["llama"](), folder / "llama")
    return folder


@pytest.fixture
def arguments(folders, tmp_path, monkeypatch):
    recipe = Recipe(
        model={"modality_experts": True, "latent_grid": (7, 7), "window_frames": 3},
        mixture=MixtureConfig(row_length=300, max_frames=3),
        steps=4,
        rows=1,
        learning_rate=1e-2,
        lora_rank=RANK,
        ema_decay=0.5,
    )
    monkeypatch.setitem(RECIPES, "tiny", lambda: recipe)
    return PretrainArguments(
        data=folders / "data",
        codec=folders / "codec",
        out=tmp_path / "run",
        recipe="tiny",
        language_model=str(folders / "llama"),
        save_seconds=0,
        log_steps=1,
        workers=0,
        sample_steps=0,
    )


def test_words_keep_their_weights_but_for_a_low_rank_and_latents_learn(folders, arguments):
    out = train(arguments)
    before = AutoModelForCausalLM.from_pretrained(folders / "llama").state_dict()
    model = UnifiedModel.from_pretrained(out)
    processor = UnifiedProcessor.from_pretrained(out)
    after = model.state_dict()
    assert not [name for name in after if "lora" in name or "modules_to_save" in name]
    own = processor.config_fields()["text_token_ids"][1]
    table = "model.embed_tokens.weight"
    assert torch.equal(after[table][:own], before[table][:own])
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    change = after[name] - before[name]
    assert change.abs().max() > 0
    assert torch.linalg.matrix_rank(change, rtol=1e-4) <= RANK
    of_latents = after["model.layers.0.self_attn.q_proj_latent.weight"] - before[name]
    assert torch.linalg.matrix_rank(of_latents, rtol=1e-4) > RANK


def test_a_run_that_was_cut_off_gives_the_same_model(arguments, tmp_path, monkeypatch):
    whole = UnifiedModel.from_pretrained(train(replace(arguments, out=tmp_path / "whole")))
    with monkeypatch.context() as patch:
        cut_off_after(2, patch)
        with pytest.raises(CutOffError):
            train(arguments)
    found = UnifiedModel.from_pretrained(train(replace(arguments, resume=True))).state_dict()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_recipe_and_language_model_have_to_fit(arguments, monkeypatch):
    with pytest.raises(ValueError, match="'tiny' wants a language model"):
        train(replace(arguments, language_model=None))
    with pytest.raises(ValueError, match="'babyai' wants none"):
        train(replace(arguments, recipe="babyai"))
