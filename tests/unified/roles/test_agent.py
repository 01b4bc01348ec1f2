import numpy as np
import pytest
import torch
from PIL import Image

from tests.unified.parts import babyai_parts, random_frames
from unified.conversation.sequence import Sequence, action_segment, frame_segment, text_segment
from unified.media.actions import NamedActions
from unified.roles.agent import Agent
from unified.roles.world import WorldEnv

TASKS = ["open the red door", "go to the green ball", "pick up a key"]


@pytest.fixture(scope="module")
def parts():
    return babyai_parts()


def policy_action(model, processor, segments, think=False):
    """What the model does after a whole conversation, prefilled anew."""
    inputs = processor.encode([Sequence(segments)])
    reply = model.generate(**inputs, query="policy", think=think)
    ((ids, latents),) = reply.rows()
    return processor.segments(ids, latents, model.config)[-1].action


def test_an_act_equals_the_policy_prompted_with_the_whole_episode(parts):
    model, processor = parts
    agent = Agent(model, processor, think=False)
    segments = [text_segment(TASKS[0], "task")]
    for frame in random_frames(6):  # twice the window
        segments.append(frame_segment(frame, outcome="ongoing"))
        action = agent.act(frame, TASKS[0])
        assert action == policy_action(model, processor, segments)
        assert processor.action_space.names[agent.environment_action(action)] == action
        segments.append(action_segment(action))


def test_an_instruction_is_heard_with_the_next_frame(parts):
    model, processor = parts
    agent = Agent(model, processor, think=False)
    instructions = {2: "now the blue key", 4: "stop"}
    segments = [[text_segment(task, "task")] for task in TASKS[:2]]
    for step in range(6):
        frames = random_frames(2, seed=step)
        if step in instructions:
            agent.instruct([instructions[step], None])
        actions = agent.act(frames, TASKS[:2])
        for row, frame in enumerate(frames):
            segments[row].append(frame_segment(frame, outcome="ongoing"))
            if step in instructions and row == 0:
                segments[row].append(text_segment(instructions[step], "task"))
            assert actions[row] == policy_action(model, processor, segments[row])
            segments[row].append(action_segment(actions[row]))


def test_instructions_are_for_rows_that_have_begun(parts):
    agent = Agent(*parts, think=False)
    with pytest.raises(ValueError, match="1 instructions for 0 rows.* the task of act"):
        agent.instruct(["go"])
    agent.act(random_frames(2), TASKS[:2])
    with pytest.raises(ValueError, match="3 instructions for 2 rows"):
        agent.instruct(["go", None, None])
    agent.instruct("go")
    agent.reset([1])
    with pytest.raises(ValueError, match="row 1 is told 'go' before it acts"):
        agent.instruct("go")
    with pytest.raises(ValueError, match="row 0 is told nothing"):
        agent.instruct(["", None])
    agent.keep([0])
    assert agent._heard == [[text_segment("go", "task")]]


def test_rows_of_a_batch_act_as_they_would_alone(parts):
    model, processor = parts
    batch = Agent(model, processor, max_text_tokens=2)
    alone = [Agent(model, processor, max_text_tokens=2) for _ in TASKS]
    for step in range(4):
        frames = random_frames(3, seed=step)
        actions = batch.act(frames, TASKS)
        for row, (agent, frame) in enumerate(zip(alone, frames, strict=True)):
            assert agent.act(frame, TASKS[row]) == actions[row]
            assert agent.thought == batch.thoughts[row]


def test_a_reset_row_begins_anew_while_the_others_go_on(parts):
    model, processor = parts
    agent, others = Agent(model, processor, think=False), Agent(model, processor, think=False)
    for step in range(4):
        frames = random_frames(3, seed=step)
        agent.act(frames, TASKS)
        others.act(frames, TASKS)
    agent.reset([1])
    fresh = Agent(model, processor, think=False)
    for step in range(4, 8):
        frames = random_frames(3, seed=step)
        actions = agent.act(frames, [TASKS[0], "a new task", TASKS[2]])
        stayed = others.act(frames, TASKS)
        assert [actions[0], actions[2]] == [stayed[0], stayed[2]]
        assert actions[1] == fresh.act(frames[1], "a new task")


def test_dropped_and_resting_rows_change_nothing_for_the_others(parts):
    model, processor = parts
    agent = Agent(model, processor, max_text_tokens=2)
    whole = Agent(model, processor, max_text_tokens=2)
    for step in range(5):
        frames = random_frames(3, seed=step)
        expected = whole.act(frames, TASKS)
        if step < 2:
            assert agent.act(frames, TASKS) == expected
        elif step == 2:
            assert agent.act([frames[0], None, frames[2]]) == [expected[0], None, expected[2]]
            agent.keep([2, 0])
        else:
            assert agent.act([frames[2], frames[0]]) == [expected[2], expected[0]]
            assert agent.thoughts == [whole.thoughts[2], whole.thoughts[0]]


def test_an_action_that_was_told_replaces_the_agents_own(parts):
    model, processor = parts
    agent = Agent(model, processor, think=False)
    first, second = random_frames(2)
    named = agent.act(first, TASKS[0])
    taken = "drop" if named != "drop" else "left"
    agent.override_action(taken)
    expected = [text_segment(TASKS[0], "task"), frame_segment(first, outcome="ongoing")]
    expected += [action_segment(taken), frame_segment(second, outcome="ongoing")]
    agent.act(second)
    assert agent._session is not None
    ids, _ = agent._session.history(0)
    assert torch.equal(ids, processor.stream(Sequence(expected)).input_ids)


def test_an_action_index_can_be_told_too(parts):
    agent = Agent(*parts, think=False)
    agent.act(random_frames(2), TASKS[:2])
    agent.override_action([None, np.int64(3)])
    assert agent._turns[1][-1].action == "pickup"
    agent.override_action(np.array([1, 2]))
    assert [turn[-1].action for turn in agent._turns] == ["right", "forward"]
    with pytest.raises(ValueError, match="for 2 rows; give a list, one each"):
        agent.override_action("left")


def test_an_agent_that_thinks_remembers_its_words(parts):
    model, processor = parts
    agent = Agent(model, processor, think=True, max_text_tokens=5)
    agent.act(random_frames(1)[0], TASKS[0])
    assert isinstance(agent.thought, str)
    assert agent.thought
    assert [s.text for s in agent._turns[0][:-1]] == [agent.thought]


def test_a_silent_agent_has_no_thoughts(parts):
    agent = Agent(*parts, think=False)
    agent.act(random_frames(2), TASKS[:2])
    assert agent.thoughts == [None, None]


def test_an_agent_that_only_speaks_is_made_to_act():
    model, processor = babyai_parts(initializer_range=0.02)
    with torch.no_grad():  # words, then the end of speech, always
        model.model.norm.weight.zero_()
    generator = torch.Generator().manual_seed(0)
    agent = Agent(model, processor, temperature=1.0, max_text_tokens=3, generator=generator)
    for step in range(6):
        action = agent.act(random_frames(1, seed=step)[0], TASKS[0])
        assert agent.environment_action(action) in range(7)


def test_sampling_is_repeated_by_equal_generators(parts):
    model, processor = parts

    def play(seed):
        generator = [torch.Generator().manual_seed(seed + row) for row in range(3)]
        agent = Agent(model, processor, temperature=1.5, think=False, generator=generator)
        return [agent.act(random_frames(3, seed=step), TASKS) for step in range(4)]

    assert play(0) == play(0)
    assert play(0) != play(100)


def test_images_and_arrays_are_the_same_observation(parts):
    frame = random_frames(1)[0]
    agent, other = Agent(*parts, think=False), Agent(*parts, think=False)
    assert agent.act(Image.fromarray(frame), "go") == other.act(frame, "go")


def test_descriptions_are_words_outside_of_the_episode(parts):
    agent = Agent(*parts, max_text_tokens=4)
    frames = random_frames(2)
    agent.act(frames[0], TASKS[0])
    assert agent._session is not None
    before = agent._session.history(0)[0]
    words = agent.describe(frames)
    assert len(words) == 2
    assert agent.describe(frames[1]) == words[1]
    assert torch.equal(agent._session.history(0)[0], before)


@pytest.mark.parametrize(
    ("observation", "task", "message"),
    [
        (np.zeros((64, 64, 3), np.uint8), "go", "64x64 pixels.*56x56.*resize"),
        (np.zeros((56, 56, 3), np.float32), "go", "float32.*uint8"),
        ([random_frames(1)[0], None], "go", "row 1 begins without an observation"),
        ([None], "go", "no observation"),
        (random_frames(2), ["go"], "1 tasks for 2 observations"),
    ],
)
def test_bad_observations_are_refused_by_name(parts, observation, task, message):
    with pytest.raises(ValueError, match=message):
        Agent(*parts).act(observation, task)


def test_misuse_in_mid_episode_is_refused_by_name(parts):
    agent = Agent(*parts, think=False)
    frames = random_frames(2)
    with pytest.raises(ValueError, match="act comes first"):
        agent.reset([0])
    agent.act(frames, TASKS[:2])
    with pytest.raises(ValueError, match="row 1's task changed.*reset"):
        agent.act(frames, TASKS[0])
    with pytest.raises(ValueError, match="1 observations for 2 rows.*keep"):
        agent.act(frames[0], TASKS[0])
    with pytest.raises(ValueError, match="Unknown action 'jump'"):
        agent.override_action(["jump", None])
    with pytest.raises(ValueError, match="row 5 is outside"):
        agent.keep([5])


def test_an_observation_may_be_the_path_of_a_picture(parts, tmp_path):
    frame = random_frames(1)[0]
    Image.fromarray(frame).save(tmp_path / "a.png")
    shown = Agent(*parts, think=False).act(tmp_path / "a.png", TASKS[0])
    assert shown == Agent(*parts, think=False).act(frame, TASKS[0])


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda a, f: a.act(TASKS[0], f), "task is a ndarray, no words; act takes the observation"),
        (lambda a, f: a.act(f, 3), "task is a int, no words"),
        (lambda a, f: a.act(f, "a \ud800"), "character 2 of .* half a surrogate pair"),
        (lambda a, f: a.act({"image": f}), "observation 0"),
        (lambda a, f: a.instruct(None), "the instruction is missing"),
        (lambda a, f: a.instruct(f), "instruction is a ndarray, no words"),
        (lambda a, f: a.keep(["a"]), "row a is outside"),
        (lambda a, f: Agent(*a, top_k=True), "top_k=True must be a whole number"),
        (lambda a, f: Agent(*a, temperature=float("nan")), "temperature=nan must be a finite"),
        (lambda a, f: Agent(*a, think=1), "think=1 must be True, False or None"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_an_agent_cannot_read_is_refused(parts, spoilt, message):
    frame = random_frames(1)[0]
    is_new = "must be" in message
    with pytest.raises(ValueError, match=message):
        spoilt(parts if is_new else Agent(*parts, think=False), frame)


def test_two_instructions_before_one_observation_are_refused(parts):
    agent = Agent(*parts, think=False)
    agent.act(random_frames(1)[0], TASKS[0])
    agent.instruct("go")
    with pytest.raises(ValueError, match="row 0 was told 'go' and has seen nothing since"):
        agent.instruct("stop")


def test_a_processor_of_another_action_space_than_the_models_is_refused(world):
    model, own = world.model(), world.processor.with_action_space(NamedActions("own", ["up"]))
    model.adopt(own)
    told = r"the processor has action_token_ids=\(\d+, \d+\), the model .* or that it adopted"
    with pytest.raises(ValueError, match=told):
        Agent(model, world.processor)
    with pytest.raises(ValueError, match=told):
        WorldEnv(model, world.processor, task="go")
    with pytest.raises(ValueError, match=told):
        Agent(world.model(), own)
    frame = world.frame(np.random.default_rng(0))
    inputs = own.encode([Sequence([text_segment("go", "task"), frame])])
    reply = model.generate(**inputs, query="policy", think=False)
    with pytest.raises(ValueError, match=told):
        world.processor.decode(reply)
    assert own.decode(reply)[0]["content"] == [{"type": "action", "action": "up"}]
