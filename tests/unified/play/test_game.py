"""One player's episode: seats, time, words, and what is kept of it."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.unified.parts import babyai_parts, random_frames
from tests.unified.play.stage import ACTIONS, Counter, Player, house
from tests.unified.play.test_pictures import encoded
from unified.play import timeline
from unified.play.engine import Engine


def pixels(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


def test_an_episode_opens_with_the_levels_frame_and_task(player):
    (header, files), *_ = player.say("open", opening={"level": "Count", "seed": 3}, world="both")
    env = Counter()
    seen, _ = env.reset(seed=3)
    assert np.array_equal(pixels(files["view"]), seen["image"])
    assert np.array_equal(pixels(files["truth"]), seen["image"])
    assert header["task"] == "go to the red ball"
    assert header["seats"]["agents"] == ["human", "model", "random", "expert"]
    assert header["seats"]["worlds"] == ["dream", "real", "both"]


def test_an_input_takes_effect_on_the_next_frame_and_its_id_comes_back(player):
    player.open()
    ((header, files),) = player.say("step", action="left")
    assert (header["id"], header["action"], header["agent"]) == (2, "left", "human")
    assert header["parent"] == 0
    assert pixels(files["view"]).shape == (56, 56, 3)
    assert header["ms"]["model"] > 0


def test_reality_shows_what_the_environment_does_under_the_same_actions(player):
    player.open("real")
    env = Counter()
    env.reset(seed=3)
    for action in ("left", "forward", "toggle"):
        ((_, files),) = player.say("step", action=action)
        assert np.array_equal(pixels(files["view"]), env.step(ACTIONS.index(action))[0]["image"])


def test_both_worlds_take_the_same_actions_and_their_difference_is_told(player):
    player.open("both")
    env = Counter()
    env.reset(seed=3)
    ((header, files),) = player.say("step", action="right")
    truth = env.step(1)[0]["image"]
    assert np.array_equal(pixels(files["truth"]), truth)
    dream = pixels(files["view"])
    gap = np.abs(dream.astype(float) - truth).reshape(7, 8, 7, 8, 3).mean((1, 3, 4))
    assert header["wrong"] == np.flatnonzero(gap >= 2).tolist()


@pytest.mark.parametrize("world", ["dream", "real", "both"])
def test_a_rewound_world_repeats_itself_to_the_last_bit_and_makes_no_second_lane(player, world):
    player.open(world)
    actions = ["left", "forward", "right", "toggle", "forward"]
    first = [player.say("step", action=action)[0] for action in actions]
    player.say("goto", node=first[1][0]["node"])
    again = [player.say("step", action=action)[0] for action in actions[2:]]
    for (header, files), (earlier, kept) in zip(again, first[2:], strict=True):
        assert files == kept
        assert header["node"] == earlier["node"]
    assert len(player.timeline.nodes) == 6


def test_another_step_from_an_earlier_frame_is_a_fork_and_the_branch_stays(player):
    player.open("both")
    nodes = [player.step("left")["node"] for _ in range(3)]
    player.say("goto", node=nodes[0])
    fork = player.step("toggle")
    assert fork["parent"] == nodes[0]
    assert player.say("goto", node=nodes[2])[0][0]["node"] == nodes[2]
    assert player.step("left")["parent"] == nodes[2]


def test_seats_change_at_any_frame_without_a_reset(player):
    player.open("dream")
    player.step("left")
    player.say("seats", world="real")
    env = Counter()
    env.reset(seed=3)
    env.step(0)
    ((header, files),) = player.say("step", action="right")
    assert np.array_equal(pixels(files["view"]), env.step(1)[0]["image"])
    assert (header["world"], header["parent"]) == ("real", 1)
    player.say("seats", agent="expert", world="both")
    assert player.step()["action"] == ACTIONS[3 % 3]  # three entries: the seed and two actions
    player.say("seats", agent="random")
    assert player.step()["action"] in ACTIONS
    player.say("seats", agent="model")
    assert player.step()["agent"] == "model"
    assert player.step("left")["agent"] == "human"  # who acts, acts


def test_the_models_seat_does_what_its_agent_would(engine):
    player = Player(house(engine))
    player.open()
    player.say("seats", agent="model")
    moment = player.timeline.now.moment
    expected = engine.act(moment, 0.0, 0).result()
    header = player.step()
    assert (header["action"], header["said"]) == (expected.action, expected.said)


def test_a_new_task_is_heard_before_the_next_action_and_forgotten_by_going_elsewhere(player):
    player.open()
    player.step("left")
    player.say("instruct", words="open the door")
    header = player.step("left")
    assert header["heard"] == ["open the door"]
    assert header["task"] == "open the door"
    player.say("instruct", words="pick up the key")
    player.say("goto", node=1)
    assert player.step("right")["heard"] == []


def test_the_world_is_told_with_the_next_step_only(player):
    player.open()
    plain = player.say("step", action="left")[0]
    player.say("goto", node=0)
    player.say("tell", words="a box appears 1 ahead")
    told = player.say("step", action="left")[0]
    assert told[0]["told"] == "a box appears 1 ahead"
    assert told[1] != plain[1]
    assert player.step("left")["told"] is None


def test_a_model_without_words_of_the_world_and_reality_refuse_to_be_told():
    engine = Engine(*babyai_parts(world_token_id=None), steps=1)
    player = Player(house(engine))
    player.open()
    with pytest.raises(ValueError, match="--model babyai-world"):
        player.say("tell", words="a box appears")
    engine.close()


def test_reality_does_not_listen(player):
    player.open("real")
    with pytest.raises(ValueError, match="reality does not listen"):
        player.say("tell", words="a box appears")


def test_a_question_about_a_frame_changes_nothing(player):
    player.open()
    plain = player.say("step", action="left")[0][1]
    player.say("goto", node=0)
    for words in ({}, {"words": "what is in front of you"}):
        assert isinstance(player.say("ask", node=0, **words)[0][0]["words"], str)
    player.say("weigh", node=1)
    assert player.say("step", action="left")[0][1] == plain


def test_how_a_frame_was_drawn_ends_with_the_frame_also_after_words(player):
    player.open()
    player.say("instruct", words="open the door")
    player.say("tell", words="a box appears 1 ahead")
    ((header, files),) = player.say("step", action="left")
    ((_, steps),) = player.say("denoise", node=header["node"])
    assert list(steps) == ["1", "2"]
    assert np.array_equal(pixels(steps["2"]), pixels(files["view"]))
    with pytest.raises(ValueError, match="did not draw this frame"):
        player.say("denoise", node=0)


def test_a_world_opens_from_words_alone_and_from_a_picture_of_any_size(player):
    header = player.open(task="go to the red ball", seed=1)
    assert header["seats"]["worlds"] == ["dream"]
    large = Image.fromarray(random_frames(1)[0]).resize((160, 120))
    header = player.open(picture=encoded(large))
    assert header["note"] == "the picture is 120x160; it is cropped and scaled to 56x56"
    with pytest.raises(ValueError, match="nobody knows the truth"):
        player.say("seats", world="real")
    with pytest.raises(ValueError, match="nobody knows the truth"):
        player.open("both", task="go")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (("step", {"action": "fly"}), "'fly'"),
        (("step", {"action": {"a": 1}}), "no action|name or an integer"),
        (("step", {}), "it is your turn"),
        (("goto", {"node": 99}), "frame 99 is not on the timeline"),
        (("open", {"opening": {"level": "../etc"}}), "not offered; use one of Count, Other"),
        (("open", {"opening": {}}), "nothing to open"),
        (("hello", {"protocol": 1}), "hello was said before"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(player, said, message):
    player.open()
    before = player.say("step", action="left")[0][0]["node"]
    with pytest.raises(ValueError, match=message):
        player.say(said[0], **said[1])
    assert player.timeline.now.number == before
    assert player.step("left")["parent"] == before


def test_nothing_is_played_before_a_world_is_open(player):
    with pytest.raises(ValueError, match="open one first"):
        player.step("left")


def test_an_environment_that_does_not_repeat_itself_is_found_out(engine):
    player = Player(house(engine, lambda level: Counter(repeats=False)))
    player.open("real")
    player.step("left")
    player.say("goto", node=0)
    with pytest.raises(ValueError, match="does not repeat itself"):
        player.step("right")
    player.say("seats", world="dream")
    assert player.step("right")["world"] == "dream"


def test_an_episode_that_is_over_goes_on_from_an_earlier_frame_only(engine):
    player = Player(house(engine, lambda level: Counter(ends_after=2)))
    player.open("real")
    player.step("left")
    header = player.step("left")
    assert (header["outcome"], header["is_over"]) == ("success", True)
    with pytest.raises(ValueError, match="the episode is over; go back"):
        player.step("left")
    player.say("goto", node=1)
    assert player.step("right")["outcome"] == "success"


def test_old_branches_are_given_up_first_and_the_player_is_told(engine):
    player = Player(house(engine, most_bytes=600_000))
    player.open()
    for _ in range(4):
        player.step("left")
    player.say("goto", node=1)
    told = []
    for _ in range(40):
        for header, _ in player.say("step", action="right"):
            told += [header] if header["type"] == "forgot" else []
        if told and told[-1]["faded"]:
            break
    gone = [number for one in told for number in one["nodes"]]
    assert set(gone) == {2, 3, 4}
    assert player.timeline.num_bytes <= 600_000
    assert player.timeline.now.moment is not None
    player.say("goto", node=0)
    with pytest.raises(ValueError, match="its memory was given up"):
        player.step("left")


def test_one_goes_back_a_few_frames_however_little_memory_there_is(engine):
    player = Player(house(engine, most_bytes=1))
    player.open()
    node = [player.step("left")["node"] for _ in range(7)][-1]
    player.say("goto", node=node - 4)
    assert player.step("right")["parent"] == node - 4


def test_a_full_timeline_is_told_of(engine, monkeypatch):
    monkeypatch.setattr(timeline, "MOST_FRAMES", 3)
    player = Player(house(engine))
    player.open()
    player.step("left")
    player.step("left")
    with pytest.raises(ValueError, match="open another world"):
        player.step("left")


def test_a_recipe_plays_every_frame_again(engine):
    player = Player(house(engine))
    player.open("both")
    player.say("seats", agent="model")
    player.step()
    player.say("instruct", words="open the door")
    player.step()
    player.say("tell", words="a box appears 1 ahead")
    player.step("left")
    player.say("seats", world="real", agent="random")
    player.step()
    recipe = player.say("share")[0][0]["recipe"]
    other = Player(house(engine))
    *frames, (last, _) = other.say("replay", recipe=recipe)
    assert last == {"type": "replayed", "id": 1, "is_same": True}
    assert len(frames) == 5
    recipe["moves"][0]["action"] = "done" if recipe["moves"][0]["action"] != "done" else "left"
    assert other.say("replay", recipe=recipe)[-1][0]["is_same"] is False
    with pytest.raises(ValueError, match="start the server so"):
        other.say("replay", recipe={**recipe, "model": "another"})


def test_a_recording_holds_the_lane_as_it_was_played(player):
    player.open("both")
    player.say("seats", agent="expert")
    player.step()
    player.say("seats", agent="random")
    player.step()
    ((_, files),) = player.say("keep", what="recording")
    with zipfile.ZipFile(io.BytesIO(files["file"])) as archive:
        names = archive.namelist()
        assert sum(name.startswith("frames/") for name in names) == 3
        assert archive.testzip() is None
    ((_, files),) = player.say("keep", what="gif")
    assert files["file"].startswith(b"GIF89a")
    av = pytest.importorskip("av")
    ((header, files),) = player.say("keep", what="mp4")
    assert header["name"] == "played.mp4"
    with av.open(io.BytesIO(files["file"])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3


def test_a_prompt_is_answered_piece_by_piece_with_the_lines_that_repeat_it(player):
    frame = encoded(Image.fromarray(random_frames(1)[0]))
    items = [
        {"role": "task", "text": "go to the red ball"},
        {"role": "world", "picture": frame},
        {"role": "agent", "action": "left"},
    ]
    *replies, (done, _) = player.say("prompt", items=items, query="forward", seed=2)
    header, files = replies[0]
    assert (header["role"], header["kind"]) == ("world", "frame")
    assert pixels(files["view"]).shape == (56, 56, 3)
    assert done["shell"].startswith("unified prompt --model tiny --task 'go to the red ball'")
    assert "query='forward', seed=2" in done["python"]
    compile(done["python"], "reply", "exec")
    with pytest.raises(ValueError, match="out of turn|only|agent|world"):
        player.say("prompt", items=[{"role": "task", "action": "left"}])


def test_a_closed_game_closes_its_environment(engine):
    made = []

    def make(level):
        made.append(Counter())
        return made[-1]

    player = Player(house(engine, make))
    player.open("real")
    player.open("real")
    assert made[0].is_closed
    player.game.close()
    assert made[1].is_closed
