"""Whoever waits shares a batch, and nobody notices the others."""

import threading
from concurrent.futures import wait

import numpy as np
import pytest
import torch

from tests.unified.parts import babyai_parts, random_frames
from tests.unified.play.stage import ACTIONS
from unified.play.engine import Engine, Shown
from unified.roles.simulation import Start
from unified.roles.world import WorldEnv


def opened(engine, seed=0) -> Shown:
    return engine.open(Start(random_frames(1, seed)[0], "go to the red ball"), seed).result()


def hold(engine):
    """Lets jobs gather: the thread is busy until the event is set."""
    gate = threading.Event()

    def wait_there(jobs):
        gate.wait()
        return [None]

    engine._hand_in(None, wait_there, None)
    return gate


def test_an_opened_world_goes_on_as_the_environment_does(engine):
    frame = random_frames(1)[0]
    env = WorldEnv(engine.model, engine.processor, frame, "go", num_inference_steps=2)
    env.reset(seed=4)
    noise = int(np.random.Generator(np.random.PCG64(np.random.SeedSequence(4))).integers(2**62))
    shown = engine.open(Start(frame, "go"), noise).result()
    for number in range(10):
        action = ACTIONS[number % 6]
        expected = env.step(action)
        shown = engine.step(shown.moment, engine.turn(action, None, None)).result()
        assert np.array_equal(shown.pixels, expected[0])
        assert shown.outcome == expected[4]["outcome"]
        if expected[2]:
            break


def test_players_who_wait_share_a_tick_and_see_what_they_would_see_alone(engine):
    starts = [opened(engine, seed) for seed in range(5)]
    turns = [engine.turn(ACTIONS[i % 4], None, None) for i in range(5)]
    alone = [engine.step(s.moment, t).result() for s, t in zip(starts, turns, strict=True)]
    before = engine.ticks
    gate = hold(engine)
    futures = [engine.step(s.moment, t) for s, t in zip(starts, turns, strict=True)]
    gate.set()
    wait(futures)
    assert engine.ticks == before + 2  # who held the gate, and one batch
    for future, expected in zip(futures, alone, strict=True):
        assert np.array_equal(future.result().pixels, expected.pixels)
        assert future.result().outcome == expected.outcome
        assert torch.allclose(future.result().moment.logits, expected.moment.logits, atol=1e-4)


def test_agents_share_a_tick_and_choose_what_they_would_alone(engine):
    starts = [opened(engine, seed).moment for seed in range(4)]
    alone = [engine.act(moment, 1.0, seed).result() for seed, moment in enumerate(starts)]
    gate = hold(engine)
    futures = [engine.act(moment, 1.0, seed) for seed, moment in enumerate(starts)]
    gate.set()
    for future, expected in zip(futures, alone, strict=True):
        assert (future.result().action, future.result().said) == (expected.action, expected.said)


def test_a_job_that_fails_takes_no_other_with_it(engine):
    start = opened(engine)
    good = engine.turn("left", None, None)
    gate = hold(engine)
    futures = [engine.step(start.moment, turn) for turn in (good, [], good)]
    gate.set()
    wait(futures)
    assert np.array_equal(futures[0].result().pixels, futures[2].result().pixels)
    assert isinstance(futures[1].exception(), Exception)


def test_a_shown_frame_is_remembered_and_costs_no_noise(engine):
    start, other = opened(engine), random_frames(2, 9)[1]
    turn = engine.turn("left", None, None)
    shown = engine.show(start.moment, turn, other, "ongoing").result()
    assert np.array_equal(shown.pixels, other)
    assert not len(shown.moment.queue)
    state = start.moment.generator.get_state()
    assert torch.equal(shown.moment.generator.get_state(), state)


def test_the_mind_at_a_frame_sums_to_one_and_has_the_entropy_of_its_bars(engine):
    start = opened(engine)
    after = engine.step(start.moment, engine.turn("left", None, None)).result()
    first = engine.weigh(start.moment, None, start.pixels, "go").result()
    mind = engine.weigh(after.moment, start.pixels, after.pixels, "go").result()
    assert first.inverse == []
    for bars in (mind.actions, mind.inverse):
        assert {name for name, _ in bars} == set(ACTIONS)
        assert sum(chance for _, chance in bars) == pytest.approx(1)
    chances = np.array([chance for _, chance in mind.actions])
    assert mind.entropy == pytest.approx(-(chances * np.log2(chances)).sum())
    assert sum(after.chances.values()) == pytest.approx(1)
    assert max(after.chances, key=lambda name: after.chances[name]) == after.outcome


def test_the_last_denoise_step_is_the_frame_and_the_first_is_another(engine):
    start = opened(engine)
    for told in (None, "a box appears 1 ahead"):
        turn = engine.turn("left", None, told)
        shown = engine.step(start.moment, turn).result()
        frames = engine.denoise(start.moment, turn).result()
        assert len(frames) == engine.steps
        assert np.array_equal(frames[-1], shown.pixels)
        assert not np.array_equal(frames[0], frames[-1])


def test_the_likeliest_bar_is_what_the_silent_agent_does(engine):
    start = opened(engine, 2)
    mind = engine.weigh(start.moment, None, start.pixels, None).result()
    (action, _), *_ = engine._turns([start.moment], {"think": False})
    assert mind.actions[0][0] == action


def test_words_of_the_world_are_refused_by_a_model_that_was_never_taught_them(engine):
    untaught = Engine(*babyai_parts(world_token_id=None), steps=1)
    with pytest.raises(ValueError, match="never taught words of the world"):
        untaught.turn("left", None, "a box appears")
    untaught.close()
    assert len(engine.turn("left", None, "a box appears")) == 2


def test_an_action_that_there_is_not_is_refused_by_name(engine):
    with pytest.raises(ValueError, match="'fly'"):
        engine.turn("fly", None, None)


def test_a_closed_engine_refuses_in_words():
    made = Engine(*babyai_parts(), steps=1)
    made.close()
    with pytest.raises(ValueError, match="being stopped"):
        made.open(Start(random_frames(1)[0]), 0)
