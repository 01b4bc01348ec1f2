"""Several embodiments: tokens of their own, actions never mixed, chosen by the model itself."""

import numpy as np
import pytest
import torch

from tests.unified.parts import babyai_parts, random_frames
from unified.conversation.sequence import Sequence, action_segment, frame_segment, text_segment
from unified.media.action_space import ActionSpace
from unified.media.actions import ContinuousActions, KeyboardMouseActions, NamedActions
from unified.media.embodiments import EmbodiedActions
from unified.roles.agent import Agent

SPACES = {
    "arm": ContinuousActions.between("arm", ["x", "y"], [-1, -1], [1, 1], bins=4),
    "game": KeyboardMouseActions("game", ["w", "space"], mouse=10, bins=3),
    "walker": NamedActions("walker", ["left", "right"]),
}
ACTIONS = [
    {"arm": [-0.75, 0.25]},
    {"game": {"keys": ["space"], "mouse": [0.0, 0.0]}},
    {"walker": "right"},
]


@pytest.fixture
def space():
    return EmbodiedActions("all", SPACES)


@pytest.fixture
def parts(space):
    model, processor = babyai_parts()
    processor = processor.with_action_space(space)
    model.adopt(processor)
    return model, processor


def test_each_action_comes_back_with_its_embodiment(space):
    for action in ACTIONS:
        assert space.decode(space.encode(action)) == action
        name, own_action = next(iter(action.items()))
        own = SPACES[name]
        assert len(space.encode(action)) == own.num_tokens
        np.testing.assert_equal(space.to_environment(action), own.to_environment(own_action))
    rebuilt = ActionSpace.from_config(space.to_config())
    assert rebuilt.to_config() == space.to_config()
    assert rebuilt.tokens == space.tokens


def test_no_token_belongs_to_two_embodiments(space):
    assert len(set(space.tokens)) == sum(len(one.tokens) for one in SPACES.values())
    for form, one in zip(space.formats, SPACES.values(), strict=True):
        runs = [space.tokens[start:stop] for start, stop in form]
        bare = [[f"<{token.split(':', 1)[1]}" for token in run] for run in runs]
        assert bare == [list(one.choices(i)) for i in range(one.num_tokens)]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"boat": "left"}, "one of arm, game, walker"),
        ({"arm": [0, 0], "walker": "left"}, "one of arm, game, walker"),
        ("left", "is not JSON"),
        ({"arm": [0, 7]}, "y=7.0 of 'arm'"),
    ],
)
def test_actions_of_nobody_are_refused(space, action, message):
    with pytest.raises(ValueError, match=message):
        space.encode(action)


def test_mixed_tokens_are_no_action(space):
    with pytest.raises(ValueError, match="no action of one embodiment"):
        space.decode(["<arm:bin0>", "<game:key up>"])


def test_spaces_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="without colons"):
        EmbodiedActions("all", {"a:b": SPACES["arm"]})
    with pytest.raises(ValueError, match="no embodiments"):
        EmbodiedActions("all", {})


def test_an_untrained_model_acts_by_one_embodiment_at_a_time(parts, space):
    model, processor = parts
    generators = [torch.Generator().manual_seed(seed) for seed in range(24)]
    agent = Agent(model, processor, think=False, temperature=5.0, generator=generators)
    actions = agent.act(random_frames(24), [f"task {i}" for i in range(24)])
    assert {next(iter(action)) for action in actions} == set(SPACES)
    for action in actions:
        space.encode(action)


def test_a_conversation_of_any_embodiment_is_read_back(parts):
    model, processor = parts
    frames = random_frames(2)
    for action in ACTIONS:
        said = [text_segment("go", "task"), frame_segment(frames[0], outcome="ongoing")]
        said += [action_segment(action), frame_segment(frames[1], outcome="success")]
        stream = processor.stream(Sequence(said))
        inputs = processor.encode([Sequence(said)])
        found = processor.segments(stream.input_ids, inputs["latents"][0], model.config)
        assert [s.kind for s in found] == [s.kind for s in said]
        assert found[2].action == action


def test_a_saved_model_knows_its_embodiments(parts, tmp_path):
    model, processor = parts
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.longest_action == 4
    assert again.config.listed_action_formats() == model.config.listed_action_formats()
    assert type(processor).from_pretrained(tmp_path).config_fields() == processor.config_fields()


def test_a_world_takes_actions_of_all_its_embodiments(parts):
    pytest.importorskip("gymnasium")
    from unified.roles.world import WorldEnv

    model, processor = parts
    frame = random_frames(1)[0]
    world = WorldEnv(model, processor, frame, "walker: go", num_inference_steps=1)
    world.action_space.seed(0)
    shown = set()
    for seed in range(12):
        world.reset(seed=seed)
        action = world.action_space.sample()
        shown.add(int(action[0]))
        world.step(action)
    assert shown == {0, 1, 2}
