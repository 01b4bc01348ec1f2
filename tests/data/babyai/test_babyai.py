import re
from collections import Counter
from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.world_object import Ball, Box, Door, Key
from minigrid.utils.baby_ai_bot import BabyAIBot
from minigrid.wrappers import RGBImgPartialObsWrapper

from data.babyai.behaviours import random_action
from data.babyai.expert import Expert
from data.babyai.levels import CLUTTER
from data.babyai.recorder import MAX_STEPS, Recorder
from data.babyai.views import ACTIONS, render_view, tile_table
from data.babyai.words import caption_of
from data.episode import decode_png

LEVELS = ["GoToRedBall", "GoToLocal", "PickupLoc", "OpenDoor"]


def make(level) -> Any:
    return gymnasium.make(f"BabyAI-{level}-v0", disable_env_checker=True).unwrapped


def view_with(*cells, carrying=None):
    """A view of empty cells, but for (ahead, right, object) and what the agent carries."""
    view = np.zeros((7, 7, 3), np.uint8)
    view[..., 0] = OBJECT_TO_IDX["empty"]
    for ahead, right, cell in cells:
        view[3 + right, 6 - ahead] = cell.encode()
    if carrying is not None:
        view[3, 6] = carrying.encode()
    return view


@pytest.fixture(scope="module")
def records():
    return {level: [Recorder(level).record(seed) for seed in range(40)] for level in LEVELS}


@pytest.mark.parametrize("level", [*LEVELS, "UnlockLocal", "Synth"])
def test_frames_are_bit_equal_to_minigrids_wrapper(level):
    env: Any = RGBImgPartialObsWrapper(make(level), tile_size=8)
    rng = np.random.default_rng(0)
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        for _ in range(25):
            view = env.unwrapped.gen_obs()["image"]
            np.testing.assert_array_equal(render_view(view), observation["image"])
            observation, *_ = env.step(random_action(view, rng))


def test_the_frame_shows_what_the_agent_carries():
    tiles = tile_table()[1].reshape(-1, len(COLOR_TO_IDX), 3, 8, 8, 3)
    kinds = [OBJECT_TO_IDX[name] for name in ("key", "ball", "box")]
    carried = [tiles[kind, colour, 0].tobytes() for kind in kinds for colour in range(6)]
    assert len({*carried, tiles[OBJECT_TO_IDX["empty"], 0, 0].tobytes()}) == 19


def test_action_t_leads_from_frame_t_to_frame_t_plus_1(records):
    for level, episodes in records.items():
        env = make(level)
        for episode in episodes:
            view = env.reset(seed=episode.seed)[0]["image"]
            reward, ended = 0.0, False
            assert episode.segments[0].text == env.mission
            for segment in episode.segments[1:]:
                if segment.role == "world" and segment.kind == "text":
                    break  # what the world does by itself is not the environment's
                if segment.kind == "action":
                    assert not ended
                    action = ACTIONS.index(segment.action)
                    observation, reward, terminated, truncated, _ = env.step(action)
                    view, ended = observation["image"], terminated or truncated
                if segment.kind == "frame":
                    np.testing.assert_array_equal(decode_png(segment.frame), render_view(view))
                    assert (segment.outcome == "success") == (reward > 0)
                    assert (segment.outcome == "ongoing") == (not ended)
                    assert segment.caption in (None, caption_of(view))


def test_motions_lead_from_where_the_agent_began_to_where_it_ends():
    for level, seeds in (("OpenDoor", range(6)), (CLUTTER, range(4))):
        recorder = Recorder(level)
        for seed in seeds:
            recorder.env.reset(seed=seed)
            x, y = recorder.env.agent_pos
            heading = recorder.env.agent_dir * np.pi / 2
            for segment in recorder.record(seed).segments:
                if segment.kind != "action":
                    continue
                assert segment.motion is not None
                turn, ahead, right = segment.motion
                heading += turn
                x += ahead * np.cos(heading) - right * np.sin(heading)
                y += ahead * np.sin(heading) + right * np.cos(heading)
            assert (round(x), round(y)) == tuple(recorder.env.agent_pos)
            assert round(heading / (np.pi / 2)) % 4 == recorder.env.agent_dir


def test_an_episode_is_frames_with_one_action_between_two(records):
    for episode in (one for episodes in records.values() for one in episodes):
        kinds = [segment.kind for segment in episode.segments if segment.kind != "text"]
        assert kinds == ["frame", *["action", "frame"] * (len(kinds) // 2)]


def test_an_episode_does_not_depend_on_those_recorded_before(records):
    for level, episodes in records.items():
        assert Recorder(level).record(17) == episodes[17]


def test_experts_follow_the_bot_and_others_are_cut_off(records):
    everyone = [episode for episodes in records.values() for episode in episodes]
    for episode in everyone:
        actions = [segment for segment in episode.segments if segment.kind == "action"]
        if episode.behaviour == "expert":
            assert all(segment.action == segment.target for segment in actions)
            assert episode.segments[-1].outcome == "success"
        assert len(actions) <= MAX_STEPS.get(episode.behaviour, len(actions))
    assert {episode.behaviour for episode in everyone} == {"expert", "noisy", "random", "handle"}


def test_thoughts_are_short_lower_case_words(records):
    texts = {
        segment.text
        for episodes in records.values()
        for episode in episodes
        for segment in episode.segments
        if segment.kind == "text" and segment.role == "agent"
    }
    assert {"go to the red ball 2 ahead", "explore"} <= texts
    assert all(text == text.lower() and len(text.split()) <= 12 for text in texts)


def test_a_thought_says_where_in_the_view_its_object_lies(records):
    places = 0
    for episode in (episode for episodes in records.values() for episode in episodes):
        caption = None
        for segment in episode.segments:
            if segment.kind == "frame":
                caption = segment.caption
            elif segment.kind == "text" and segment.role == "agent" and caption is not None:
                match = re.fullmatch(r"go (?:next )?to the (.*(?:ahead|left|right))", segment.text)
                # A caption names the five nearest objects; fewer means that it names all.
                if match and caption.count(",") < 4:
                    assert match[1] in caption
                    places += 1
    assert places > 5


@pytest.mark.parametrize("level", ["PickupLoc", "OpenDoor", "UnlockLocal", "PutNextLocal"])
def test_the_expert_advises_what_the_unchanged_bot_advises(level):
    env, rng = make(level), np.random.default_rng(1)
    for seed in range(5):
        view, previous = env.reset(seed=seed)[0]["image"], None
        expert, bot = Expert(env), BabyAIBot(env)
        for _ in range(20):
            suggestion, _ = expert.suggest(view, previous)
            if suggestion is None:
                break
            advice: Any = bot.replan(previous)
            assert suggestion == ACTIONS[int(advice)]
            previous = int(rng.integers(6)) if rng.random() < 0.3 else ACTIONS.index(suggestion)
            observation, _, terminated, *_ = env.step(previous)
            view = observation["image"]
            if terminated:
                break


def test_after_a_box_is_opened_the_expert_falls_silent_for_good():
    env = make("GoToRedBall")
    env.reset(seed=0)
    env.grid.set(*env.front_pos, Box("blue"))
    expert = Expert(env)
    assert expert.suggest(env.gen_obs()["image"], None)[0] is not None
    toggle = ACTIONS.index("toggle")
    view = env.step(toggle)[0]["image"]
    assert expert.suggest(view, toggle) == (None, None)
    assert expert.suggest(view, ACTIONS.index("left")) == (None, None)


def test_actions_without_a_suggestion_are_not_imitated(monkeypatch):
    monkeypatch.setattr(
        "data.babyai.recorder.BEHAVIOURS", {"expert": 0.0, "noisy": 0.0, "random": 1.0}
    )
    monkeypatch.setattr(Expert, "suggest", lambda self, view, previous: (None, None))
    episode = Recorder("GoToRedBall").record(0)
    actions = [segment for segment in episode.segments if segment.kind == "action"]
    assert actions
    assert all(segment.target is None and segment.weight == 0.0 for segment in actions)


def test_clutter_shows_again_what_was_long_out_of_sight():
    recorder = Recorder(CLUTTER)
    episode = recorder.record(3)
    assert episode.behaviour == "wander"
    assert episode.num_frames == MAX_STEPS["wander"] + 1
    inside = [recorder.env.grid.get(x, y) for x in range(1, 7) for y in range(1, 7)]
    things = [(cell.type, cell.color) for cell in inside if cell]
    assert len(things) >= 8
    assert len(set(things)) >= 5
    frames = [segment.frame for segment in episode.segments if segment.kind == "frame"]
    returns = [t for t in range(4, len(frames)) if frames[t] in frames[: t - 3]]
    assert len(returns) >= 3


def test_who_wanders_about_in_clutter_opens_boxes_and_moves_things():
    recorder = Recorder(CLUTTER)
    actions: Counter[str | None] = Counter()
    for seed in range(24):
        actions.update(segment.action for segment in recorder.record(seed).segments)
    moves = actions["left"] + actions["right"] + actions["forward"]
    assert min(actions["toggle"], actions["pickup"], actions["drop"]) >= 3
    assert actions["done"] == 0
    assert moves > 0.75 * (actions.total() - actions[None])


def test_a_plan_without_end_is_given_up(monkeypatch):
    env = make("GoToRedBall")
    view = env.reset(seed=0)[0]["image"]
    expert = Expert(env)
    monkeypatch.setattr(type(expert.stack[0]), "replan_before_action", lambda self: None)
    assert expert.suggest(view, None) == (None, None)


def test_running_out_of_time_is_a_failure():
    recorder = Recorder("GoToRedBall")
    step = recorder.env.step
    recorder.env.step = lambda action: (step(action)[0], 0.0, False, True, {})
    assert recorder.record(0).segments[-1].outcome == "failure"


def test_captions_name_the_five_nearest_objects_in_order():
    view = view_with(
        (4, 0, Key("green")),
        (2, -1, Ball("red")),
        (0, 2, Box("grey")),
        (2, 0, Door("blue", is_open=True)),
        (1, 2, Ball("yellow")),
        (5, 0, Key("blue")),
    )
    assert caption_of(view) == (
        "i see a grey box 2 right, an open blue door 2 ahead, a yellow ball 1 ahead and 2 right, "
        "a red ball 2 ahead and 1 left, a green key 4 ahead"
    )
    view = view_with((2, -1, Ball("red")), (2, 1, Ball("blue")), carrying=Key("grey"))
    assert caption_of(view) == (
        "i see a red ball 2 ahead and 1 left, a blue ball 2 ahead and 1 right, carrying a grey key"
    )


def test_captions_tell_the_state_of_doors_and_of_an_empty_view():
    assert caption_of(view_with()) == "i see nothing"
    assert caption_of(view_with((1, 0, Door("red")))) == "i see a closed red door 1 ahead"
    locked = view_with((1, 0, Door("red", is_locked=True)))
    assert caption_of(locked) == "i see a locked red door 1 ahead"
    assert caption_of(view_with(carrying=Box("red"))) == "i see nothing, carrying a red box"


def test_random_actions_prefer_what_has_an_effect():
    rng = np.random.default_rng(0)

    def share(view, name):
        return np.mean([ACTIONS[random_action(view, rng)] == name for _ in range(400)])

    assert share(view_with((1, 0, Key("red"))), "pickup") > 0.3
    assert share(view_with((1, 0, Door("red"))), "toggle") > 0.3
    assert share(view_with(carrying=Key("red")), "drop") > 0.1
    assert 0 < share(view_with(), "done") < 0.05


def test_an_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'GoToBlueBall' is unknown.*GoToRedBall"):
        Recorder("GoToBlueBall")
