"""Several adapters in one model: each is as if it were alone, and without any there is the base."""

import random
import warnings

import numpy as np
import pytest
import torch

from tests.unified.model.test_adapters import assert_same, outputs
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, action_segment, text_segment
from unified.media.actions import NamedActions
from unified.model.adapters import fingerprint, lora_config, save_adapter
from unified.modeling import UnifiedModel

peft = pytest.importorskip("peft")

OWN = {
    "aa": ["up", "down", "jump"],
    "bb": ["x1", "x2", "x3"],
    "cc": None,  # the base's actions
    "head": ["left", "stay", "right"],  # names that the base has, and a module trained as a whole
    "level": ["one", "two"],  # another such module, and frames of another size
}
WHOLE = {"head": "latent_head", "level": "noise_level_embedding"}
GRIDS = {"level": (1, 2)}


def randomised(model, seed):
    """Weights as if trained, that half precision keeps."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_((0.3 * torch.randn_like(parameter)).half())
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folders(request, world, tmp_path_factory):
    """Folders of a base and of its adapters."""
    folder = tmp_path_factory.mktemp("turns")
    world.model(tie_word_embeddings=request.param).save_pretrained(folder / "base")
    world.processor.save_pretrained(folder / "base")
    for seed, (name, actions) in enumerate(OWN.items()):
        processor = world.processor
        model = UnifiedModel.from_pretrained(folder / "base")
        if actions is not None:
            processor = processor.with_action_space(NamedActions(name, actions))
            model.adopt(processor, GRIDS.get(name))
        # "head" trains a module as a whole which "aa" adapts by LoRA.
        config = lora_config(model, "agent" if name in WHOLE else "both", rank=2)
        if name in WHOLE:
            config.modules_to_save = [*(config.modules_to_save or []), WHOLE[name]]
        adapted = randomised(peft.get_peft_model(model, config), seed)
        save_adapter(adapted, processor, folder / name, base=str(folder / "base"))
    return folder


@pytest.fixture(scope="module")
def ask(folders, world):
    """Logits and predictions of a model in a conversation with an adapter's own actions."""
    processors = {n: UnifiedProcessor.from_pretrained(folders / n) for n in (*OWN, "base")}

    def asked(model, name):
        config, processor = model.config, processors[name]
        fields = processor.config_fields()
        assert config.vocab_size == fields["vocab_size"]
        assert tuple(config.action_token_ids) == fields["action_token_ids"]
        assert config.action_formats == fields["action_formats"]
        assert tuple(config.latent_grid) == GRIDS.get(name, (2, 2))
        frame = world.frame(np.random.default_rng(0), shape=(4, *config.latent_grid))
        action = processor.action_space.decode([processor.action_space.tokens[-1]])  # pyright: ignore[reportOptionalMemberAccess]
        sequence = Sequence([text_segment("go", "task"), frame, action_segment(action)])
        batch = processor.encode([sequence])
        found = outputs(model, {key: batch[key] for key in ("input_ids", "latents")})
        assert found[0].shape[-1] == fields["vocab_size"]
        return found

    return asked


@pytest.fixture(scope="module")
def alone(folders, ask):
    """What each says in a model of its own, and the base."""
    return {n: ask(UnifiedModel.from_pretrained(folders / n).eval(), n) for n in (*OWN, "base")}


def test_an_adapter_answers_as_it_does_alone_when_loaded_and_chosen_in_any_order(
    folders, ask, alone
):
    assert len({tuple(logits[0, -1, :8].tolist()) for logits, _ in alone.values()}) == len(alone)
    for seed in range(3):
        draw = random.Random(seed)
        model = UnifiedModel.from_pretrained(folders / "base").eval()
        for name in draw.sample(list(OWN), len(OWN)):
            model.load_adapter(folders / name, adapter_name=name)
            assert model.active_adapters() == [name]
            assert_same(ask(model, name), alone[name])
        for name in draw.choices(list(OWN), k=12):
            model.set_adapter(name)
            assert_same(ask(model, name), alone[name])
            if draw.random() < 0.5:
                model.disable_adapters()
                assert_same(ask(model, "base"), alone["base"])
                model.enable_adapters()
                assert_same(ask(model, name), alone[name])


def test_without_adapters_the_model_is_the_base_in_every_respect(folders, ask, alone):
    base = UnifiedModel.from_pretrained(folders / "base")
    model = UnifiedModel.from_pretrained(folders / "base").eval()
    for name in OWN:
        model.load_adapter(folders / name, adapter_name=name)
    model.disable_adapters()
    assert model.active_adapters() == []
    assert model.config.to_dict() == base.config.to_dict()
    state, expected = model.state_dict(), base.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert [type(module) for module in model.modules()] == [type(m) for m in base.modules()]
    assert fingerprint(model) == fingerprint(base)
    model.delete_adapter([name for name in OWN if name != "bb"])
    model.set_adapter("bb")
    assert_same(ask(model, "bb"), alone["bb"])
    assert fingerprint(model) == fingerprint(base)
    with pytest.raises(ValueError, match="'aa' cannot be active; choose one of bb"):
        model.set_adapter("aa")
    with pytest.raises(ValueError, match="is an adapter 'bb' already; give another"):
        model.load_adapter(folders / "aa", adapter_name="bb")
    assert_same(ask(model, "bb"), alone["bb"])


def test_an_adapter_follows_its_model_to_another_precision(folders, ask):
    model = UnifiedModel.from_pretrained(folders / "base").eval()
    model.load_adapter(folders / "aa", adapter_name="aa")
    model.load_adapter(folders / "bb", adapter_name="bb")
    model.double()
    model.set_adapter("aa")
    alone = UnifiedModel.from_pretrained(folders / "aa").eval().double()
    assert_same(ask(model, "aa"), ask(alone, "aa"))


@pytest.mark.parametrize("name", ["aa", "head"])
def test_pefts_own_model_loads_disables_and_merges_an_adapter_with_new_actions(
    folders, ask, alone, name, tmp_path
):
    base = UnifiedModel.from_pretrained(folders / "base").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted = peft.PeftModel.from_pretrained(base, folders / name).eval()
    assert_same(ask(adapted.get_base_model(), name), alone[name])
    with adapted.disable_adapter():
        assert_same(ask(base, "base"), alone["base"])
    assert_same(ask(base, name), alone[name])
    merged = adapted.merge_and_unload()
    assert isinstance(merged, UnifiedModel)
    near = {"rtol": 1e-4, "atol": 1e-4}
    assert_same(ask(merged, name), alone[name], **near)
    merged.save_pretrained(tmp_path)
    assert_same(ask(UnifiedModel.from_pretrained(tmp_path), name), alone[name], **near)
    merged.fold_adopted()
    assert_same(ask(merged, name), alone[name], **near)


def test_two_adapters_with_actions_take_turns_in_pefts_own_model(folders, ask, alone):
    base = UnifiedModel.from_pretrained(folders / "base").eval()
    adapted = peft.PeftModel.from_pretrained(base, folders / "aa", adapter_name="aa").eval()
    for name in ("bb", "cc"):
        adapted.load_adapter(str(folders / name), adapter_name=name)
    for name in ("aa", "bb", "cc", "bb", "aa"):
        adapted.set_adapter(name)
        assert_same(ask(base, name), alone[name])


@pytest.mark.parametrize("name", ["aa", "cc", "level"])
def test_folders_of_plain_save_pretrained_hold_all_that_an_adapter_brought(
    folders, ask, alone, name, tmp_path
):
    base = UnifiedModel.from_pretrained(folders / "base").eval()
    peft.PeftModel.from_pretrained(base, folders / name).save_pretrained(tmp_path / "pefts")
    UnifiedModel.from_pretrained(folders / name).save_pretrained(tmp_path / "ours")
    for folder in ("pefts", "ours"):
        assert_same(ask(UnifiedModel.from_pretrained(tmp_path / folder).eval(), name), alone[name])


def test_a_correct_load_prints_nothing(folders, capfd):
    model = UnifiedModel.from_pretrained(folders / "base")
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name in OWN:
            model.load_adapter(folders / name, adapter_name=name)
    assert capfd.readouterr() == ("", "")
    assert not [str(w.message) for w in warned]
