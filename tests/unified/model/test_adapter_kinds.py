"""Whatever kind of adapter peft trains in a model comes back exactly, or is refused."""

import contextlib
import inspect

import numpy as np
import pytest
import torch

from tests.unified.model.test_adapters import assert_same, outputs
from unified.conversation.sequence import Sequence, action_segment, text_segment
from unified.media.actions import NamedActions
from unified.model.adapters import fingerprint
from unified.modeling import UnifiedModel

peft = pytest.importorskip("peft")

KINDS = {kind.value: cls for kind, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
EXACT = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA", "HRA", "LN_TUNING")
"""These at least are not refused, in any version."""
OPTIONS = {
    "ADALORA": {"total_step": 10},
    "IA3": {"feedforward_modules": ["v_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"oft_block_size": 0},
}
LORA = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "bias": {"bias": "all"},
    "tokens": {"trainable_token_indices": {"embed_tokens": [3, 5]}},
    "task": {"task_type": "CAUSAL_LM"},
    "table": {"target_modules": ["embed_tokens", "q_proj"]},
    "layers": {"layers_to_transform": [1], "rank_pattern": {"v_proj": 3}},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}
CHANGE_THE_BASE = ("pissa", "olora")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "base"
    world.model().save_pretrained(folder)
    world.processor.save_pretrained(folder)
    return str(folder)


def options_of(kind):
    """The least that a kind's config has to be told."""
    cls = KINDS[kind]
    known = inspect.signature(cls).parameters
    options = {"target_modules": ["q_proj", "v_proj"], "r": 4, **OPTIONS.get(kind, {})}
    return {name: value for name, value in options.items() if name in known}


@pytest.fixture
def batch(world):
    processor = world.processor.with_action_space(NamedActions("own", ["up", "down"]))
    frame = world.frame(np.random.default_rng(0))
    inputs = processor.encode([Sequence([text_segment("go", "task"), frame, action_segment("up")])])
    return processor, {key: inputs[key] for key in ("input_ids", "latents")}


def trained(base, config, processor=None):
    """A model with an adapter, random as if trained; None if peft cannot have it in this model."""
    model = UnifiedModel.from_pretrained(base).eval()
    if processor is not None:
        model.adopt(processor)
    try:
        adapted = peft.get_peft_model(model, config)
    except (
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        ImportError,
    ):
        return None
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted.eval()


def loaded(folder, base):
    """The model from a folder; None if it is refused, which leaves a base as it was."""
    with contextlib.suppress(ValueError):
        return UnifiedModel.from_pretrained(folder).eval()
    model = UnifiedModel.from_pretrained(base)
    expected = fingerprint(model)
    with pytest.raises(ValueError, match="adapter"):
        model.load_adapter(folder)
    assert fingerprint(model) == expected
    assert list(model.state_dict()) == list(UnifiedModel.from_pretrained(base).state_dict())
    return None


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_adapter_of_any_kind_comes_back_exactly_or_is_refused(kind, base, batch, tmp_path):
    processor, inputs = batch
    options = options_of(kind)
    if "modules_to_save" in inspect.signature(KINDS[kind]).parameters:
        options["modules_to_save"] = ["adopted"]
    else:
        processor, inputs = None, {"input_ids": inputs["input_ids"].clamp(max=500)}
    try:
        config = KINDS[kind](**options)
    except (TypeError, ValueError, ImportError):
        assert kind not in EXACT
        pytest.skip("wants options of its own")
    adapted = trained(base, config, processor)
    if adapted is None:
        assert kind not in EXACT
        pytest.skip("not for this model")
    try:
        expected = outputs(adapted, inputs)
        adapted.save_pretrained(tmp_path)
    except (TypeError, AttributeError, ValueError, RuntimeError, KeyError, ImportError):
        assert kind not in EXACT
        pytest.skip("computes with more than the model is given")
    found = loaded(tmp_path, base)
    if found is None:
        assert kind not in EXACT
    else:
        assert_same(outputs(found, inputs), expected)
        found.disable_adapters()
        assert fingerprint(found) == fingerprint(UnifiedModel.from_pretrained(base))


@pytest.mark.parametrize("name", LORA)
def test_lora_with_any_option_comes_back_exactly_or_is_refused(name, base, batch, tmp_path):
    processor, inputs = batch
    options = {"target_modules": ["q_proj", "v_proj"], "r": 2, **LORA[name]}
    config = peft.LoraConfig(**options, modules_to_save=["adopted"])
    adapted = trained(base, config, processor)
    assert adapted is not None
    expected = outputs(adapted, inputs)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    if name in CHANGE_THE_BASE:
        with pytest.raises(ValueError, match=f"'{name}', which changes the base's own"):
            UnifiedModel.from_pretrained(tmp_path)
        assert loaded(tmp_path, base) is None
    else:
        assert_same(outputs(UnifiedModel.from_pretrained(tmp_path).eval(), inputs), expected)


def test_a_causal_language_model_of_pefts_answers_as_the_model_does(base, world, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2)
    adapted = trained(base, config)
    assert isinstance(adapted, peft.PeftModelForCausalLM)
    inputs = dict(world.processor.encode([Sequence([text_segment("go", "task")])]))
    adapted.save_pretrained(tmp_path)  # pyright: ignore[reportOptionalMemberAccess]
    model = UnifiedModel.from_pretrained(tmp_path).eval()
    assert_same(outputs(model, inputs), outputs(adapted, inputs))
    seed = torch.Generator().manual_seed(0)
    expected = model.generate(**inputs, query="forward", generator=seed)
    found = adapted.generate(**inputs, query="forward", generator=seed.manual_seed(0))  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(found.input_ids[0], expected.input_ids[0])
    assert torch.equal(found.latents[0], expected.latents[0])
    assert model.generation_config == UnifiedModel.from_pretrained(base).generation_config
