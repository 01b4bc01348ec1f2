"""The model: who influences whom, the two losses, and saving."""

import json
import math
import shutil
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from unified.configuration import UnifiedConfig
from unified.model.attention import dense_mask
from unified.model.flow import add_noise
from unified.model.plan import pack
from unified.modeling import UnifiedModel

KINDS = ["frame", "chunk", "sequence", "bidirectional"]


def perturbed_outputs(model, batch):
    """Logits and predictions with one token's embedding perturbed in each row, `(L, L, ...)`.

    The last row is not perturbed.
    """
    length = batch["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(1)
    push = torch.randn(length, model.config.hidden_size, generator=generator, dtype=torch.float64)
    rows = torch.arange(length)

    def perturb(_, arguments):
        hidden = arguments[0].clone()
        hidden[rows, rows] += push
        return (hidden, *arguments[1:])

    many = {name: value.expand(length + 1, *value.shape[1:]) for name, value in batch.items()}
    hook = model.model.layers[0].register_forward_pre_hook(perturb)
    with torch.no_grad():
        output = model(**many)
    hook.remove()
    return torch.cat([output.logits, output.prediction], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_perturbing_what_a_token_cannot_see_changes_nothing(world, kind):
    model = world.model(window_frames=2).double()
    config = model.config
    rows = [
        world.row(world.stream(2, thoughts=True), config, kind),
        world.row(world.stream(3, seed=1, task="go"), config, kind),
    ]
    batch = world.batch([pack(rows)], config)
    for name in ("latents", "noise", "noise_levels", "label_weights", "flow_weights"):
        batch[name] = batch[name].double()
    outputs = perturbed_outputs(model, batch)
    moved = (outputs[:-1] - outputs[-1]).abs().amax(-1).T > 1e-12  # query, perturbed key
    sees = dense_mask(batch["visible"], len(moved))[0, 0]
    is_action = torch.isin(batch["input_ids"][0], torch.arange(*config.action_token_ids))
    is_placed = dense_mask(batch["path"], len(moved))[0, 0] & is_action
    # A layer, then the actions' motions place the tokens, then another layer.
    places = is_placed.int() @ sees.int() > 0
    reaches = sees.int() @ (sees | places).int() > 0
    assert not (moved & ~reaches).any()
    assert moved[sees | places].all()


def inputs_of(world, config, kind="frame"):
    rows = [
        world.row(world.stream(2, seed=2, thoughts=True), config, kind, seed=2),
        world.row(world.stream(3, seed=3), config, kind, seed=3),
        world.row(world.stream(1, seed=4), config, kind, seed=4),
    ]
    return rows, world.batch([pack(rows)], config)


def test_packed_documents_give_what_they_give_apart(world, tiny_model):
    rows, packed = inputs_of(world, tiny_model.config)
    together = tiny_model(**packed)
    token = flow = tokens = flows = 0.0
    offset = 0
    for row in rows:
        here = slice(offset, offset + len(row))
        alone = world.batch([row], tiny_model.config)
        alone["noise"] = packed["noise"][:, here]
        output = tiny_model(**alone)
        for name in ("logits", "prediction", "flow_error"):
            torch.testing.assert_close(
                getattr(together, name)[:, here], getattr(output, name), rtol=1e-4, atol=1e-5
            )
        count, area = float(row.label_weights.sum()), float(row.flow_weights.sum())
        token, tokens = token + output.token_loss.item() * count, tokens + count
        flow, flows = flow + output.flow_loss.item() * area, flows + area
        offset += len(row)
    assert together.token_loss.item() == pytest.approx(token / tokens, rel=1e-5)
    assert together.flow_loss.item() == pytest.approx(flow / flows, rel=1e-5)


def test_padding_changes_nothing(world, tiny_model):
    row = world.row(world.stream(2), tiny_model.config)
    short = world.batch([row], tiny_model.config)
    long = world.batch([row], tiny_model.config, len(row) + 9)
    long["noise"][:, : len(row)] = short["noise"]
    one, other = tiny_model(**short), tiny_model(**long)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.logits, other.logits[:, : len(row)], rtol=1e-4, atol=1e-5)


def test_the_losses_are_what_one_computes_by_hand_on_three_positions(world):
    model = world.model(token_loss_weight=2.0, flow_loss_weight=3.0, flow_loss_weighting="ramp")
    config = model.config
    ids = torch.tensor([[5, config.latent_token_id, 9]])
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, 3, config.latent_size, generator=generator)
    levels = torch.tensor([[0.0, 0.75, 0.0]])
    output = model(
        input_ids=ids,
        latents=latents,
        noise=noise,
        noise_levels=levels,
        position_ids=torch.arange(3).expand(1, 3, 3),
        visible=torch.tensor([[[[0, 0, 0], [1, 2, 3]], [[0] * 3] * 2, [[0] * 3] * 2]]).int(),
        path=torch.zeros(1, 2, 2, 3, dtype=torch.int32),
        labels=torch.tensor([[7, -100, 8]]),
        label_weights=torch.tensor([[1.0, 0.0, 0.5]]),
        flow_weights=torch.tensor([[0.0, 2.0, 0.0]]),
    )
    logs = output.logits.log_softmax(-1)[0]
    token = -(1.0 * logs[0, 7] + 0.5 * logs[2, 8]) / 1.5
    error = ((output.prediction[0, 1] - latents[0, 1]) ** 2).mean()
    flow = error * (0.9 * 0.25 + 0.1) * 2.0 / 2.0
    torch.testing.assert_close(output.token_loss, token)
    torch.testing.assert_close(output.flow_loss, flow)
    torch.testing.assert_close(output.loss, 2 * token + 3 * flow)


def test_the_motion_loss_is_over_what_was_measured_alone(world):
    model = world.model(motion_loss_weight=3.0)
    first = model.config.action_token_ids[0]
    ids = torch.tensor([[first, 5, first + 1, first + 2]])
    motions = torch.full((1, 4, 3), torch.nan)
    motions[0, 0], motions[0, 2] = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]])
    predicted = []
    hook = model.path.register_forward_hook(
        lambda module, given, result: predicted.append(given[0][0])
    )
    output = model(input_ids=ids, motions=motions)
    hook.remove()
    error = (predicted[0] - motions[0])[[0, 2]].square().sum() / 2
    torch.testing.assert_close(output.motion_loss, error)
    torch.testing.assert_close(output.loss, 3 * error)
    unmeasured = model(input_ids=ids, motions=torch.full((1, 4, 3), torch.nan))
    assert unmeasured.motion_loss == 0


def test_the_model_sees_noised_latents_and_is_told_their_level(world, tiny_model):
    row = world.row(world.stream(2), tiny_model.config)
    batch = world.batch([row], tiny_model.config)
    noised = add_noise(batch["latents"], batch["noise"], batch["noise_levels"][..., None])
    names = ("input_ids", "position_ids", "visible", "path", "noise_levels")
    plan = {name: batch[name] for name in names}
    expected = tiny_model(**plan, latents=noised)
    assert torch.equal(tiny_model(**batch).prediction, expected.prediction)
    half_noised = tiny_model(**{**plan, "noise_levels": 0.5 * plan["noise_levels"]}, latents=noised)
    assert not torch.allclose(half_noised.prediction, expected.prediction)


def test_a_segment_without_weight_has_no_gradient_at_all(world):
    model = world.model(tie_word_embeddings=False)
    config = model.config
    stream = world.stream(3)
    weights = torch.zeros_like(stream.weights)
    frame_weights = torch.tensor([0.0, 1.0, 0.0])  # only the second frame is learned
    row = world.row(replace(stream, weights=weights, frame_weights=frame_weights), config)
    batch = world.batch([row], config)
    is_latent = batch["input_ids"][0] == config.latent_token_id
    noise = batch["noise"].requires_grad_()
    model(**batch).loss.backward()
    assert model.lm_head.weight.grad is None or not model.lm_head.weight.grad.any()
    touched = noise.grad[0].abs().sum(-1) > 0
    n = config.frame_tokens
    spans = is_latent.nonzero()[-3 * n :, 0]
    assert touched[spans[n : 2 * n]].all()
    touched[spans[n : 2 * n]] = False
    assert not touched.any()
    assert model.latent_head.weight.grad.any()


def test_a_label_without_weight_has_no_gradient_and_the_others_keep_theirs(world, tiny_model):
    stream = world.stream(2, task=None)
    place = int((stream.input_ids == tiny_model.config.action_token_id).nonzero())
    gradients = []
    for weight in (0.0, 1.0):
        weights = stream.weights.clone()
        weights[place + 1] = weight
        row = world.row(replace(stream, weights=weights), tiny_model.config)
        output = tiny_model(**world.batch([row], tiny_model.config))
        (gradient,) = torch.autograd.grad(output.token_loss, output.logits)
        gradients.append(gradient[0] * row.label_weights.sum())
    assert not gradients[0][place].any()
    assert gradients[1][place, stream.targets[place + 1]] < 0
    gradients[1][place] = 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_peft_hears_whether_activations_are_computed_anew(world):
    model = world.model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not model.is_gradient_checkpointing
        model.activation_checkpointing_enable()
        assert model.is_gradient_checkpointing


def test_gradient_checkpointing_changes_no_gradient(world):
    gradients = []
    for checkpoints in (False, True):
        model = world.model().train()
        if checkpoints:
            model.activation_checkpointing_enable()
        _, batch = inputs_of(world, model.config)
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("changes", [{}, {"modality_experts": True, "num_key_value_heads": 1}])
def test_a_tiny_model_overfits_one_batch(world, changes):
    model = world.model(**changes, initializer_range=0.1).train()
    row = world.row(world.stream(3, thoughts=True), model.config)
    batch = world.batch([row], model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        output = model(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append((output.token_loss.item(), output.flow_loss.item()))
    assert losses[-1][0] < 0.05 * losses[0][0]
    assert losses[-1][1] < 0.1 * losses[0][1]


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    return folder


def test_a_saved_model_comes_back_bit_for_bit(world, tiny_model, saved):
    loaded = UnifiedModel.from_pretrained(saved).eval()
    states, expected = loaded.state_dict(), tiny_model.state_dict()
    assert states.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(states[name], tensor), name
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.config.to_dict() | {"_name_or_path": ""} == tiny_model.config.to_dict() | {
        "_name_or_path": "",
    }
    _, batch = inputs_of(world, tiny_model.config)
    assert torch.equal(loaded(**batch).loss, tiny_model(**batch).loss)
    assert [path.suffix for path in saved.iterdir() if "model" in path.name] == [".safetensors"]


def test_the_auto_classes_load_our_checkpoint(saved):
    assert type(AutoModel.from_pretrained(saved)) is UnifiedModel
    assert type(AutoModelForCausalLM.from_pretrained(saved)) is UnifiedModel


def test_half_precision_weights_are_computed_in_float32_unless_asked(tiny_model, tmp_path):
    half = UnifiedModel(tiny_model.config).half()
    half.save_pretrained(tmp_path)
    assert UnifiedModel.from_pretrained(tmp_path).dtype == torch.float32
    assert UnifiedModel.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give a folder with config.json"):
        UnifiedModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="an embedded name such as 'babyai'"):
        UnifiedModel.from_pretrained(tmp_path / "nowhere")


def test_a_checkpoint_without_config_is_refused(saved, tmp_path):
    shutil.copy(saved / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="give a folder with config.json"):
        UnifiedModel.from_pretrained(tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    tensors = load_file(saved / "model.safetensors")
    del tensors["latent_head.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks latent_head.bias; copy it again"):
        UnifiedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 1000, 20000])
def test_truncated_weights_are_refused(saved, tmp_path, kept):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"corrupt .* copy (them|the checkpoint) again"):
        UnifiedModel.from_pretrained(tmp_path)


def test_a_broken_config_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for text in ('{"model_type": "uni', '{"model_type": "unified", "prediction_type": "v"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="cannot load a model"):
            UnifiedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (None, "holds list and no object of fields; copy the checkpoint again"),
        ({"latent_grid": [7]}, "latent_grid=.* must be two whole numbers|latent_grid"),
        ({"latent_grid": [-2, 2]}, r"latent_grid=\[-2, 2\] must be two whole numbers"),
        ({"num_hidden_layers": 1_000_000}, "exceeds 1000; is config.json that of this"),
        ({"hidden_size": "wide"}, "cannot load a model"),
        ({"rms_norm_eps": 1e300}, r"rms_norm_eps=1e\+300 must be from 0 to 1"),
        ({"action_token_ids": [525, 999]}, r"action_token_ids=\[525, 999\] is no range of the voc"),
        ({"action_token_ids": [511, 532]}, r"text_token_ids=.* action_token_ids=.* overlap"),
        ({"ongoing_token_id": 515}, "ongoing_token_id=515 is agent_token_id already"),
        ({"task_token_id": 532999}, "task_token_id=532999 lies outside of the vocabulary"),
        ({"world_token_id": 3}, "world_token_id=3 is text_token_ids already"),
        ({"action_formats": [[[0, 5]]]}, r"action_formats has \[0, 5\], which is no range within"),
    ],
)
def test_a_config_of_nonsense_is_refused_before_anything_is_built(saved, tmp_path, changes, words):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "config.json"
    content = [] if changes is None else {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        UnifiedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_weights_of_whole_numbers_are_refused(saved, tmp_path, dtype):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    tensors = load_file(saved / "model.safetensors")
    tensors["latent_head.bias"] = tensors["latent_head.bias"].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tensor latent_head.bias in .* without quantisation"):
        UnifiedModel.from_pretrained(tmp_path)


def test_torch_dtype_means_dtype(saved):
    for options in ({"torch_dtype": torch.bfloat16}, {"dtype": torch.bfloat16}):
        assert UnifiedModel.from_pretrained(saved, **options).dtype == torch.bfloat16
    assert UnifiedModel.from_pretrained(saved).dtype == torch.float32
    with pytest.raises(ValueError, match="dtype=torch.float16 and torch_dtype=torch.bfloat16"):
        UnifiedModel.from_pretrained(saved, dtype=torch.float16, torch_dtype=torch.bfloat16)


def test_half_a_plan_is_refused(world, tiny_model):
    batch = world.batch([world.row(world.stream(1), tiny_model.config)], tiny_model.config)
    del batch["path"]
    with pytest.raises(ValueError, match="belong together"):
        tiny_model(**batch)


def test_configs_that_contradict_themselves_are_refused():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "choose a divisor"),
        ({"head_dim": 7}, "must be an even number"),
        ({"window_frames": 0}, "window_frames=0 must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 must be at least 1"),
        ({"hidden_size": -8}, "hidden_size=-8 must be at least 1"),
        ({"latent_patch_size": 0}, "latent_patch_size=0 must be at least 1"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers=1000000 exceeds 1000"),
        ({"latent_grid": [7]}, r"latent_grid=\[7\] must be two whole numbers of at least 1"),
        ({"latent_grid": [7, -7]}, r"latent_grid=\[7, -7\] must be two whole numbers"),
        ({"latent_grid": [0, 7]}, r"latent_grid=\[0, 7\] must be two whole numbers"),
        ({"action_token_ids": [525]}, r"action_token_ids=\[525\] must be two whole numbers"),
        ({"path_layer": 6}, "choose 0 to 5, or None"),
        ({"path_lattice": [4]}, r"path_lattice=\[4\] must be turns of a circle and a length"),
        ({"path_lattice": [0, 1.0]}, r"both above 0, such as \(4, 1.0\); or None"),
        ({"memory": "attic"}, "memory='attic' is unknown"),
        ({"path_lattice": [math.nan, 1.0]}, r"both above 0, such as \(4, 1.0\); or None"),
        ({"rope_theta": -1.0}, r"rope_theta=-1.0 must be from 1 to 1e\+12"),
        ({"rope_theta": math.nan}, r"rope_theta=nan must be from 1"),
        ({"partial_rotary_factor": math.nan}, "partial_rotary_factor=nan must be from 0 to 1"),
        ({"context_noise_level": math.nan}, "context_noise_level=nan must be from 0 to 1"),
        ({"context_noise_level": 2.0}, "context_noise_level=2.0 must be from 0 to 1"),
        ({"initializer_range": -1.0}, "initializer_range=-1.0 must be from 0"),
        ({"flow_loss_weight": math.inf}, "flow_loss_weight=inf must be from 0"),
        ({"action_formats": [[[525]]]}, r"action_formats has \[525\], which are not two ids"),
    ]
    for changes, words in cases:
        with pytest.raises(ValueError, match=words):
            UnifiedConfig(**changes)
