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
    RMSNorm,
    rotary_embedding,
    rotate,
)
from unified.modeling import UnifiedModel
from unified.plan import plan_stream

LENGTH = 11


@pytest.fixture(scope="module")
def text_config(world):
    return world.config(qk_norm=False, num_attention_heads=4, num_key_value_heads=2, head_dim=8)


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
    torch.testing.assert_close(ours(hidden, rotary, mask), expected, rtol=1e-5, atol=1e-6)


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
