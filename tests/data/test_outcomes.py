"""How an episode ended is what a rule says, and unknown where nobody chose one."""

from collections import Counter

import numpy as np
import pytest

from data.dataset import EpisodeDataset
from data.inspect import summary
from data.outcomes import OutcomeRule, Step, ends_text, ends_warning
from data.record import RecordArguments, record
from data.sources.gymnasium import GymnasiumRecorder

MODULE = "tests.data.dot"


class Limited:
    """What an outcome rule asks of an environment."""

    class Spec:
        max_episode_steps = 3

    spec = Spec()


def told(rule, steps, env=None):
    """Outcomes after steps of (reward, terminated, truncated)."""
    judge = OutcomeRule(rule).begin(env)
    return [judge(reward, over, late, {"won": reward > 5}) for reward, over, late in steps]


GOES_ON = (0.0, False, False)


@pytest.mark.parametrize(
    ("rule", "last", "outcome"),
    [
        ("none", (1.0, True, False), None),
        ("none", (1.0, False, True), None),
        ("none", (1.0, False, False), "ongoing"),
        ("reward>0", (1.0, True, False), "success"),
        ("reward>0", (1.0, False, False), "success"),  # paid one step early
        ("reward>1", (1.0, True, False), "failure"),
        ("reward>=1", (1.0, True, False), "success"),
        ("reward>0", (0.0, False, True), "ongoing"),
        ("return>=-110", (-9.0, True, False), "success"),
        ("return>=-110", (-200.0, False, True), "failure"),
        ("return>=-110", (-9.0, False, False), "ongoing"),
        ("terminated", (-1.0, True, False), "success"),  # MountainCar arrives
        ("terminated", (-1.0, False, True), "ongoing"),
        ("truncated", (1.0, True, False), "failure"),  # CartPole fell
        ("truncated", (1.0, False, True), "success"),
        ("info:won", (9.0, False, False), "success"),
        ("info:won", (1.0, True, False), "failure"),
        (f"{MODULE}:judged", (3.0, False, False), "success"),
        (f"{MODULE}:judged", (2.0, True, False), None),
    ],
)
def test_an_outcome_is_what_its_rule_says(rule, last, outcome):
    assert told(rule, [GOES_ON, last])[-1] == outcome


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (True, "success"),
        (np.True_, "success"),
        (1, "success"),
        (1.0, "success"),
        (np.array([1]), "success"),
        ([True], "success"),
        (False, "failure"),
        (0.0, "failure"),
        (np.array(False), "failure"),
        (None, None),
    ],
)
def test_a_success_in_info_is_true_or_false_or_unknown(value, outcome):
    judge = OutcomeRule("info:won").begin()
    assert judge(0.0, True, False, {"won": value}) == outcome


@pytest.mark.parametrize("value", [float("nan"), "False", "true", 0.5, 2, [], [True, False], {}])
def test_a_success_that_is_neither_true_nor_false_is_refused(value):
    judge = OutcomeRule("info:won").begin()
    with pytest.raises(ValueError, match="outcome 'info:won': 'won' in info is .*neither true nor"):
        judge(0.0, True, False, {"won": value})


def test_the_return_is_the_sum_of_all_rewards():
    steps = [(1.0, False, False), (2.0, False, False), (0.5, True, False)]
    assert told("return>=3.5", steps) == ["ongoing", "ongoing", "success"]
    assert told("return>3.5", steps)[-1] == "failure"


def test_an_end_with_both_flags_is_one_of_time_if_the_time_limit_says_so():
    both = (0.0, True, True)
    assert told("terminated", [GOES_ON, GOES_ON, both], Limited())[-1] == "ongoing"
    assert told("terminated", [GOES_ON, both], Limited())[-1] == "success"
    counted = type("Counted", (), {"max_steps": np.int64(2)})()
    assert told("terminated", [GOES_ON, both], counted)[-1] == "ongoing"
    assert told("terminated", [both], counted)[-1] == "success"
    assert told("terminated", [GOES_ON, GOES_ON, both])[-1] == "success"

    class Game:
        game = type("Game", (), {"is_episode_timeout_reached": lambda self: True})()

    assert told("truncated", [both], Game())[-1] == "success"
    assert told("info:won", [both], Game())[-1] == "ongoing"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("won", "outcome 'won' is unknown; use info:KEY, reward>X"),
        ("info:", "is unknown"),
        ("reward>much", "'much' is no number"),
        ("return>=nan", "'nan' is no number"),
        ("tests.nowhere:judged", "no module:function that can be imported"),
        ("math:pi", "'pi' of math is no function but float"),
    ],
)
def test_a_rule_that_does_not_exist_is_refused_before_anything_is_recorded(rule, message, tmp_path):
    arguments = RecordArguments(env=f"{MODULE}:Dot-v0", out=tmp_path / "data", outcome=rule)
    with pytest.raises(ValueError, match=message):
        record(arguments)
    assert not (tmp_path / "data").exists()


def test_what_a_function_gives_has_to_be_an_outcome():
    judge = OutcomeRule(f"{MODULE}:misjudged").begin()
    with pytest.raises(ValueError, match=r"gave 'won'; give None or one of ongoing"):
        judge(0.0, True, False, {})


def test_a_function_that_takes_no_step_is_refused_by_name():
    judge = OutcomeRule("math:sqrt").begin()
    with pytest.raises(
        ValueError, match=r"'math:sqrt' cannot judge a data.outcomes.Step \(must be"
    ):
        judge(0.0, True, False, {})


def test_without_a_rule_the_environments_threshold_counts_and_else_nothing_is_known():
    policy = f"{MODULE}:go_right"
    plain = GymnasiumRecorder(f"{MODULE}:Dot-v0", policy).record(3)
    assert plain.segments[-1].outcome is None
    limited = GymnasiumRecorder(f"{MODULE}:LimitedDot-v0", policy).record(3)
    assert limited.num_frames == 3
    assert limited.segments[-1].outcome == "failure"  # time was over, nothing was gained
    assert GymnasiumRecorder("CartPole-v1").record(0).segments[-1].outcome == "failure"
    mountain = GymnasiumRecorder("MountainCar-v0").record(0).segments[-1].outcome
    assert mountain == "failure"  # 200 steps, a return of -200


@pytest.mark.parametrize(
    ("env", "rule", "told"),
    [
        ("Dot-v0", None, "unknown, as no --outcome was chosen and the environment has no reward_"),
        ("LimitedDot-v0", None, "return>=0.5, the environment's own reward_threshold; --outcome"),
        ("LimitedDot-v0", "info:won", "info:won\n"),
    ],
)
def test_a_recording_says_where_its_outcomes_come_from(env, rule, told, tmp_path, capsys):
    record(RecordArguments(env=f"{MODULE}:{env}", out=tmp_path, episodes=1, outcome=rule))
    assert f"outcomes: {told}" in capsys.readouterr().out


def test_unknown_ends_have_no_weight(tmp_path):
    record(RecordArguments(env=f"{MODULE}:Dot-v0", out=tmp_path, episodes=2, max_steps=30))
    dataset = EpisodeDataset(tmp_path)
    ends = [dataset.sequence(i, pixels=True).segments[-1].outcome for i in range(2)]
    assert None in ends


def test_ends_are_counted_and_ends_that_are_all_alike_are_warned_of(tmp_path, capsys):
    arguments = RecordArguments(
        env=f"{MODULE}:Dot-v0",
        out=tmp_path,
        episodes=3,
        policy=f"{MODULE}:go_right",
        outcome="info:won",
    )
    record(arguments)
    warning = "all episodes end alike, so nothing tells success from failure"
    assert f"ends: success (3)\nwarning: {warning}" in capsys.readouterr().out
    rows = dict(summary(EpisodeDataset(tmp_path)))
    assert (rows["ends"], rows["warning"]) == ("success (3)", warning)


def test_ends_that_differ_are_counted_by_kind():
    ends = Counter({"unknown": 1, "success": 1200, "failure": 2})
    assert ends_text(ends) == "success (1,200), failure (2), unknown (1)"
    assert ends_warning(ends) is None
    assert "--outcome says it" in str(ends_warning(Counter({"unknown": 2})))
    assert "cut off" in str(ends_warning(Counter({"ongoing": 2})))


def test_a_step_says_what_the_environment_said():
    seen: list[Step] = []
    rule = OutcomeRule(f"{MODULE}:judged")
    object.__setattr__(rule, "_judge", lambda step: seen.append(step))
    judge = rule.begin()
    judge(1.0, False, False, {"a": 1}, "here")
    judge(2.0, True, False, {})
    assert seen[0] == Step("here", 1.0, 1.0, False, False, {"a": 1})
    assert (seen[1].total, seen[1].terminated) == (3.0, True)
