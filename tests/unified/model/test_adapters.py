"""Adapters: nothing but what was trained changes, and a folder knows what it belongs to."""

import json

import numpy as np
import pytest
import torch

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, action_segment, frame_segment, text_segment
from unified.media.actions import MultiDiscreteActions
from unified.media.codec import FrameCodec
from unified.model.adapters import (
    PRESETS,
    Preset,
    fingerprint,
    lora_config,
    save_adapter,
)
from unified.modeling import UnifiedModel
from unified.pretrained import INFO_FILE, AdapterInfo

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """Folder of a model with its processor."""
    folder = tmp_path_factory.mktemp("base") / "model"
    world.model().save_pretrained(folder)
    world.processor.save_pretrained(folder)
    return str(folder)


def adapted(base, seed=1, preset: Preset = "both", rank=2):
    """A base whose adapter is random, as if trained."""
    model = UnifiedModel.from_pretrained(base).eval()
    wrapped = peft.get_peft_model(model, lora_config(model, preset, rank=rank)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                # Half precision keeps these, so that what is saved is what was trained.
                parameter.copy_((0.3 * torch.randn_like(parameter)).half())
    return wrapped


def saved(base, world, folder, **options):
    save_adapter(adapted(base, **options), world.processor, folder, base=base)
    return folder


@pytest.fixture
def batch(world):
    model_config = world.config()
    return world.batch([world.row(world.stream(2), model_config)], model_config)


def outputs(model, batch):
    with torch.no_grad():
        output = model(**batch)
    return output.logits, output.prediction


def assert_same(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        if tolerance:
            torch.testing.assert_close(a, b, **tolerance)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("preset", PRESETS)
def test_an_untrained_adapter_is_the_base(base, batch, preset):
    model = UnifiedModel.from_pretrained(base).eval()
    expected = outputs(model, batch)
    wrapped = peft.get_peft_model(model, lora_config(model, preset)).eval()
    assert_same(outputs(wrapped, batch), expected)


def test_only_the_adapter_has_gradients(base, batch):
    wrapped = adapted(base)
    wrapped(**batch).loss.backward()
    with_gradient = {n for n, p in wrapped.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in wrapped.named_parameters() if ".lora_" in n}


@pytest.mark.parametrize("experts", [False, True])
def test_presets_adapt_the_path_they_name(world, experts):
    model = world.model(modality_experts=experts)
    targets = {}
    for preset in PRESETS:
        config = lora_config(model, preset)
        wrapped = peft.get_peft_model(world.model(modality_experts=experts), config)
        names = {n.split(".lora_")[0] for n, _ in wrapped.named_parameters() if ".lora_A" in n}
        targets[preset] = {name.rsplit(".", 1)[1] for name in names}
    assert targets["both"] == targets["agent"] | targets["world"]
    assert not targets["agent"] & {"latent_in", "latent_head"}
    assert targets["world"] >= {"latent_in", "latent_head"}
    assert ("q_proj" in targets["world"]) is not experts
    assert ("q_proj_latent" in targets["world"]) is experts
    assert not any(name.endswith("_latent") for name in targets["agent"])


def test_a_saved_adapter_comes_back_on_its_base(base, world, batch, tmp_path):
    folder = saved(base, world, tmp_path / "adapter")
    expected = outputs(adapted(base), batch)
    found = UnifiedModel.from_pretrained(folder)
    assert isinstance(found, UnifiedModel)
    assert_same(outputs(found, batch), expected, rtol=1e-5, atol=1e-6)
    processor = UnifiedProcessor.from_pretrained(folder)
    assert processor.config_fields() == world.processor.config_fields()
    assert processor.codec is not None
    assert processor.codec.fingerprint == world.processor.codec.fingerprint
    assert not (folder / "codec").exists()  # it is the base's


def test_a_codec_of_its_own_travels_with_the_adapter(base, world, other_codec, tmp_path):
    processor = UnifiedProcessor(
        tokenizer=world.processor.tokenizer,
        codec=other_codec,
        action_space=world.processor.action_space,
    )
    save_adapter(adapted(base), processor, tmp_path / "adapter", base=base)
    found = UnifiedProcessor.from_pretrained(tmp_path / "adapter").codec
    assert found is not None
    assert found.fingerprint == other_codec.fingerprint


def test_a_base_whose_codec_is_another_one_now_is_refused(base, world, tmp_path):
    folder = saved(base, world, tmp_path / "adapter")
    info = json.loads((folder / "unified_adapter.json").read_text())
    (folder / "unified_adapter.json").write_text(json.dumps({**info, "codec_fingerprint": "0123"}))
    with pytest.raises(ValueError, match="trained with codec 0123"):
        UnifiedProcessor.from_pretrained(folder)


def test_without_its_adapter_a_model_is_the_base_exactly(base, world, batch, tmp_path):
    expected = outputs(UnifiedModel.from_pretrained(base).eval(), batch)
    model = UnifiedModel.from_pretrained(saved(base, world, tmp_path / "adapter"))
    with_adapter = outputs(model, batch)
    model.disable_adapters()
    assert_same(outputs(model, batch), expected)
    model.enable_adapters()
    assert_same(outputs(model, batch), with_adapter)
    assert not torch.equal(with_adapter[0], expected[0])


def test_two_adapters_take_turns_in_one_model(base, world, batch, tmp_path):
    alone = {}
    model = UnifiedModel.from_pretrained(base).eval()
    for seed, name in enumerate(("mine", "yours")):
        folder = saved(base, world, tmp_path / name, seed=seed)
        alone[name] = outputs(UnifiedModel.from_pretrained(folder), batch)
        model.load_adapter(folder, adapter_name=name)
    for name in ("mine", "yours", "mine"):
        model.set_adapter(name)
        assert_same(outputs(model, batch), alone[name])
    assert not torch.equal(alone["mine"][0], alone["yours"][0])


def test_a_merged_adapter_gives_what_it_gave_beside_the_base(base, batch):
    wrapped = adapted(base)
    expected = outputs(wrapped, batch)
    merged = wrapped.merge_and_unload()
    assert isinstance(merged, UnifiedModel)
    assert not [name for name, _ in merged.named_parameters() if ".lora_" in name]
    assert_same(outputs(merged, batch), expected, rtol=1e-4, atol=1e-4)


def test_an_adapted_model_acts_and_draws(base, world, tmp_path):
    model = UnifiedModel.from_pretrained(saved(base, world, tmp_path / "adapter"))
    inputs = world.processor.encode([world.episode(1)])
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    replies = [model.generate(**inputs, query="joint", generator=seed) for seed in seeds]
    assert torch.equal(replies[0].latents[0], replies[1].latents[0])


ARM = MultiDiscreteActions("arm", {"move": ["left", "stay", "right"], "grip": 2})


def with_arm(base, world, folder):
    """An adapter for another action space, random as if trained, and its processor."""
    processor = world.processor.with_action_space(ARM)
    model = UnifiedModel.from_pretrained(base).eval()
    model.adopt(processor)
    wrapped = peft.get_peft_model(model, lora_config(model, rank=2))
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_((0.3 * torch.randn_like(parameter)).half())
    save_adapter(wrapped, processor, folder, base=base)
    return wrapped.eval(), processor


def test_an_adapter_brings_its_action_space_and_the_tokens_of_it(base, world, tmp_path):
    wrapped, processor = with_arm(base, world, tmp_path / "adapter")
    model = UnifiedModel.from_pretrained(tmp_path / "adapter")
    assert model.config.vocab_size == len(processor.tokenizer) > world.config().vocab_size
    assert model.config.longest_action == 2
    segments = [world.frame(np.random.default_rng(0)), action_segment([2, 1])]
    inputs = processor.encode([Sequence([text_segment("go", "task"), *segments])])
    inputs = {name: inputs[name] for name in ("input_ids", "latents")}
    found, expected = (outputs(m, inputs) for m in (model, wrapped))
    assert_same(found, expected, rtol=1e-5, atol=1e-5)
    again = UnifiedProcessor.from_pretrained(tmp_path / "adapter")
    assert again.config_fields() == processor.config_fields()
    prompt = again.encode([Sequence([text_segment("go", "task"), segments[0]])])
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        reply = model.generate(
            **prompt, query="policy", temperature=2.0, think=False, generator=generator
        )
        said = again.segments(reply.input_ids[0], reply.latents[0], model.config)[-1].action
        assert ARM.indices(said) in [[a, b] for a in range(3) for b in range(2)]


def test_adapters_of_different_action_spaces_take_turns(base, world, batch, tmp_path):
    with_arm(base, world, tmp_path / "arm")
    folder = saved(base, world, tmp_path / "mine")
    expected = outputs(UnifiedModel.from_pretrained(folder), batch)
    model = UnifiedModel.from_pretrained(base).eval()
    model.load_adapter(tmp_path / "arm", adapter_name="arm")
    assert model.config.longest_action == 2
    model.load_adapter(folder, adapter_name="mine")
    model.set_adapter("mine")
    assert model.config.longest_action == 1
    found = outputs(model, batch)
    size = world.config().vocab_size
    assert_same((found[0][..., :size], found[1]), expected, rtol=1e-5, atol=1e-5)
    model.set_adapter("arm")
    assert model.config.longest_action == 2


def test_a_model_adopts_no_processor_of_another_kind(base, world, other_codec):
    processor = UnifiedProcessor(
        tokenizer=world.processor.tokenizer,
        action_space=world.processor.action_space,
        latent_patch_size=2,
    )
    with pytest.raises(ValueError, match="latent_patch_size=2, the model 1"):
        UnifiedModel.from_pretrained(base).adopt(processor)


def test_latents_of_another_size_get_new_maps_and_leave_the_rest(base, world):
    config = {
        "_class_name": "AutoencoderTiny",
        "latent_channels": 5,
        "encoder_block_out_channels": [8] * 4,
        "decoder_block_out_channels": [8] * 4,
        "num_encoder_blocks": [0, 0, 0, 1],
        "num_decoder_blocks": [1, 0, 0, 0],
    }
    codec = FrameCodec.from_config({"patch_size": 8, "autoencoder": config})
    processor = world.processor.with_codec(codec)
    model = UnifiedModel.from_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.adopt(processor)
    changed = {n for n, t in model.state_dict().items() if not same_shape_and_values(t, before[n])}
    assert changed == {"latent_in.weight", "latent_head.weight", "latent_head.bias"}
    frame = np.zeros((16, 16, 3), np.uint8)
    inputs = processor.encode([Sequence([frame_segment(frame, outcome="ongoing")])])
    assert model(**inputs).prediction.shape[-1] == 5


def same_shape_and_values(one, other):
    return one.shape == other.shape and torch.equal(one, other)


def test_an_adapter_refuses_another_base_and_names_its_own(base, world, tmp_path):
    folder = saved(base, world, tmp_path / "adapter")
    with pytest.raises(ValueError, match="was trained on '.*base.*model'") as error:
        world.model(seed=5).load_adapter(folder)
    assert fingerprint(UnifiedModel.from_pretrained(base)) in str(error.value)


def test_a_base_that_changed_since_is_refused(base, world, tmp_path):
    other = tmp_path / "base"
    UnifiedModel.from_pretrained(base).save_pretrained(other)
    world.processor.save_pretrained(other)
    folder = saved(str(other), world, tmp_path / "adapter")
    world.model(seed=5).save_pretrained(other)
    with pytest.raises(ValueError, match="load that base"):
        UnifiedModel.from_pretrained(folder)


def test_a_fingerprint_is_of_the_base_alone_in_any_precision(base, world, tmp_path):
    model = UnifiedModel.from_pretrained(base)
    expected = fingerprint(model)
    assert fingerprint(adapted(base)) == expected
    assert fingerprint(UnifiedModel.from_pretrained(base, dtype=torch.bfloat16)) == expected
    assert fingerprint(world.model(seed=5)) != expected
    model.load_adapter(saved(base, world, tmp_path / "adapter"))
    assert fingerprint(model) == expected


def test_a_folder_of_pefts_own_loads_too(base, batch, tmp_path):
    wrapped = adapted(base)
    wrapped.save_pretrained(tmp_path / "adapter")
    found = UnifiedModel.from_pretrained(tmp_path / "adapter")
    assert_same(outputs(found, batch), outputs(wrapped, batch), rtol=1e-5, atol=1e-6)


def test_an_adapter_of_an_unknown_version_is_refused(base, world, tmp_path):
    folder = saved(base, world, tmp_path / "adapter")
    content = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps({**content, "format_version": 9}))
    with pytest.raises(ValueError, match="format version 9, this code reads 2"):
        AdapterInfo.read(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"preset": "all"}, "'all' is unknown; use one of agent"), ({"rank": 0}, "rank=0 must be")],
)
def test_options_that_make_no_adapter_are_refused(world, options, message):
    with pytest.raises(ValueError, match=message):
        lora_config(world.model(), **options)
