"""Several adapters in one model: each is as if it were alone, and without any there is the base."""

import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.unified.model.test_adapters import assert_same, outputs
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, action_segment, text_segment
from unified.media.actions import NamedActions
from unified.model.adapters import WEIGHTS_FILE, fingerprint, lora_config, save_adapter
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
        warnings.simplefilter("error")
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


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_with_biases_of_its_own_leaves_those_of_the_base_alone(bias, world, tmp_path):
    base, path = world.model(attention_bias=True), tmp_path / "base"
    base.save_pretrained(path)
    world.processor.save_pretrained(path)
    inputs = dict(world.processor.encode([Sequence([text_segment("go", "task")])]))
    expected = {"base": outputs(base.eval(), inputs)}
    for seed, (name, kind) in enumerate({"bias": bias, "plain": "none"}.items()):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias=kind)
        adapted = randomised(peft.get_peft_model(UnifiedModel.from_pretrained(path), config), seed)
        expected[name] = outputs(adapted.eval(), inputs)
        adapted.save_pretrained(tmp_path / name)
    model = UnifiedModel.from_pretrained(path)
    whole = fingerprint(model)
    if not any(key.endswith(".bias") for key in load_file(tmp_path / "bias" / WEIGHTS_FILE)):
        assert bias == "lora_only"  # peft before 0.21 loses them when it saves
        with pytest.raises(ValueError, match=r"trains the base's own \S*bias, which peft \S+ does"):
            model.load_adapter(tmp_path / "bias", adapter_name="bias")
        assert fingerprint(model) == whole
        assert_same(outputs(model, inputs), expected["base"])
        return
    model.load_adapter(tmp_path / "bias", adapter_name="bias")
    model.load_adapter(tmp_path / "plain", adapter_name="plain")
    for name in ("plain", "bias", "plain", "bias"):
        model.set_adapter(name)
        assert_same(outputs(model, inputs), expected[name])
    model.save_pretrained(tmp_path / "again")
    assert_same(outputs(UnifiedModel.from_pretrained(tmp_path / "again"), inputs), expected["bias"])
    model.disable_adapters()
    assert_same(outputs(model, inputs), expected["base"])
    model.delete_adapter(["bias", "plain"])
    assert fingerprint(model) == whole


def test_save_adapter_refuses_one_that_trained_the_biases_of_its_base(folders, tmp_path):
    base = str(folders / "base")
    processor = UnifiedProcessor.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all")
    adapted = peft.get_peft_model(UnifiedModel.from_pretrained(base), config)
    with pytest.raises(ValueError, match=r"bias='all'.*base's own.*bias='none'"):
        save_adapter(adapted, processor, tmp_path / "a", base=base)
    assert not (tmp_path / "a").exists()


def test_the_base_is_trained_as_before_once_no_adapter_is_in_it(folders):
    model = UnifiedModel.from_pretrained(folders / "base")
    model.lm_head.weight.requires_grad_(False)
    before = {name: x.requires_grad for name, x in model.named_parameters()}
    model.load_adapter(folders / "cc", is_trainable=True)
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    model.disable_adapters()
    assert {name: x.requires_grad for name, x in model.named_parameters()} == before
    model.enable_adapters()
    assert {name for name, x in model.named_parameters() if x.requires_grad} == trained
    model.delete_adapter("default")
    assert {name: x.requires_grad for name, x in model.named_parameters()} == before


def test_save_adapter_refuses_weights_that_half_precision_cannot_hold(folders, tmp_path):
    base = str(folders / "base")
    processor = UnifiedProcessor.from_pretrained(base)
    model = UnifiedModel.from_pretrained(base)
    adapted = peft.get_peft_model(model, lora_config(model, rank=2))
    largest = next(x for name, x in adapted.named_parameters() if "lora_A" in name)
    with torch.no_grad():
        largest[0, 0] = 7e4
    save = [adapted, processor, tmp_path / "a"]
    with pytest.raises(ValueError, match=r"lora_A.* larger than 65504"):
        save_adapter(*save, base=base)
    assert not (tmp_path / "a").exists()
    with torch.no_grad():
        largest[0, 0] = 65504
    save_adapter(*save, base=base)
    UnifiedModel.from_pretrained(tmp_path / "a")


def test_a_folder_holds_a_model_or_an_adapter_whichever_was_written_last(folders, ask, tmp_path):
    base, path = folders / "base", tmp_path / "a"
    model = UnifiedModel.from_pretrained(base).eval()
    model.load_adapter(folders / "cc")
    expected = ask(model, "cc")
    model.save_pretrained(path)
    assert_same(ask(UnifiedModel.from_pretrained(path), "cc"), expected)
    model.disable_adapters()
    model.save_pretrained(path)
    assert not list(path.glob("*adapter*"))
    assert fingerprint(UnifiedModel.from_pretrained(path)) == fingerprint(model)
    model.enable_adapters()
    with pytest.raises(ValueError, match=r"a holds a model, perhaps this adapter's base"):
        model.save_pretrained(path)
    assert fingerprint(UnifiedModel.from_pretrained(path)) == fingerprint(
        UnifiedModel.from_pretrained(base)
    )
    (path / "adapter_config.json").write_bytes((folders / "cc/adapter_config.json").read_bytes())
    with pytest.raises(ValueError, match=r"a holds a model and an adapter"):
        UnifiedModel.from_pretrained(path)


def test_a_merged_model_can_replace_its_adapter(folders, ask, tmp_path):
    shutil.copytree(folders / "cc", tmp_path / "cc")
    base = UnifiedModel.from_pretrained(folders / "base")
    merged = peft.PeftModel.from_pretrained(base, str(tmp_path / "cc")).merge_and_unload().eval()
    expected = ask(merged, "cc")
    merged.save_pretrained(tmp_path / "cc")
    assert_same(ask(UnifiedModel.from_pretrained(tmp_path / "cc").eval(), "cc"), expected)


def test_an_adapter_is_not_written_over_its_own_base(folders, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folders / "base", base)
    model = UnifiedModel.from_pretrained(base)
    adapted = peft.get_peft_model(model, lora_config(model, rank=2))
    with pytest.raises(ValueError, match="base is the folder of the adapter's own base"):
        save_adapter(adapted, UnifiedProcessor.from_pretrained(base), base, base=str(base))
    UnifiedModel.from_pretrained(base)
