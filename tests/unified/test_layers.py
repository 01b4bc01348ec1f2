"""Our layers are Llama's, where only text is concerned."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from unified.attention import make_mask
from unified.layers import (
    DecoderLayer,
    ModalityLinear,
    NoiseLevelEmbedding,
    PathIntegration,
    RMSNorm,
    rotary_embedding,
    rotate,
)
from unified.modeling import UnifiedModel
from unified.plan import plan_stream

LENGTH = 11


@pytest.fixture(scope="module")
def text_config(world):
    return world.config(
        qk_norm=False,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        partial_rotary_factor=1.0,
        path_integration=False,
    )


@pytest.fixture(scope="module")
def llama_config(text_config):
    config = LlamaConfig(
        vocab_size=text_config.vocab_size,
        hidden_size=text_config.hidden_size,
        intermediate_size=text_config.intermediate_size,
        num_hidden_layers=text_config.num_hidden_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=text_config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": text_config.rope_theta},
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    return config


@pytest.fixture
def words():
    return torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def test_our_decoder_layer_is_llamas(text_config, llama_config, words):
    theirs = LlamaDecoderLayer(llama_config, 0).eval()
    ours = DecoderLayer(text_config, 0).eval()
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(2, LENGTH, 32)
    plan = plan_stream(words, text_config)
    mask = make_mask("sdpa", plan.visible, LENGTH)
    rotary = rotary_embedding(plan.position_ids, 8, text_config.rope_theta)
    places = torch.arange(LENGTH)[None]
    their_rotary = LlamaRotaryEmbedding(llama_config)(hidden, places)
    expected = theirs(hidden, position_embeddings=their_rotary, attention_mask=mask)
    neither = torch.zeros(2, LENGTH, 1, dtype=torch.bool)
    found = ours(hidden, rotary, mask, plan.path, neither, neither)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_whole_llama_gives_the_same_logits_with_its_weights_in_our_model(
    text_config, llama_config, words
):
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(llama_config).eval()
    ours = UnifiedModel(text_config).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {
        "latent_in",
        "latent_head",
        "latent_position",
        "noise_level_embedding",
    }
    with torch.no_grad():
        torch.testing.assert_close(ours(words).logits, theirs(words).logits, rtol=1e-4, atol=1e-5)


def test_our_norm_is_llamas():
    ours, theirs = RMSNorm(16, 1e-6), LlamaRMSNorm(16, 1e-6)
    hidden = 3 * torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(hidden), theirs(hidden))


def test_rotary_scores_depend_on_offsets_alone():
    query, key = torch.randn(2, 1, 2, 5, 8, dtype=torch.float64)
    places = torch.randint(0, 40, (1, 3, 5))

    def scores(shift):
        rotary = rotary_embedding(places + shift, 8, 100.0)
        return rotate(query, rotary) @ rotate(key, rotary).transpose(-1, -2)

    shift = torch.tensor([7, 30, 2])[:, None]
    torch.testing.assert_close(scores(shift), scores(0), rtol=1e-4, atol=1e-5)


def test_dimensions_beyond_the_rotary_share_are_left_alone():
    states = torch.randn(1, 2, 5, 8)
    rotary = rotary_embedding(torch.randint(1, 40, (1, 3, 5)), 4, 100.0)
    turned = rotate(states, rotary)
    assert torch.equal(turned[..., 4:], states[..., 4:])
    assert not torch.isclose(turned[..., :4], states[..., :4]).all()


def test_path_angles_turn_the_other_dimensions_of_all_heads_of_a_group():
    states = torch.randn(1, 4, 5, 8)
    rotary = rotary_embedding(torch.zeros(1, 3, 5, dtype=torch.int64), 4, 100.0)
    angles = torch.randn(1, 5, 4)  # two key heads, two pairs each
    pairs, turned = (
        torch.view_as_complex(s[..., 4:].unflatten(-1, (2, 2)).mT.contiguous())
        for s in (states, rotate(states, rotary, angles))
    )
    for head in range(4):
        by = torch.polar(torch.ones(()), angles[0, :, 2 * (head // 2) : 2 * (head // 2) + 2])
        torch.testing.assert_close(turned[0, head], pairs[0, head] * by)


def test_a_path_is_the_sum_of_what_its_actions_turn(world):
    module = PathIntegration(world.config(), 0)
    torch.nn.init.normal_(module.step_weight)
    torch.nn.init.normal_(module.out_weight)
    hidden = torch.randn(2, 6, 32)
    is_action = torch.tensor([1, 0, 1, 1, 0, 1]).bool()[None, :, None].expand(2, -1, -1)
    stop = torch.tensor([1, 2, 3, 4, 5, 6]).expand(2, 1, -1)
    path = torch.stack([torch.zeros_like(stop), stop], 2).expand(2, 2, 2, -1).clone()
    path[:, 0] = 0
    path[:, 1, 0, 4:] = 2  # another document
    place, angles = module(hidden, path, is_action)
    turns = hidden @ module.step_weight.T
    expected = [
        turns[:, [i for i in ([0], [0], [0, 2], [0, 2, 3], [2, 3], [2, 3, 5])[token]]].sum(1)
        for token in range(6)
    ]
    torch.testing.assert_close(angles, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
    told = torch.cat([angles.cos() - 1, angles.sin()], -1) @ module.out_weight.T
    torch.testing.assert_close(place, told, rtol=1e-4, atol=1e-5)


def test_four_quarter_turns_lead_back_to_where_nothing_was_done(world):
    module = PathIntegration(world.config(), 0)
    torch.nn.init.ones_(module.out_weight)
    module.step_weight.data.zero_()[:, 0] = torch.pi / 2
    hidden = torch.zeros(1, 5, 32)
    hidden[..., 0] = 1
    path = torch.zeros(1, 2, 2, 5, dtype=torch.int32)
    path[:, 1, 1] = torch.arange(5)
    place, _ = module(hidden, path, torch.ones(1, 5, 1, dtype=torch.bool))
    assert place[0, 0].abs().max() == 0
    assert place[0, 2].abs().min() > 1
    torch.testing.assert_close(place[0, 4], place[0, 0], rtol=0, atol=1e-4)


def test_modality_experts_route_latents_to_their_own_weights():
    layer = ModalityLinear(4, 3, bias=True, experts=True)
    assert layer.latent is not None
    hidden = torch.randn(2, 5, 4)
    is_latent = torch.rand(2, 5, 1) < 0.5
    words = torch.nn.functional.linear(hidden, layer.weight, layer.bias)
    expected = torch.where(is_latent, layer.latent(hidden), words)
    assert torch.equal(layer(hidden, is_latent), expected)
    assert torch.equal(layer(hidden), words)


def test_noise_levels_are_told_apart():
    embedding = NoiseLevelEmbedding(32)
    told = embedding(torch.tensor([[0.0, 0.1, 0.5, 0.9, 1.0]]))[0]
    distances = torch.cdist(told, told) + torch.eye(5)
    assert distances.min() > 1e-3
