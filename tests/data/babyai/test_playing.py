"""BabyAI as the player sits it in the world's seat."""

import asyncio
import io
import json
import zipfile

import numpy as np
import pytest

from data.babyai.playing import LEVELS, environment
from data.dataset import EpisodeDataset
from data.sources.jsonl import import_jsonl
from tests.unified.parts import babyai_parts, ongoing
from unified.media.samples import sample
from unified.play.engine import Engine
from unified.play.game import Game, House
from unified.play.protocol import read_request, unpack
from unified.play.reality import BABYAI, Reality, maker_of

SIZE = (56, 56)


@pytest.mark.parametrize("level", ["OpenDoor", "GoToLocal"])
def test_the_projects_environment_shows_what_minigrids_own_wrapper_shows(level):
    ours, plain = Reality(environment, level, SIZE), Reality(maker_of(BABYAI), level, SIZE)
    (first, task), (expected, told) = ours.reset(1_000_000), plain.reset(1_000_000)
    shipped = sample(level)
    assert task == told == shipped.task
    assert np.array_equal(first.pixels, np.array(shipped.frame))
    assert np.array_equal(first.pixels, expected.pixels)
    for action in (0, 2, 5, 1, 2):
        seen, other = ours.step(action), plain.step(action)
        assert np.array_equal(seen.pixels, other.pixels)
        assert seen.outcome == other.outcome


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_that_is_offered_is_made_and_its_expert_acts(level):
    world = Reality(environment, level, SIZE)
    world.reset(1_000_001)
    assert world.expert_action() in range(7)


def test_the_expert_succeeds_also_after_somebody_else_acted_and_after_going_back():
    world = Reality(environment, "GoToRedBall", SIZE)
    seen, _ = world.reset(1_000_002)
    for action in (0, 2, 1):
        seen = world.step(action)
    world.travel([0, 2])
    for _ in range(40):
        action = world.expert_action()
        if seen.outcome != "ongoing" or action is None:
            break
        seen = world.step(action)
    assert seen.outcome == "success"


def test_travelling_back_and_forth_shows_each_frame_again():
    world = Reality(environment, "PickupLoc", SIZE)
    frames = [world.reset(1_000_003)[0].pixels]
    path = [2, 0, 2, 1, 2, 3]
    frames += [world.step(action).pixels for action in path]
    for length in (2, 5, 0, 6, 3):
        assert np.array_equal(world.travel(path[:length]).pixels, frames[length])


def test_any_gymnasium_environment_that_is_rendered_sits_in_the_seat_in_the_models_size():
    pytest.importorskip("pygame")
    world = Reality(maker_of("CartPole-v1"), None, (40, 60))
    first, task = world.reset(0)
    assert (first.pixels.shape, task) == ((40, 60, 3), None)
    frames = [world.step(action).pixels for action in (1, 1, 0)]
    assert np.array_equal(world.travel([1, 1]).pixels, frames[1])
    assert not world.has_expert
    while world.step(1).outcome == "ongoing":
        pass
    assert len(world.actions) < 20
    world.close()


def test_environments_that_there_are_not_are_told_of_in_words():
    with pytest.raises(ValueError, match="level 'Moon' is unknown; use one such as GoToLocal"):
        environment("Moon")
    with pytest.raises(ValueError, match="cannot be made"):
        maker_of("NoSuch-v0")(None)
    with pytest.raises(ValueError, match="importable|imported from here"):
        maker_of("no_such_module:thing")


def test_what_was_played_becomes_data_that_training_reads(tmp_path):
    engine = Engine(*ongoing(*babyai_parts()), steps=1)
    game = Game(House(engine, "tiny", environment, LEVELS))

    def say(**message):
        async def answers():
            request = read_request(json.dumps({"id": 1, **message}))
            return [answer async for answer in game.answer(request)]

        return asyncio.run(answers())

    say(type="open", opening={"level": "GoToLocal", "seed": 1_000_004}, world="both")
    say(type="step", action="left")
    say(type="seats", agent="expert")
    say(type="step")
    say(type="instruct", words="go to the red ball")
    say(type="step")
    (told,) = say(type="keep", what="recording")
    engine.close()
    assert isinstance(told, bytes)
    with zipfile.ZipFile(io.BytesIO(unpack(told)[1]["file"])) as archive:
        archive.extractall(tmp_path / "played")
    played, data = tmp_path / "played", tmp_path / "data"
    import_jsonl(played / "episodes.jsonl", data, actions=played / "action_space.json")
    dataset = EpisodeDataset(data)
    (episode,) = dataset
    assert game.timeline is not None
    lane = game.timeline.now.lane()
    assert episode.task == lane[0].task
    assert episode.actions == [node.action for node in lane[1:]]
    assert [words.text for words in episode.said[2]] == ["go to the red ball"]
    assert episode.action_weights == [1.0, 1.0, 1.0]
    for frame, node in zip(dataset.frames(0), lane, strict=True):
        assert node.truth is not None
        assert np.array_equal(frame, node.truth)
