"""Moments of a session go on, alone or in any batch, as the session would."""

import numpy as np
import pytest
import torch

from tests.unified.parts import babyai_parts, random_frames
from unified.conversation.sequence import Sequence, action_segment, frame_segment, text_segment
from unified.sampling.moment import Bench, Moment, split

ACTIONS = ("left", "right", "forward", "toggle")


@pytest.fixture(scope="module")
def parts():
    return babyai_parts()


def begin(parts, seed=0, task: str | None = "go to the red ball") -> Moment:
    model, processor = parts
    opening = [text_segment(task, "task")] if task else []
    frame = frame_segment(random_frames(1, seed)[0], outcome="ongoing")
    inputs = processor.encode([Sequence([*opening, frame])])
    session = model.start(**inputs, generator=torch.Generator().manual_seed(seed))
    return split(session, [None])[0]


def go(parts, bench, moments, actions):
    """One step of each, in one batch; returns moments and latents."""
    _, processor = parts
    session = bench.join(moments)
    session.append([processor.stream(Sequence([action_segment(a)])) for a in actions])
    reply = session.run("forward", num_inference_steps=2)
    return split(session, moments), reply.latents


def test_a_moment_goes_on_as_the_session_that_was_never_split_long_after_the_window(parts):
    model, processor = parts
    frame = frame_segment(random_frames(1, 3)[0], outcome="ongoing")
    inputs = processor.encode([Sequence([text_segment("go to the red ball", "task"), frame])])
    session = model.start(**inputs, generator=torch.Generator().manual_seed(3))
    moment, bench = begin(parts, 3), Bench(model)
    for number in range(12):  # the window has three frames
        action = ACTIONS[number % 4]
        session.append([processor.stream(Sequence([action_segment(action)]))])
        expected = session.run("forward", num_inference_steps=2)
        (moment,), latents = go(parts, bench, [moment], [action])
        assert torch.allclose(latents[0], expected.latents[0], atol=1e-5)
    assert torch.allclose(bench.join([moment]).logits, session.logits, atol=1e-4)
    assert int(moment.state.num_frames[0]) == model.config.window_frames


def test_the_same_step_from_a_moment_is_the_same_to_the_last_bit_whatever_came_between(parts):
    bench = Bench(parts[0])
    moment = begin(parts)
    for _ in range(5):
        (moment,), _ = go(parts, bench, [moment], ["left"])
    (first,), latents = go(parts, bench, [moment], ["forward"])
    for other in ("right", "toggle"):
        (away,), _ = go(parts, bench, [moment], [other])
        go(parts, bench, [away, begin(parts, 1)], ["left", "left"])
    (again,), repeated = go(parts, bench, [moment], ["forward"])
    assert torch.equal(latents[0], repeated[0])
    assert torch.equal(first.logits, again.logits)


def test_rows_of_any_batch_go_on_as_they_would_alone(parts):
    bench = Bench(parts[0])
    rng = np.random.default_rng(0)
    alone = [begin(parts, seed, task) for seed, task in enumerate(["go", None, "open the door"])]
    together = list(alone)
    for length in range(4):  # rows of different lengths
        (alone[0],), _ = go(parts, bench, [alone[0]], [ACTIONS[length]])
        together[0] = alone[0]
    for _ in range(6):  # players leave and join in between
        rows = [int(r) for r in rng.permutation(3)[: int(rng.integers(1, 4))]]
        actions = [str(rng.choice(ACTIONS)) for _ in rows]
        made, latents = go(parts, bench, [together[r] for r in rows], actions)
        for place, (row, action) in enumerate(zip(rows, actions, strict=True)):
            together[row] = made[place]
            (alone[row],), expected = go(parts, bench, [alone[row]], [action])
            assert torch.allclose(latents[place], expected[0], atol=1e-5)


def test_moments_share_what_came_before_and_add_one_frame_each(parts):
    bench = Bench(parts[0])
    moment = begin(parts)
    (one,), _ = go(parts, bench, [moment], ["left"])
    (two,), _ = go(parts, bench, [one], ["left"])
    assert two.pieces[0] is one.pieces[0]
    assert two.added == two.pieces[-1].num_bytes
    frame_tokens = parts[0].config.frame_tokens
    assert frame_tokens < len(two.pieces[-1]) < frame_tokens + 10


def test_going_on_leaves_a_moment_and_its_generator_alone(parts):
    bench = Bench(parts[0])
    (moment,), _ = go(parts, bench, [begin(parts)], ["left"])
    state, states = moment.generator.get_state(), [p.states.clone() for p in moment.pieces]
    go(parts, bench, [moment], ["right"])
    assert torch.equal(moment.generator.get_state(), state)
    assert all(torch.equal(p.states, s) for p, s in zip(moment.pieces, states, strict=True))


def test_a_session_that_dropped_frames_is_not_split(parts):
    model, processor = parts
    frame = frame_segment(random_frames(1)[0], outcome="ongoing")
    session = model.start(**processor.encode([Sequence([frame])]))
    session.clear([0])
    with pytest.raises(ValueError, match="split it earlier"):
        split(session, [None])
