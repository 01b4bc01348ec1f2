"""How an episode stands after a step: never guessed, but told by a rule that somebody chose.

Rewards mean something else in every environment: a CartPole that fell got one, a MountainCar that
arrived got none. So a success is what the rule says, and without a rule the end is unknown.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.episode import OUTCOMES, UNKNOWN
from unified.command import named_function

NONE = "none"
FORMS = "info:KEY, reward>X, return>=X, terminated, truncated, module:function or none"
_NUMBERS = re.compile(r"(reward|return)\s*(>=|>)\s*(\S+)")


@dataclass(frozen=True, slots=True)
class Step:
    """What an environment said after a step.

    Attributes:
        observation: What it shows.
        reward: Of this step.
        total: Rewards of the episode up to here.
        terminated: The task's own end was reached.
        truncated: The time was over.
        info: Whatever else is known.
    """

    observation: Any
    reward: float
    total: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class OutcomeRule:
    """Where the outcome of a step comes from.

    - `info:KEY`, `reward>X` (or `>=`): a success as soon as it holds; a termination without it is a
      failure, and an episode whose time was over is ongoing. What `info` holds is true, false, 1 or
      0, see `is_success`; None there is unknown.
    - `return>=X` (or `>`): held against the sum of rewards when the environment ends the episode;
      else a failure.
    - `terminated`: a termination is a success; an episode whose time was over is ongoing.
    - `truncated`: whoever is still there when the time is over has a success; a termination is a
      failure.
    - `module:function`: takes a `Step` and gives one of the outcomes, or None if it is unknown.
    - `none`: how episodes end is unknown.

    Args:
        text: One of the above.

    Raises:
        ValueError: If it is none of them.
    """

    text: str
    _judge: Callable[[Step], str | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_judge", self._found())

    def _found(self) -> Callable[[Step], str | None]:
        kind, _, rest = self.text.partition(":")
        if self.text == NONE:
            return lambda step: None if step.terminated or step.truncated else "ongoing"
        if self.text == "terminated":
            return lambda step: "success" if step.terminated else "ongoing"
        if self.text == "truncated":
            return lambda step: (
                "success" if step.truncated else "failure" if step.terminated else "ongoing"
            )
        numbers = _NUMBERS.fullmatch(self.text)
        if numbers is not None:
            return self._of_numbers(*numbers.groups())
        if kind == "info" and rest:
            return lambda step: _reached(self._told(step.info, rest), step)
        if kind and rest:
            return self._of_function(kind, rest)
        raise ValueError(f"outcome {self.text!r} is unknown; use {FORMS}")

    def _of_numbers(self, what: str, sign: str, text: str) -> Callable[[Step], str | None]:
        try:
            least = float(text)
        except ValueError:
            least = float("nan")
        if least != least:
            raise ValueError(f"outcome {self.text!r}: {text!r} is no number; use {FORMS}")

        def holds(value: float) -> bool:
            return value > least if sign == ">" else value >= least

        if what == "reward":
            return lambda step: _reached(holds(step.reward), step)
        return lambda step: (
            "ongoing"
            if not (step.terminated or step.truncated)
            else "success"
            if holds(step.total)
            else "failure"
        )

    def _told(self, info: Mapping[str, Any], key: str) -> bool | None:
        if key not in info:
            raise ValueError(
                f"outcome {self.text!r}: the environment tells no {key!r} in info, only "
                f"{', '.join(map(str, info)) or 'nothing'}; choose another --outcome: {FORMS}"
            )
        try:
            return is_success(info[key])
        except ValueError as error:
            raise ValueError(
                f"outcome {self.text!r}: {key!r} in info {error}; choose another --outcome: {FORMS}"
            ) from error

    def _of_function(self, module: str, name: str) -> Callable[[Step], str | None]:
        try:
            found = named_function(module, name)
        except ValueError as error:
            raise ValueError(
                f"outcome {self.text!r} is no module:function that can be imported ({error}); "
                f"use {FORMS}"
            ) from error

        def judge(step: Step) -> str | None:
            try:
                outcome = found(step)
            except TypeError as error:
                raise ValueError(
                    f"outcome {self.text!r} cannot judge a data.outcomes.Step ({error}); name a "
                    "function that takes one"
                ) from error
            if outcome is not None and not (isinstance(outcome, str) and outcome in OUTCOMES):
                raise ValueError(
                    f"{self.text} gave {outcome!r}; give None or one of {', '.join(OUTCOMES)}"
                )
            return outcome

        return judge

    def begin(self, env: Any = None) -> "Judge":
        """Judges the steps of one episode.

        Args:
            env: The environment, which may say whether its time is over.
        """
        return Judge(self, env)


def is_success(value: Any) -> bool | None:
    """What a record says of a success: true, false, or None where it says nothing.

    Args:
        value: A bool, 0 or 1, an array or a list of one of them, or None.

    Raises:
        ValueError: If it is anything else, such as a word, NaN or 0.5: nothing is guessed.
    """
    told = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    while isinstance(told, list | tuple) and len(told) == 1:
        told = told[0]
    if told is None:
        return None
    if not isinstance(told, bool | int | float) or told not in (0, 1):
        raise ValueError(f"is {value!r}, which is neither true nor false")
    return bool(told)


def _reached(is_there: bool | None, step: Step) -> str | None:
    """An outcome of what may come before an end; None if nobody says whether it did."""
    if is_there is None:
        return None
    return "success" if is_there else "failure" if step.terminated else "ongoing"


class Judge:
    """The outcome after every step of an episode; see `OutcomeRule.begin`."""

    def __init__(self, rule: OutcomeRule, env: Any) -> None:
        self.rule, self.env = rule, env
        self.steps, self.total = 0, 0.0

    def __call__(
        self,
        reward: float,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any],
        observation: Any = None,
    ) -> str | None:
        """What a step led to: ongoing, success, failure, or None if nobody knows.

        An end with both flags is one of time, if the environment's time limit says so.
        """
        self.steps += 1
        self.total += reward
        if terminated and truncated and self._is_late(info):
            terminated = False
        step = Step(observation, reward, self.total, terminated, truncated, info)
        return self.rule._judge(step)

    def _is_late(self, info: Mapping[str, Any]) -> bool:
        """Whether a time limit says so: gymnasium's, the environment's, or a game's."""
        inner = getattr(self.env, "unwrapped", self.env)
        spec = getattr(self.env, "spec", None)
        limits = getattr(spec, "max_episode_steps", None), getattr(inner, "max_steps", None)
        game_says = getattr(getattr(inner, "game", None), "is_episode_timeout_reached", None)
        return (
            any(isinstance(limit, int | np.integer) and 0 < limit <= self.steps for limit in limits)
            or bool(is_success(info.get("TimeLimit.truncated")))
            or bool(game_says and game_says())  # ViZDoom
        )


def told_rule(chosen: str | None, rule: OutcomeRule) -> str:
    """A report of where outcomes come from.

    Args:
        chosen: The rule that somebody chose, if anybody did.
        rule: The one that counts.
    """
    if chosen is not None:
        return rule.text
    if rule.text == NONE:
        return "unknown, as no --outcome was chosen and the environment has no reward_threshold"
    return f"{rule.text}, the environment's own reward_threshold; --outcome chooses another rule"


def default_rule(reward_threshold: float | None) -> OutcomeRule:
    """What counts where nobody chose: the environment's own threshold, else nothing is known."""
    return OutcomeRule(NONE if reward_threshold is None else f"return>={reward_threshold!r}")


def ends_text(ends: Counter[str]) -> str:
    """How episodes end, counted."""
    told = [name for name in ("success", "failure", "ongoing", UNKNOWN) if ends[name]]
    return ", ".join(f"{name} ({ends[name]:,})" for name in told) or "none"


def ends_warning(ends: Counter[str]) -> str | None:
    """What is wrong where all episodes end alike: that teaches nothing. None if they do not."""
    told = [name for name in ends if ends[name]]
    if len(told) != 1 or ends.total() < 2:
        return None
    return {
        UNKNOWN: "nobody says how episodes end, so no outcome is learned; --outcome says it where "
        "an environment was recorded",
        "ongoing": "all episodes are cut off, so neither success nor failure is learned",
    }.get(told[0], "all episodes end alike, so nothing tells success from failure")
