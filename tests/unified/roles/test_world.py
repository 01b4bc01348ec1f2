import functools
import multiprocessing
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unified.parts import FRAME_SHAPE, babyai_parts, ongoing, random_frames
from unified.conversation.sequence import (
    Kind,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.media.actions import ContinuousActions, KeyboardMouseActions, MultiDiscreteActions
from unified.roles.agent import Agent

pytest.importorskip("gymnasium")

import cloudpickle
import gymnasium
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.utils import iterate

from unified.roles.simulation import PROMISE, History
from unified.roles.world import WorldEnv, WorldVectorEnv

TASK = "open the red door"
OPTIONS: dict[str, Any] = {"num_inference_steps": 1}


@pytest.fixture(scope="module")
def parts():
    return ongoing(*babyai_parts())


@pytest.fixture(scope="module")
def placed():
    """Likewise, and it knows places."""
    return ongoing(*babyai_parts(path_layer=1, head_dim=16))


def make(parts, **changes):
    model, processor = parts
    frame = random_frames(1)[0]
    return WorldEnv(model, processor, frame, TASK, **{**OPTIONS, **changes})


def make_vector(parts, num_envs, frames, tasks, **changes):
    model, processor = parts
    return WorldVectorEnv(model, processor, num_envs, frames, tasks, **{**OPTIONS, **changes})


def test_a_world_passes_gymnasiums_checker(parts):
    check_env(make(parts))


def test_a_reset_shows_the_given_frame(parts):
    env = make(parts)
    observation, info = env.reset(seed=0)
    assert np.array_equal(observation, random_frames(1)[0])
    assert info["outcome"] == "ongoing"
    assert info["latents"].shape == (8, 7, 7)
    other = random_frames(2)[1]
    observation, _ = env.reset(seed=0, options={"frame": other, "task": "go"})
    assert np.array_equal(observation, other)
    assert np.array_equal(env.reset()[0], random_frames(1)[0])


def test_a_step_is_the_forward_query(parts):
    model, processor = parts
    env = make(parts)
    env.reset(seed=3)
    session = env._simulation.session
    assert session is not None
    generators = [generator.clone_state() for generator in session.generators]
    promise = text_segment(f"{PROMISE}{TASK}", "world")
    shown = frame_segment(random_frames(1)[0], outcome="ongoing")
    segments = [text_segment(TASK, "task"), promise, shown]
    inputs = processor.encode([Sequence([*segments, action_segment("forward")])])
    reply = model.generate(**inputs, query="forward", generator=generators, num_inference_steps=1)
    ((ids, latents),) = reply.rows()
    (frame,) = processor.segments(ids, latents, model.config)
    assert frame.kind is Kind.FRAME
    observation, reward, terminated, truncated, info = env.step(2)  # forward
    assert np.allclose(info["latents"], frame.latents, atol=1e-4)
    assert np.abs(observation.astype(int) - processor.pixels(frame)).max() <= 1
    assert info["outcome"] == frame.outcome == "ongoing"
    assert (reward, terminated, truncated) == (0.0, False, False)


def test_what_the_world_is_told_is_heard_with_the_next_step_and_only_then(parts):
    env = make(parts)
    env.reset(seed=0)
    plain = [env.step("left")[4]["latents"] for _ in range(2)]
    env.reset(seed=0)
    env.tell("a box appears 1 ahead")
    told = [env.step("left")[4]["latents"] for _ in range(2)]
    assert not np.allclose(plain[0], told[0])
    session = env._simulation.session
    assert session is not None
    ids = session.history(0)[0].tolist()
    assert ids.count(parts[0].config.world_token_id) == 2  # the promise, and what was told
    with pytest.raises(ValueError, match="give words"):
        env.tell("")


def test_a_world_opens_with_words_alone(parts):
    env = WorldEnv(*parts, words="you see a red ball 2 ahead", **OPTIONS)
    other = WorldEnv(*parts, words="you see a blue key 1 left", **OPTIONS)
    frames = [one.reset(seed=0)[1]["latents"] for one in (env, other)]
    assert not np.allclose(*frames)


def test_names_and_integers_are_the_same_action(parts):
    env = make(parts)
    env.reset(seed=0)
    by_name = env.step("pickup")[0]
    env.reset(seed=0)
    assert np.array_equal(env.step(3)[0], by_name)


def test_an_episode_is_truncated_at_its_last_step(parts):
    env = make(parts, max_steps=2)
    env.reset(seed=0)
    assert env.step(0)[2:4] == (False, False)
    assert env.step(0)[2:4] == (False, True)
    with pytest.raises(ValueError, match="call reset"):
        env.step(0)


@pytest.mark.parametrize(("outcome", "reward"), [("success", 1.0), ("failure", 0.0)])
def test_a_final_outcome_ends_the_episode(outcome, reward):
    env = make(ongoing(*babyai_parts(), outcome))
    env.reset(seed=0)
    _, got, terminated, truncated, info = env.step(0)
    assert (got, terminated, truncated, info["outcome"]) == (reward, True, False, outcome)


@pytest.mark.parametrize("memory", [None, "window:frames=2,sinks=1", "place:recent=1"])
def test_a_restored_world_repeats_itself_and_may_go_elsewhere(parts, placed, memory):
    parts = parts if memory is None else placed
    env = make(parts, memory=memory)
    env.reset(seed=0)
    env.step(0)
    moment = env.snapshot()
    first = [env.step(action)[4]["latents"] for action in (1, 2, 3, 2)]
    env.restore(moment)
    other = env.step(6)[4]["latents"]
    assert not np.array_equal(other, first[0])
    elsewhere = make(parts, memory=memory)
    for world in (env, elsewhere):
        world.restore(moment)
        again = [world.step(action)[4]["latents"] for action in (1, 2, 3, 2)]
        assert np.array_equal(first, again)


def test_a_world_without_a_frame_imagines_one_from_the_task(parts):
    env = WorldEnv(*parts, task="imagine: I see a red ball", **OPTIONS)
    frame, info = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    assert frame.shape == FRAME_SHAPE
    assert info["outcome"] == "ongoing"
    assert np.array_equal(frame, again)
    assert not np.array_equal(frame, env.reset(seed=2)[0])
    env.step(0)


def test_rows_of_a_vector_equal_single_worlds(parts):
    frames, tasks = random_frames(3), [TASK, "go to the ball", None]
    vector = make_vector(parts, 3, frames, tasks, max_steps=2)
    model, processor = parts
    singles = [
        WorldEnv(model, processor, frame, task, max_steps=2, **OPTIONS)
        for frame, task in zip(frames, tasks, strict=True)
    ]
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = vector.reset(seed=5)
    assert observations in vector.observation_space
    for row, env in enumerate(singles):
        assert np.array_equal(env.reset(seed=5 + row)[0], observations[row])
    was_over = False
    for actions in ([0, 1, 2], [3, 4, 5], [6, 6, 6], [2, 2, 0]):
        observations, rewards, terminated, truncated, infos = vector.step(np.array(actions))
        for row, env in enumerate(singles):
            if was_over:  # the action is ignored, the row begins anew
                observation, info = env.reset()
                reward, end, cut = 0.0, False, False
            else:
                observation, reward, end, cut, info = env.step(actions[row])
            assert np.abs(observation.astype(int) - observations[row]).max() <= 1
            assert np.allclose(info["latents"], infos["latents"][row], atol=1e-4)
            assert infos["outcome"][row] == info["outcome"]
            assert (rewards[row], terminated[row], truncated[row]) == (reward, end, cut)
        was_over = bool(truncated[0])


def test_a_vector_can_be_rewound_and_reset_in_part(parts):
    vector = make_vector(parts, 2, random_frames(2), TASK)
    vector.reset(seed=[1, 2])
    moment = vector.snapshot()
    first = vector.step([0, 1])[0]
    observations, _ = vector.reset(options={"reset_mask": np.array([False, True])})
    assert np.array_equal(observations[0], first[0])
    assert np.array_equal(observations[1], random_frames(2)[1])
    vector.restore(moment)
    assert np.array_equal(vector.step([0, 1])[0], first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame": None, "task": None}, "a world needs a first frame"),
        ({"frame": np.zeros((8, 8, 3), np.uint8)}, "8x8 pixels.*56x56"),
        ({"mission": "go"}, "option 'mission' is unknown"),
    ],
)
def test_bad_beginnings_are_refused_by_name(parts, options, message):
    with pytest.raises(ValueError, match=message):
        WorldEnv(*parts).reset(options=options)


def test_bad_settings_and_actions_are_refused_by_name(parts):
    with pytest.raises(ValueError, match="max_steps=0"):
        make(parts, max_steps=0)
    with pytest.raises(ValueError, match="render_mode 'human'"):
        make(parts, render_mode="human")
    with pytest.raises(ValueError, match="2 frames for 3 rows"):
        make_vector(parts, 3, random_frames(2), TASK)
    env = make(parts)
    with pytest.raises(ValueError, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="index 7 is outside"):
        env.step(7)
    with pytest.raises(ValueError, match="Unknown action 'jump'"):
        env.step("jump")


SPACES = [
    MultiDiscreteActions("pad", {"move": ["left", "right"], "jump": 2}),
    ContinuousActions.between("arm", ["x", "y"], [-0.1, 0], [0.3, 1], bins=8),
    ContinuousActions.between("arm", ["x", "y"], [-1, -1], [1, 1], bins=8, chunk=2),
    ContinuousActions.between("steps", ["x", "y"], [0, -2], [9, 2], dtype="int8"),
    MultiDiscreteActions("pad", {"move": 3, "jump": 2}, [-1, 0], dtype="int32"),
    KeyboardMouseActions("game", ["w", "space"], mouse=10),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.kind)
def test_a_world_takes_whatever_gymnasium_samples_and_an_agent_names(space):
    model, processor = babyai_parts()
    processor = processor.with_action_space(space)
    model.adopt(processor)
    ongoing(model, processor)
    world = make((model, processor))
    agent = Agent(model, processor, think=False)
    frame, _ = world.reset(seed=0)
    world.action_space.seed(0)
    for _ in range(3):
        named = agent.act(frame, TASK)
        taken = agent.environment_action(named)
        assert world.action_space.contains(taken)
        assert space.encode(taken) == space.encode(named)
        for told in (named, taken):  # a vector is no batch
            agent.override_action(told)
            assert space.encode(agent._turns[0][-1].action) == space.encode(named)
        frame, *_ = world.step(world.action_space.sample())


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.kind)
def test_rows_of_a_vector_take_what_gymnasium_samples_for_all_of_them(space):
    model, processor = babyai_parts()
    processor = processor.with_action_space(space)
    model.adopt(processor)
    ongoing(model, processor)
    env = make_vector((model, processor), 3, random_frames(3), TASK)
    env.reset(seed=0)
    env.action_space.seed(0)
    batch = env.action_space.sample()
    moment = env.snapshot()
    frames = env.step(batch)[0]
    env.restore(moment)
    rows = list(iterate(env.action_space, batch))
    np.testing.assert_array_equal(env.step(rows)[0], frames)
    if isinstance(batch, dict):
        with pytest.raises(ValueError, match=r"'mouse': 2\}; give 3 of each of keys, mouse"):
            env.step({"keys": batch["keys"], "mouse": batch["mouse"][:2]})
        with pytest.raises(ValueError, match=r"hold \{'keys': 3\}; give 3 of each of keys, mouse"):
            env.step({"keys": batch["keys"]})


def test_ended_rows_begin_anew_from_what_they_were_last_reset_with(parts):
    vector = make_vector(parts, 2, None, None, max_steps=1)
    frames, tasks = random_frames(2, seed=7), ["go to the ball", "open the red door"]
    first, _ = vector.reset(seed=3, options={"frame": frames, "task": tasks})
    assert np.array_equal(first, frames)
    singles = [WorldEnv(*parts, max_steps=1, **OPTIONS) for _ in frames]
    for row, env in enumerate(singles):
        env.reset(seed=3 + row, options={"frame": frames[row], "task": tasks[row]})
        env.step(0)
    assert vector.step([0, 0])[3].all()
    again, *_, infos = vector.step([0, 0])
    assert np.array_equal(again, frames)
    moved = vector.step([1, 2])[4]["latents"]
    for row, env in enumerate(singles):
        _, info = env.reset(options={"frame": frames[row], "task": tasks[row]})
        assert np.allclose(info["latents"], infos["latents"][row], atol=1e-4)
        assert np.allclose(env.step(1 + row)[4]["latents"], moved[row], atol=1e-4)


def test_a_partial_reset_changes_the_beginning_of_its_rows_alone(parts):
    vector = make_vector(parts, 2, random_frames(2), TASK, max_steps=1)
    vector.reset(seed=0)
    other = random_frames(3)[2]
    mask = np.array([False, True])
    vector.reset(options={"frame": other, "reset_mask": mask})
    vector.step([0, 0])
    assert np.array_equal(vector.step([0, 0])[0], [random_frames(2)[0], other])
    vector.reset()
    vector.step([0, 0])
    assert np.array_equal(vector.step([0, 0])[0], random_frames(2))


def test_a_history_is_the_episode_until_its_last_frame(parts):
    model, processor = parts
    frames, actions = random_frames(3), ["left", None]
    env = WorldEnv(model, processor, task=TASK, history=History(frames, actions), **OPTIONS)
    observation, info = env.reset(seed=3)
    assert np.array_equal(observation, frames[-1])
    session = env._simulation.session
    assert session is not None
    generators = [generator.clone_state() for generator in session.generators]
    segments = [text_segment(TASK, "task"), text_segment(f"{PROMISE}{TASK}", "world")]
    for frame, action in zip(frames, [*actions, "forward"], strict=True):
        segments += [frame_segment(frame, outcome="ongoing"), action_segment(action)]
    inputs = processor.encode([Sequence(segments)])
    reply = model.generate(**inputs, query="forward", generator=generators, num_inference_steps=1)
    (frame,) = processor.segments(reply.input_ids[0], reply.latents[0], model.config)
    info = env.step("forward")[4]
    assert np.allclose(info["latents"], frame.latents, atol=1e-4)
    vector = make_vector(parts, 2, None, TASK)
    told = [History(frames, actions), History(frames[:1], [])]
    observations, _ = vector.reset(seed=3, options={"history": told})
    assert np.array_equal(observations, [frames[2], frames[0]])
    assert np.allclose(vector.step([2, 2])[4]["latents"][0], info["latents"], atol=1e-4)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda p: History(random_frames(2), []), "2 frames and 0 actions; an action stands"),
        (lambda p: make(p, history=History(random_frames(1), [])), "with a frame or with a hist"),
        (lambda p: make(p, temperature=float("inf")), "temperature=inf must be a finite"),
        (lambda p: make(p, num_inference_steps=0), "num_inference_steps=0 must be at least 1"),
        (lambda p: make(p, solver="plms"), "solver 'plms' is unknown; use one of euler, heun"),
        (lambda p: make(p, max_steps=True), "max_steps=True must be a whole number"),
        (lambda p: WorldEnv(*p, task=random_frames(1)[0]), "task is a ndarray; give words"),  # pyright: ignore[reportArgumentType]
        (lambda p: WorldEnv(p[0], None), "processor is missing; give the model's"),
        (lambda p: WorldEnv("babyai", p[1]), "the model is named .* leave processor out"),
        (lambda p: make(p, device="cpu"), "device='cpu' is for a model that is named"),
        (lambda p: make(p).reset(options=[1]), "options is a list; give a dict"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_worlds_that_cannot_be_are_refused_before_anything_is_computed(parts, made, message):
    with pytest.raises(ValueError, match=message):
        made(parts)


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def test_gymnasium_makes_worlds_by_name(parts, checkpoint, tmp_path):
    Image.fromarray(random_frames(1)[0]).save(tmp_path / "a.png")
    named = {"model": checkpoint, "frame": str(tmp_path / "a.png"), "task": TASK, **OPTIONS}
    env, plain = gymnasium.make("unified/World-v0", **named), make(parts)
    assert np.array_equal(env.reset(seed=1)[0], plain.reset(seed=1)[0])
    assert np.array_equal(env.step(2)[0], plain.step(2)[0])
    vector: Any = gymnasium.make_vec("unified/World-v0", num_envs=2, **named)
    assert isinstance(vector, WorldVectorEnv)
    assert vector.reset(seed=1)[0].shape == (2, *FRAME_SHAPE)


@pytest.mark.parametrize(
    "imports", ["import unified, gymnasium", "import gymnasium, unified", "import gymnasium.spaces"]
)
def test_worlds_are_known_by_name_in_whatever_order_the_two_are_imported(imports):
    code = f"from unified import sample; {imports}; assert 'unified/World-v0' in gymnasium.registry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("copied", [pickle.dumps, cloudpickle.dumps])
def test_a_pickled_world_goes_on_as_the_one_it_was_copied_from(parts, copied):
    env = make(parts)
    env.reset(seed=0)
    env.step(0)
    other = pickle.loads(copied(env))
    for action in (1, 2):
        assert np.array_equal(env.step(action)[0], other.step(action)[0])


def _work(remote: Any, made: bytes) -> None:
    """What a worker of stable-baselines3's SubprocVecEnv does."""
    torch.set_num_threads(1)
    env = pickle.loads(made)()
    while True:
        name, value = remote.recv()
        if name == "close":
            return
        remote.send(env.reset(seed=value) if name == "reset" else env.step(value))


def test_spawned_workers_show_what_the_world_shows_here(parts):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    made = cloudpickle.dumps(functools.partial(make, parts))
    worker = context.Process(target=_work, args=(theirs, made), daemon=True)
    worker.start()
    env = make(parts)
    ours.send(("reset", 5))
    assert ours.poll(120)
    assert np.array_equal(ours.recv()[0], env.reset(seed=5)[0])
    ours.send(("step", 2))
    assert ours.poll(60)
    shown = ours.recv()[0].astype(int)
    assert np.abs(shown - env.step(2)[0]).max() <= 1
    ours.send(("close", None))
    worker.join(20)


def test_gymnasiums_asynchronous_vector_takes_worlds(parts):
    vector = AsyncVectorEnv([functools.partial(make, parts)], context="spawn")
    try:
        assert np.array_equal(vector.reset(seed=5)[0], make(parts).reset(seed=5)[0][None])
    finally:
        vector.close(terminate=True)
