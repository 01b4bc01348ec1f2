"""Futures: frames that are drawn together are what a loop without cache draws."""

from dataclasses import replace

import pytest
import torch

from unified.conversation.sequence import Sequence, action_segment
from unified.model.plan import plan_stream
from unified.sampling.diffusion.guidance import Guidance
from unified.sampling.diffusion.schedules import noise_schedule, scheduling_matrix
from unified.sampling.futures import draw_frames, read_schedule
from unified.sampling.options import Options

ACTIONS = ("left", "forward", "right", "left")


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def turns_of(world, config, actions=ACTIONS):
    """Token ids before each frame."""
    turns = []
    for number, action in enumerate(actions):
        ids = world.processor.stream(Sequence([action_segment(action)])).input_ids.tolist()
        begin = [config.ongoing_token_id] if number else []
        turns.append(torch.tensor([*begin, *ids, config.frame_token_id]))
    return turns


def without_cache(model, prompt, turns, noise, matrix, is_bidirectional):
    """Euler steps over the whole conversation, computed anew for each."""
    config = model.config
    n, count = config.frame_tokens, len(turns)
    frame = torch.tensor([config.latent_token_id] * n + [config.frame_end_token_id])
    ids = [prompt["input_ids"][0]]
    for turn in turns:
        ids += [turn, frame]
    ids = torch.cat(ids)[None]
    first = prompt["input_ids"].shape[1] + len(turns[0])
    places = (ids[0] == config.latent_token_id).nonzero()[:, 0][-n * count :].view(count, n)
    latents = torch.zeros(*ids.shape, config.latent_size)
    latents[:, : prompt["input_ids"].shape[1]] = prompt["latents"]
    plan = plan_stream(ids, config)
    visible = plan.visible.clone()
    if is_bidirectional:
        visible[:, 2, 1, first:] = ids.shape[1]
    drawn = noise.clone()
    for now, then in zip(matrix[:-1], matrix[1:], strict=True):
        levels = torch.zeros(ids.shape)
        for frame_number in range(count):
            latents[0, places[frame_number]] = drawn[frame_number]
            levels[0, places[frame_number]] = now[frame_number]
        said = model(
            ids, latents, levels, position_ids=plan.position_ids, visible=visible, path=plan.path
        ).prediction[0]
        for frame_number in range(count):
            if now[frame_number] > then[frame_number]:
                ratio = then[frame_number] / now[frame_number]
                clean = said[places[frame_number]]
                drawn[frame_number] = ratio * drawn[frame_number] + (1 - ratio) * clean
    return drawn


@pytest.mark.parametrize("path_layer", [None, 1])
@pytest.mark.parametrize("schedule", ["full", "pyramid:lag=2", "bidirectional"])
@torch.no_grad()
def test_frames_drawn_together_are_those_of_a_loop_without_cache(world, schedule, path_layer):
    model = world.model(path_layer=path_layer, window_frames=9)
    config = model.config
    prompt = world.processor.encode([world.episode(2)])
    turns = turns_of(world, config)
    session = model.start(**prompt, generator=seeded(1))
    options = Options(num_inference_steps=3)
    found = draw_frames(session, [turns], options, read_schedule(schedule))[0]
    (generator,) = seeded(1)
    noise = torch.stack(
        [torch.randn(config.frame_tokens, config.latent_size, generator=generator) for _ in turns]
    )
    kind = schedule.partition(":")[0].replace("bidirectional", "full")
    matrix = scheduling_matrix(len(turns), noise_schedule(3), kind, lag=2)
    expected = without_cache(model, prompt, turns, noise, matrix, schedule == "bidirectional")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", ["autoregressive", "chunked:frames=1"])
@pytest.mark.parametrize("is_distilled", [False, True])
@torch.no_grad()
def test_one_after_another_is_one_frame_at_a_time(world, schedule, is_distilled):
    model = world.model(
        step_size_embedding=is_distilled, learned_steps=[2] * is_distilled, context_noise_level=0.1
    )
    if is_distilled:  # it listens to how far a step goes
        torch.nn.init.normal_(model.step_size_embedding.out.weight)
    config = model.config
    prompt = world.processor.encode([world.episode(2)])
    alone = model.start(**prompt, generator=seeded(1))
    turns, outcome = [], []
    for action in ACTIONS:
        stream = world.processor.stream(Sequence([action_segment(action)]))
        turns.append(torch.tensor([*outcome, *stream.input_ids.tolist(), config.frame_token_id]))
        alone.append([stream])
        alone.run("forward", num_inference_steps=2)
        outcome = [int(alone.last[0])]
    session = model.start(**prompt, generator=seeded(1))
    options = Options(num_inference_steps=2)
    found = draw_frames(session, [turns], options, read_schedule(schedule))
    session.extend(torch.tensor([outcome]), torch.tensor([1]))
    ids, latents = alone.history(0)
    expected = latents[ids == config.latent_token_id][-len(ACTIONS) * config.frame_tokens :]
    torch.testing.assert_close(found[0].flatten(0, 1), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(session.history(0)[0], ids)
    torch.testing.assert_close(session.logits, alone.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "dpm++2m-sde", "unipc"])
@torch.no_grad()
def test_rows_of_different_lengths_are_drawn_as_alone(world, solver):
    model = world.model()
    episodes = [world.episode(1), world.episode(3, seed=1, task=None)]
    turns = turns_of(world, model.config)
    shorter = [turns[0], *[turn[1:] for turn in turns[1:]]]
    options = Options(num_inference_steps=2, solver=solver)
    schedule = read_schedule("pyramid")
    session = model.start(**world.processor.encode(episodes), generator=seeded(1, 2))
    found = draw_frames(session, [turns, shorter], options, schedule)
    for row, own in enumerate((turns, shorter)):
        alone = model.start(**world.processor.encode([episodes[row]]), generator=seeded(1 + row))
        expected = draw_frames(alone, [own], options, schedule)[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(session.logits[row], alone.logits[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_frames_between_known_ones_are_drawn_and_those_stay(world):
    model = world.model(window_frames=9)
    config = model.config
    session = model.start(**world.processor.encode([world.episode(2)]), generator=seeded(1))
    start = session.fork()
    known = torch.full((1, 4, config.frame_tokens, config.latent_size), torch.nan)
    known[:, 3] = 0.5  # the goal
    options, schedule = Options(num_inference_steps=3), read_schedule("bidirectional")
    turns = [turns_of(world, config)]
    found = draw_frames(session, turns, options, schedule, known)
    torch.testing.assert_close(found[:, 3], known[:, 3])
    free = draw_frames(start, turns, replace(options), schedule)
    assert (found[:, 0] - free[:, 0]).abs().max() > 1e-3  # what leads there knows the goal


def test_schedules_that_mean_nothing_are_refused(world):
    for wrong, message in {
        "piramid": "did you mean 'pyramid'",
        "full:frames=2": "full has no settings",
        "chunked:frames=0": "must be a whole number from 1",
        "chunked:lag=2": "chunked has frames",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_schedule(wrong)
    model = world.model()
    session = model.start(**world.processor.encode([world.episode(1)]))
    with pytest.raises(ValueError, match="give each the same number"):
        draw_frames(session, [[]], Options(), read_schedule("full"))
    options, turns = Options(guidance_scale=Guidance(action=2.0)), [turns_of(world, model.config)]
    with pytest.raises(ValueError, match="guidance_scale is for single frames"):
        draw_frames(session, turns, options, read_schedule("full"))
