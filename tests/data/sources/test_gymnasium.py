"""Any environment becomes episodes: what it rendered, what was done, in its own words."""

import json
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from data.dataset import EpisodeDataset
from data.episode import decode_png
from data.record import RecordArguments, main, record
from data.sources.gymnasium import GymnasiumRecorder, action_space_of
from data.sources.gymnasium import action_space_from as space_of
from tests.data.dot import Dot
from unified.media.action_space import ActionSpace
from unified.roles.world import action_space_from

DOT = "tests.data.dot:Dot-v0"


def recorder(policy="random", actions="discrete", **options):
    return GymnasiumRecorder(DOT, policy, options={"actions": actions}, **options)


def test_an_episode_shows_what_the_environment_rendered():
    segments = recorder("tests.data.dot:go_right", outcome="info:won").record(3).segments
    env = Dot(render_mode="rgb_array")
    env.reset(seed=3)
    frames = [env.render()]
    is_over = False
    while not is_over:
        _, _, is_over, _, _ = env.step(1)
        frames.append(env.render())
    recorded = [decode_png(s.frame) for s in segments if s.frame is not None]
    np.testing.assert_array_equal(recorded, frames)
    assert segments[0].text == "go right"
    assert [s.action for s in segments if s.kind == "action"] == ["action1"] * (len(frames) - 1)
    outcomes = [s.outcome for s in segments if s.kind == "frame"]
    assert outcomes == ["ongoing"] * (len(frames) - 1) + ["success"]


def test_a_seed_gives_the_same_episode_again():
    one, other = recorder(), recorder()
    other.record(1)
    assert one.record(2) == other.record(2)
    assert one.record(2) != one.record(3)


def test_random_actions_are_shown_and_not_imitated():
    for policy, weight in (("random", 0.0), ("tests.data.dot:go_right", 1.0)):
        actions = [s for s in recorder(policy).record(0).segments if s.kind == "action"]
        assert {s.weight for s in actions} == {weight}


@pytest.mark.parametrize("actions", ["box", "multi"])
def test_actions_of_numbers_are_read_back_by_the_space_that_was_written(actions, tmp_path):
    arguments = RecordArguments(
        env=DOT, out=tmp_path, episodes=3, max_steps=5, options={"actions": actions}
    )
    record(arguments)
    space = ActionSpace.from_config(tmp_path / "action_space.json")
    env = Dot(actions)
    for episode in EpisodeDataset(tmp_path):
        for action in episode.actions:
            assert action is not None
            numbers = np.array(json.loads(action))
            assert env.action_space.contains(numbers.astype(env.action_space.dtype))
            assert space.encode(action) == space.encode(numbers)


def test_a_policy_may_be_made_for_its_environment():
    segments = recorder("tests.data.dot:make_runner", "box").record(0).segments
    assert {s.action for s in segments if s.kind == "action"} == {"[0.0, 8.0]"}


def test_frames_are_resized_when_asked(tmp_path):
    segments = recorder(size=(28, 14)).record(0).segments
    assert decode_png(segments[1].frame or b"").shape == (28, 14, 3)


@pytest.mark.parametrize("size", [None, (28, 14)])
def test_a_view_stays_as_it_was_when_the_environment_renders_into_the_same_array(size):
    made = GymnasiumRecorder("tests.data.dot:ReusingDot-v0", size=size)
    made.environment.reset(seed=3)
    first = made.view()
    before = first.copy()
    made.environment.step(1)
    assert (made.view() != before).any()
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("size", [None, (28, 14)])
def test_numbers_between_0_and_1_are_no_picture(size):
    with pytest.raises(ValueError, match=r"FractionDot-v0 renders float64, not uint8 from 0 to"):
        GymnasiumRecorder("tests.data.dot:FractionDot-v0", size=size).record(0)


def test_the_success_is_what_info_says():
    segments = recorder("tests.data.dot:go_right", outcome="info:won").record(0).segments
    assert segments[-1].outcome == "success"
    with pytest.raises(ValueError, match="tells no 'happy' in info, only won"):
        recorder(outcome="info:happy").record(0)


def test_recording_resumes_with_the_missing_shards_only(tmp_path):
    arguments = RecordArguments(
        env=DOT, out=tmp_path / "data", episodes=5, episodes_per_shard=2, max_steps=4
    )
    record(arguments)
    files = sorted((tmp_path / "data" / "episodes").iterdir())
    before = [file.read_bytes() for file in files]
    files[1].unlink()
    (tmp_path / "data" / "info.json").unlink()
    record(arguments)
    assert [file.read_bytes() for file in files] == before
    with pytest.raises(ValueError, match="rerun that command to resume"):
        record(replace(arguments, max_steps=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "Nowhere-v0"}, "'Nowhere-v0' cannot be made"),
        ({"policy": "nobody"}, "'nobody' is neither 'random' nor module:function"),
        ({"policy": "tests.data.dot:nothing"}, "is neither 'random' nor"),
        ({"options": {"actions": "free"}}, "must be finite"),
        ({"options": {"actions": "dict"}}, "which are not recorded; wrap the environment"),
        (
            {"policy": "tests.data.dot:lost", "options": {"actions": "box"}},
            "seed 0, step 0: x0=nan",
        ),
        ({"episodes": 0}, "episodes=0 must be at least 1"),
        ({"max_steps": 0}, "max_steps=0 must be"),
        ({"seed": -1}, "seed=-1 must not be negative"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_leaves_no_episode(change, message, tmp_path):
    arguments = RecordArguments(env=DOT, out=tmp_path / "data", episodes=1)
    with pytest.raises(ValueError, match=message):
        record(replace(arguments, **change))
    assert not list(tmp_path.rglob("*.parquet"))


def test_actions_have_the_names_that_the_environment_gives_them():
    class Named(Dot):
        def get_action_meanings(self):
            return ["UP", "DOWN", "LEFT", "RIGHT"]

    assert action_space_of(Named()).tokens == ("<up>", "<down>", "<left>", "<right>")
    env = gymnasium.make(DOT)
    assert action_space_of(env).name == "Dot-v0"


def test_bad_input_ends_the_command_line_with_status_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["record", "--env", "No-v0", "--out", str(tmp_path / "d")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "data.record: environment 'No-v0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def act(", "SyntaxError: '\\(' was never closed"),
        ("act = nothing", "NameError: name 'nothing' is not defined"),
        ("act = 3", "'act' of written_policy is no function but int"),
    ],
)
def test_a_policy_whose_module_breaks_off_is_refused_in_words(
    source, message, tmp_path, monkeypatch
):
    (tmp_path / "written_policy.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "written_policy", raising=False)
    with pytest.raises(ValueError, match=f"'written_policy:act' is neither .*{message}"):
        recorder("written_policy:act")


def test_an_integer_in_an_array_is_no_discrete_action():
    with pytest.raises(ValueError, match=r"seed 0, step 0: An action is a name or an integer, got"):
        recorder("tests.data.dot:boxed").record(0)


def test_where_noise_acts_the_policys_action_is_still_what_is_learned():
    calm = recorder("tests.data.dot:go_right").record(0).segments
    noisy = recorder("tests.data.dot:go_right", noise=0.5, max_steps=30).record(0).segments
    assert all(s.target is None for s in calm)
    actions = [s for s in noisy if s.kind == "action"]
    assert {s.target or s.action for s in actions} == {"action1"}
    assert len({s.action for s in actions}) > 1
    with pytest.raises(ValueError, match=r"noise=1.0 must be at least 0 and below 1"):
        recorder(noise=1.0)


def test_a_still_camera_is_recorded_as_no_motion():
    for is_still, motion in ((True, (0.0, 0.0, 0.0)), (False, None)):
        segments = recorder(is_still=is_still).record(0).segments
        assert {s.motion for s in segments if s.kind == "action"} == {motion}


def test_options_of_the_environment_may_be_numbers_and_words(tmp_path):
    arguments = RecordArguments(env=DOT, out=tmp_path, options={"a": "3", "b": "true", "c": "box"})
    assert arguments.recorder()["options"] == {"a": 3, "b": True, "c": "box"}


@pytest.mark.parametrize(
    ("actions", "low", "high"),
    [
        ("signed", [-1], [1]),
        ("signed_multi", [-1, 2], [1, 5]),
        ("whole", [-8, -8], [8, 8]),
        ("short_multi", [0, 0], [2, 2]),
    ],
)
def test_integers_are_recorded_and_given_back_as_they_are_in_the_type_of_the_space(
    actions, low, high, tmp_path
):
    arguments = RecordArguments(
        env=DOT, out=tmp_path, episodes=9, max_steps=20, options={"actions": actions}
    )
    record(arguments)
    space = ActionSpace.from_config(tmp_path / "action_space.json")
    env = Dot(actions)
    made = action_space_from(space)
    assert made == env.action_space
    env.action_space.seed(0)
    taken: list[str] = []
    for index, episode in enumerate(EpisodeDataset(tmp_path)):
        env.reset(seed=index)
        env.action_space.seed(index)
        expected = [env.action_space.sample() for _ in episode.actions]
        given = [space.to_environment(action) for action in episode.actions]
        np.testing.assert_array_equal(given, expected)
        assert all(env.action_space.contains(action) for action in given)
        taken += given
    values = np.array(taken).reshape(len(taken), -1)
    assert (values.min(0) == low).all()
    assert (values.max(0) == high).all()
    with pytest.raises(ValueError, match="outside|not between"):
        space.encode(99 if actions == "signed" else [99, 2])


def test_buttons_come_back_in_the_type_of_their_space():
    buttons = gymnasium.spaces.MultiBinary(3)
    space = space_of(buttons, "pad")
    buttons.seed(0)
    for _ in range(8):
        pressed = buttons.sample()
        given = space.to_environment(pressed)
        np.testing.assert_array_equal(given, pressed)
        assert given.dtype == pressed.dtype
        assert buttons.contains(given)


def test_a_task_that_changes_is_told_again_where_it_does():
    env = "tests.data.dot:ShiftingDot-v0"
    segments = GymnasiumRecorder(env, "tests.data.dot:go_right").record(3).segments
    told = [(place, s.text) for place, s in enumerate(segments) if s.kind == "text"]
    assert told == [(0, "go right"), (4, "go on")]  # after the frame that said it
    named = GymnasiumRecorder(env, "tests.data.dot:go_right", task="my own").record(3).segments
    assert [s.text for s in named if s.kind == "text"] == ["my own"]


def test_actions_get_the_names_that_are_given(tmp_path):
    names = ["up", "down", "left", "right"]
    arguments = RecordArguments(
        env=DOT,
        out=tmp_path / "data",
        episodes=1,
        policy="tests.data.dot:go_right",
        action_names=names,
    )
    record(arguments)
    (episode,) = EpisodeDataset(tmp_path / "data")
    assert set(episode.actions) == {"down"}
    with pytest.raises(ValueError, match=r"3 different names \(up, down\, left\) for 4 actions"):
        record(replace(arguments, out=tmp_path / "other", action_names=names[:3]))
