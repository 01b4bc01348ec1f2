"""Our layers are Llama's, where only text is concerned."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from unified.model.attention import make_mask
from unified.model.layers import (
    DecoderLayer,
    NoiseLevelEmbedding,
    PathIntegration,
    RMSNorm,
    expert_pair,
    modality_linear,
    place_angles,
    position_angles,
    rotary_embedding,
    rotate,
    turn_by,
)
from unified.model.plan import plan_stream
from unified.modeling import UnifiedModel

LENGTH = 11


@pytest.fixture(scope="module")
def text_config(world):
    return world.config(
        qk_norm=False,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        partial_rotary_factor=1.0,
        path_layer=None,
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
    rotary = rotary_embedding(position_angles(plan.position_ids, 8, text_config.rope_theta))
    places = torch.arange(LENGTH)[None]
    their_rotary = LlamaRotaryEmbedding(llama_config)(hidden, places)
    expected = theirs(hidden, position_embeddings=their_rotary, attention_mask=mask)
    found = ours(hidden, rotary, mask)
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
        rotary = rotary_embedding(position_angles(places + shift, 8, 100.0))
        return rotate(query, rotary) @ rotate(key, rotary).transpose(-1, -2)

    shift = torch.tensor([7, 30, 2])[:, None]
    torch.testing.assert_close(scores(shift), scores(0), rtol=1e-4, atol=1e-5)


def test_dimensions_beyond_the_rotary_share_are_left_alone():
    states = torch.randn(1, 2, 5, 8)
    rotary = rotary_embedding(position_angles(torch.randint(1, 40, (1, 3, 5)), 4, 100.0))
    turned = rotate(states, rotary)
    assert torch.equal(turned[..., 4:], states[..., 4:])
    assert not torch.isclose(turned[..., :4], states[..., :4]).all()


def integrator(world, motions: dict[int, tuple[float, float, float]], **changes):
    """A path integration in which hidden state e_i makes motion i."""
    module = PathIntegration(world.config(**changes))
    torch.nn.init.zeros_(module.motions)
    torch.nn.init.zeros_(module.choice.weight)
    for i, motion in motions.items():
        module.motions.data[i] = torch.tensor(motion)
        module.choice.weight.data[i, i] = 100.0
    return module


def as_hidden(choices: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([choices]), 32).float()


LEFT, RIGHT, FORWARD = range(3)
MOTIONS = {
    LEFT: (-torch.pi / 2, 0.0, 0.0),
    RIGHT: (torch.pi / 2, 0.0, 0.0),
    FORWARD: (0.0, 1.0, 0.0),
}


def test_every_cell_keeps_its_place_on_a_walk_through_the_world(world):
    rng = torch.Generator().manual_seed(0)
    choices = torch.randint(0, 3, (12,), generator=rng).tolist()
    module = integrator(world, MOTIONS, latent_grid=(3, 5), path_origin=(2, 2))
    # One token of a frame after each action, anywhere in the view.
    row, column = torch.randint(0, 3, (12,)), torch.randint(0, 5, (12,))
    is_action = torch.tensor([True, False] * 12)[None, :, None]
    hidden = as_hidden([choice for action in choices for choice in (action, LEFT)])
    positions = torch.zeros(1, 3, 24, dtype=torch.int64)
    positions[0, 1, 1::2], positions[0, 2, 1::2] = row, column
    path = torch.zeros(1, 2, 2, 24, dtype=torch.int32)
    path[:, 1, 1] = torch.arange(1, 25)
    motions = module.motions_of(hidden)
    place = module(motions * is_action, path, positions, ~is_action)
    x, y, heading = 0, 0, 0  # ahead is +x at first, right is +y
    ahead_of = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    for step, action in enumerate(choices):
        heading = (heading + {LEFT: -1, RIGHT: 1, FORWARD: 0}[action]) % 4
        if action == FORWARD:
            x, y = x + ahead_of[heading][0], y + ahead_of[heading][1]
        (ax, ay), (rx, ry) = ahead_of[heading], ahead_of[(heading + 1) % 4]
        ahead, right = 2 - int(row[step]), int(column[step]) - 2
        expected = torch.tensor([x + ahead * ax + right * rx, y + ahead * ay + right * ry])
        torch.testing.assert_close(
            place[0, 2 * step + 1], expected.float(), rtol=0, atol=1e-4, msg=f"step {step}"
        )
    torch.testing.assert_close(motions[0, 0], torch.tensor(MOTIONS[choices[0]]), atol=1e-4, rtol=0)


def test_a_path_counts_two_intervals_and_actions_alone(world):
    module = integrator(world, MOTIONS)
    hidden = as_hidden([FORWARD, RIGHT, FORWARD, FORWARD, FORWARD])
    is_action = torch.tensor([1, 1, 0, 1, 0]).bool()[None, :, None]
    path = torch.zeros(1, 2, 2, 5, dtype=torch.int32)
    path[0, :, :, 3] = torch.tensor([[0, 2], [3, 4]])
    path[0, :, :, 4] = torch.tensor([[0, 1], [3, 5]])  # has not turned, but token 3 had
    positions = torch.zeros(1, 3, 5, dtype=torch.int64)
    positions[0, 1] = 1  # at the origin of the view: row 1, column 0
    place = module(module.motions_of(hidden) * is_action, path, positions, ~is_action)
    expected = torch.tensor([[0.0, 0], [0, 0], [0, 0], [1, 1], [1, 1]])
    torch.testing.assert_close(place[0], expected, rtol=0, atol=1e-4)


def test_on_a_lattice_a_path_of_motions_that_are_off_is_exact_and_they_still_learn(world):
    motions = {LEFT: (-1.5, 0.1, 0.0), RIGHT: (1.6, 0.0, -0.2), FORWARD: (0.02, 0.9, 0.03)}
    module = integrator(world, motions, path_lattice=(4, 1.0))
    choices = [FORWARD, FORWARD, RIGHT, FORWARD] * 250  # laps of a square of two by two
    made = module.motions_of(as_hidden(choices))
    path = torch.zeros(1, 2, 2, len(choices), dtype=torch.int32)
    path[:, 1, 1] = torch.arange(1, len(choices) + 1)
    positions = torch.zeros(1, 3, len(choices), dtype=torch.int64)
    is_latent = torch.zeros(1, len(choices), 1, dtype=torch.bool)
    place = module(made, path, positions, is_latent)
    lap = torch.tensor(
        [[1.0, 0], [2, 0], [2, 0], [2, 1], [2, 2], [2, 3], [2, 3], [1, 3]]
        + [[0, 3], [-1, 3], [-1, 3], [-1, 2], [-1, 1], [-1, 0], [-1, 0], [0, 0]]
    )
    torch.testing.assert_close(place[0, :16], lap, rtol=0, atol=1e-4)
    torch.testing.assert_close(place[0, 976:992], lap, rtol=0, atol=1e-3)
    place.sum().backward()
    assert module.motions.grad is not None
    assert bool(module.motions.grad.abs().sum() > 0)


def test_scores_by_place_are_greatest_at_the_same_place_and_depend_on_offsets_alone():
    state = torch.randn(1, 1, 1, 12).expand(1, 1, 49, 12)
    grid = torch.cartesian_prod(torch.arange(7), torch.arange(7)).float()[None]

    def scores(shift: float) -> torch.Tensor:
        states = rotate(state, rotary_embedding(place_angles(grid + shift, 6)))
        return (states @ states.mT)[0, 0]

    torch.testing.assert_close(scores(2.5), scores(0.0), rtol=1e-4, atol=1e-4)
    assert torch.equal(scores(0.0).argmax(1), torch.arange(49))


def test_vectors_are_turned_to_the_right():
    ahead, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(turn_by(torch.tensor([torch.pi / 2]), ahead), right)
    torch.testing.assert_close(turn_by(torch.tensor([torch.pi / 2]), right), -ahead)


def test_modality_experts_route_latents_to_their_own_weights():
    linear, latent = expert_pair(4, 3, bias=True, experts=True)
    assert latent is not None
    hidden = torch.randn(2, 5, 4)
    is_latent = torch.rand(2, 5, 1) < 0.5
    expected = torch.where(is_latent, latent(hidden), linear(hidden))
    assert torch.equal(modality_linear(linear, latent, hidden, is_latent), expected)
    assert torch.equal(modality_linear(linear, latent, hidden, None), linear(hidden))


def test_noise_levels_are_told_apart():
    embedding = NoiseLevelEmbedding(32)
    embedded = embedding(torch.tensor([[0.0, 0.1, 0.5, 0.9, 1.0]]))[0]
    distances = torch.cdist(embedded, embedded) + torch.eye(5)
    assert distances.min() > 1e-3
