"""What is no seed, snapshot, history or conversation is refused in the user's words."""

import numpy as np
import pytest

from tests.unified.parts import babyai_parts, random_frames
from unified import Reel, WorldVectorEnv, sample
from unified.model.collator import Collator
from unified.roles.simulation import History


@pytest.fixture(scope="module")
def worlds():
    return WorldVectorEnv(*babyai_parts(), num_envs=2, frame=random_frames(1)[0], task="go")


def test_a_seed_is_a_whole_number_of_any_library(worlds):
    frames = worlds.reset(seed=np.int64(3))[0]
    assert np.array_equal(frames, worlds.reset(seed=3)[0])
    with pytest.raises(ValueError, match="seed=1.5 is no seed"):
        worlds.reset(seed=1.5)
    with pytest.raises(ValueError, match="seed='x' must be a whole number"):
        sample(seed="x")  # pyright: ignore[reportArgumentType]


def test_only_a_snapshot_is_restored(worlds):
    with pytest.raises(ValueError, match=r"int is no snapshot; give what snapshot\(\) returned"):
        worlds.restore(5)


def test_a_history_has_several_frames():
    with pytest.raises(ValueError, match="are one frame; give a list of them"):
        History(random_frames(1)[0], [])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("messages", [5, [[], []], ["hello"]])
def test_a_reel_is_of_one_conversation(messages):
    with pytest.raises(ValueError, match="one list of messages"):
        Reel.of(messages)


def test_a_collator_takes_conversations():
    model, processor = babyai_parts()
    with pytest.raises(ValueError, match="a row is a dict; give conversations as `Sequence`"):
        Collator(processor, model.config)([{"role": "task", "content": "go"}])  # pyright: ignore[reportArgumentType]
