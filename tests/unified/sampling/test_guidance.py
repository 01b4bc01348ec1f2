"""Guidance: what a frame is without its words, action or history, and how often each is taken."""

import numpy as np
import pytest
import torch

from tests.unified.parts import random_frames
from unified.conversation.inpainting import known_latents
from unified.conversation.sequence import Sequence, action_segment, text_segment
from unified.sampling.diffusion.guidance import Guidance, read_guidance
from unified.sampling.options import Options


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(model, world, turns, **options):
    """Latents of the next frame, by one denoise step, so that guidance is a plain sum."""
    inputs = world.processor.encode([turns] if isinstance(turns, Sequence) else turns)
    options = {"num_inference_steps": 1, "seed": 3, "query": "forward", **options}
    reply = model.generate(**inputs, **options)
    config = model.config
    return [
        latents[ids == config.latent_token_id]
        for ids, latents in zip(reply.input_ids, reply.latents, strict=True)
    ]


def after(episode, action: str | None = "left", thought=None):
    thoughts = [] if thought is None else [text_segment(thought)]
    return Sequence([*episode.segments, *thoughts, action_segment(action)])


@pytest.mark.parametrize("path_layer", [None, 1])
@torch.no_grad()
def test_guidance_by_the_action_adds_what_differs_from_an_unknown_action(world, path_layer):
    model = world.model(path_layer=path_layer)
    episode = world.episode(2)
    (with_action,) = drawn(model, world, after(episode))
    (without,) = drawn(model, world, after(episode, None))
    assert (with_action - without).abs().max() > 1e-3
    (found,) = drawn(model, world, after(episode), guidance_scale={"action": 2.5})
    expected = with_action + 1.5 * (with_action - without)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_guidance_by_the_text_adds_what_differs_from_a_world_without_words(world):
    model = world.model()
    told = Sequence([text_segment("go to the red ball", "task")])
    (with_words,) = drawn(model, world, told)
    session = model.start(**world.processor.encode([told]), generator=seeded(3))
    session.clear([0])
    session.extend(torch.tensor([[model.config.frame_token_id]]), torch.tensor([1]))
    session._draw_frame(torch.tensor([True]), Options(num_inference_steps=1))
    without = session.history(0)[1][1:-1]
    (found,) = drawn(model, world, told, guidance_scale=3.0)
    assert (with_words - without).abs().max() > 1e-3
    torch.testing.assert_close(found, with_words + 2 * (with_words - without), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("memory", ["window:frames=2", "window"])
def test_guidance_by_the_history_adds_what_differs_from_a_world_without_past(world, memory):
    model = world.model(path_layer=None)  # with one, a world without past has another north
    config = model.config
    episode = world.episode(4, task=None)
    (with_past,) = drawn(model, world, after(episode), memory=memory)
    # Without past there are only the tokens since the last frame.
    stream = world.processor.stream(after(episode))
    ends = (stream.input_ids == config.frame_end_token_id).nonzero()
    latest = stream.input_ids[int(ends[-1]) + 1 :]
    session = model.start(latest[None], generator=seeded(3), memory=memory)
    reply = session.run("forward", num_inference_steps=1)
    without = reply.latents[0][reply.input_ids[0] == config.latent_token_id]
    (found,) = drawn(model, world, after(episode), guidance_scale="history=2", memory=memory)
    assert (with_past - without).abs().max() > 1e-3
    torch.testing.assert_close(found, 2 * with_past - without, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory", ["window", "place"])
@torch.no_grad()
def test_parts_add_up_and_rows_of_a_batch_are_guided_as_alone(world, memory):
    model = world.model(path_layer=1, memory=memory)
    turns = [after(world.episode(3)), after(world.episode(1, seed=1), thought="go to the door")]
    (plain,) = drawn(model, world, turns[0])
    parts = [
        drawn(model, world, turns[0], guidance_scale={part: 2.0})[0] - plain
        for part in ("text", "action", "history")
    ]
    scales = {"text": 2.0, "action": 2.0, "history": 2.0}
    (together,) = drawn(model, world, turns[0], guidance_scale=scales)
    torch.testing.assert_close(together, plain + sum(parts), rtol=1e-4, atol=1e-4)

    def replies(batch, seeds):
        inputs = world.processor.encode(batch)
        generators = [seeded(seed) for seed in seeds]
        session = model.start(**inputs, generator=generators)
        for _ in range(2):
            session.run("forward", num_inference_steps=2, guidance_scale=scales)
            action = world.processor.stream(Sequence([action_segment("right")]))
            session.append([action] * len(batch))
        return [session.history(row)[1] for row in range(len(batch))]

    for row, expected in enumerate(replies(turns, [5, 6])):
        (alone,) = replies([turns[row]], [5 + row])
        torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_scale_of_1_changes_no_bit(world):
    model = world.model()
    (plain,) = drawn(model, world, after(world.episode(2)), num_inference_steps=3)
    for scale in (1, "text=1,action=1", {"history": 1.0}, None):
        (found,) = drawn(
            model, world, after(world.episode(2)), num_inference_steps=3, guidance_scale=scale
        )
        assert torch.equal(found, plain)


@torch.no_grad()
def test_what_follows_a_guided_frame_is_what_follows_it_told(world):
    """Copies leave nothing behind: the cache holds the frame as if it had been given."""
    model = world.model(path_layer=1)
    inputs = world.processor.encode([after(world.episode(2))])
    session = model.start(**inputs, generator=seeded())
    session.run("forward", guidance_scale={"action": 3.0, "history": 2.0})
    ids, latents = session.history(0)
    told = model.start(ids[None], latents[None])
    torch.testing.assert_close(session.logits, told.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"txt": 2}, "knows no 'txt'; its parts are text, action, history"),
        ({"text": -1}, "of text is -1, and must be a number from 0 to 100"),
        (float("nan"), "of text is nan"),
        (True, "of text is True"),
        ("action=two", "of action is 'two'"),
        ("action=1,action=2", "names a part twice"),
        ([2], "of text is"),
    ],
)
def test_guidance_that_means_nothing_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_guidance(given)


def test_guidance_is_read_from_words_numbers_and_mappings():
    assert read_guidance("action=2, history=1.5") == Guidance(action=2.0, history=1.5)
    assert read_guidance(2) == Guidance(text=2.0)
    assert read_guidance(None).parts == ()


@pytest.mark.parametrize("solver", ["euler", "dpm++2m-sde"])
@torch.no_grad()
def test_inpainting_keeps_what_is_known_and_draws_the_rest(world, solver):
    model = world.model()
    turns = after(world.episode(2))
    picture = random_frames(1)[0][:16, :16]
    mask = np.zeros(picture.shape[:2], dtype=bool)
    mask[: len(mask) // 2] = True
    known = known_latents(world.processor, picture, mask)
    is_known = ~known[0].isnan()
    assert is_known.any()
    assert not is_known.all()
    options = {"num_inference_steps": 3, "solver": solver}
    (found,) = drawn(model, world, turns, known=known, **options)
    torch.testing.assert_close(found[is_known], known[0][is_known])
    (plain,) = drawn(model, world, turns, **options)
    assert (found - plain)[~is_known].abs().max() > 1e-3  # it goes with what is known
    (all_known,) = drawn(model, world, turns, known=known.nan_to_num(0.5), **options)
    torch.testing.assert_close(all_known, known[0].nan_to_num(0.5))


def test_known_latents_of_another_shape_are_refused(world):
    model = world.model()
    with pytest.raises(ValueError, match="known is .* NaN where the frame is to be drawn"):
        drawn(model, world, after(world.episode(2)), known=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="give bool of the frame's height and width"):
        known_latents(world.processor, random_frames(1)[0][:16, :16], np.ones((2, 2), dtype=bool))
