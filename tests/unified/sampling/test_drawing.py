"""Drawing a frame: compiled, with spare slots, and without a wait for the host."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tests.unified.parts import babyai_parts, random_frames
from unified.conversation.sequence import Sequence, action_segment
from unified.model.cache import KVCache
from unified.model.plan import StreamState, plan_stream
from unified.sampling.diffusion.schedules import noise_schedule
from unified.sampling.diffusion.solvers import SOLVERS
from unified.sampling.drawing import FrameInputs, draw_frame


def frame_inputs(config, num_cached, num_queued):
    """A first frame to draw after `num_cached` words that need not be there, and some told now."""
    n = config.frame_tokens
    ids = torch.full((2, num_queued + n + 1), config.latent_token_id)
    ids[:, :num_queued] = config.action_token_ids[0]
    ids[:, -1] = config.frame_end_token_id
    state = replace(StreamState.fresh(2), length=torch.tensor([num_cached, 1]))
    plan = plan_stream(ids, config, state, num_cached=num_cached)
    return FrameInputs(
        input_ids=ids,
        position_ids=plan.position_ids,
        visible=plan.visible,
        path=plan.path,
        slots=state.length[:, None] + torch.arange(num_queued + n + 1),
        noise=torch.randn(2, n, config.latent_size),
        schedule=noise_schedule(3),
        fresh_noise=torch.randn(3, 2, n, config.latent_size),
        known=torch.full((2, n, config.latent_size), torch.nan),
        scales=torch.ones(0),
    )


def cache_of(config, device="cpu"):
    return KVCache(
        config.num_hidden_layers, 2, config.num_key_value_heads, config.head_dim, device=device
    )


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("path_layer", [None, 1])
@pytest.mark.parametrize("num_queued", [0, 2])
def test_drawing_never_waits_for_the_host(world, solver, path_layer, num_queued, monkeypatch):
    # Tensors without data refuse to tell a number, and no number of the host's is made a tensor.
    model = world.model(path_layer=path_layer).to("meta")
    inputs = frame_inputs(model.config, 3, num_queued).to(torch.device("meta"))
    cache = cache_of(model.config, "meta")
    monkeypatch.setattr(torch, "tensor", None)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    latents, logits = draw_frame(model, cache, inputs, 3, solver)
    assert latents.shape == inputs.noise.shape
    assert logits.shape == (2, model.config.vocab_size)


def play(model, world, num_frames=9, **options):
    """Two worlds of different lengths, some frames each."""
    episodes = [world.episode(1), world.episode(3, seed=1, task=None)]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    session = model.start(**world.processor.encode(episodes), generator=generators, **options)
    action = world.processor.stream(Sequence([action_segment("left")]))
    for _ in range(num_frames):
        session.append([action] * 2)
        session.run("forward", num_inference_steps=2)
    return session


def assert_same_worlds(found, expected):
    for row in range(2):
        for mine, theirs in zip(found.history(row), expected.history(row), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("step", [16, 64])
def test_spare_slots_behind_what_is_cached_change_nothing(world, step, monkeypatch):
    model = world.model(window_frames=2)
    expected = play(model, world)
    start = type(expected).__init__

    def widened(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self._slot_step = step

    monkeypatch.setattr(type(expected), "__init__", widened)
    found = play(model, world)
    assert found.evictions > 0
    assert_same_worlds(found, expected)


@pytest.mark.parametrize("path_layer", [None, 1])
def test_what_joins_the_first_pass_is_what_a_pass_of_its_own_commits(
    world, path_layer, monkeypatch
):
    model = world.model(window_frames=2, path_layer=path_layer)
    found = play(model, world)
    monkeypatch.setattr("unified.sampling.generation.MAX_QUEUED", 0)
    assert_same_worlds(found, play(model, world))


@pytest.mark.slow
def test_compiled_code_draws_the_same_frames(world):
    model = world.model(window_frames=2)
    assert_same_worlds(play(model, world, 3, compiled=True), play(model, world, 3))


@pytest.mark.slow
def test_a_compiled_world_shows_the_same_frames():
    pytest.importorskip("gymnasium")
    from unified.roles.world import WorldEnv

    model, processor = babyai_parts()
    worlds = [
        WorldEnv(model, processor, frame=random_frames(1)[0], task="go", compiled=compiled)
        for compiled in (False, True)
    ]
    for world in worlds:
        world.reset(seed=0)
    plain, compiled = (world.step(1)[0].astype(int) for world in worlds)
    assert abs(plain - compiled).max() <= 1


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_and_gradients(world):
    model = world.model()
    batch = world.batch([world.row(world.stream(2), model.config)], model.config)

    def result(is_compiled):
        model.is_compiled = is_compiled
        loss = model(**batch).loss
        return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]

    for found, expected in zip(result(True), result(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("num_frames", [3, 12])
def test_a_cuda_graph_draws_the_same_frames(world, num_frames):
    model = world.model(window_frames=2).cuda()
    expected = play(model, world, num_frames)
    assert_same_worlds(play(model, world, num_frames, compiled=True), expected)
