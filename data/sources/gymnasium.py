"""Episodes of any Gymnasium environment that can be rendered, by any policy."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from data.episode import EpisodeRecord, SegmentRecord, encode_png
from data.frames import is_blank_end
from data.outcomes import Judge, OutcomeRule, default_rule, told_rule
from data.sources.video import resized
from unified.command import named_function
from unified.media.actions import (
    ActionSpace,
    ContinuousActions,
    MultiDiscreteActions,
    NamedActions,
)

Policy = Callable[[Any], Any]
"""A policy: from an observation to an action."""


def action_space_of(env: gymnasium.Env, bins: int = 256, names: Sequence[str] = ()) -> ActionSpace:
    """The environment's actions as an `ActionSpace`; see `action_space_from`."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    name = env.spec.id if env.spec else type(env).__name__
    known = list(names) or ([str(one).lower() for one in meanings()] if meanings else [])
    return action_space_from(env.action_space, name, known, bins)


def action_space_from(
    space: Any, name: str, names: Sequence[str] = (), bins: int = 256
) -> ActionSpace:
    """A Gymnasium action space as an `ActionSpace`.

    Args:
        space: Of the actions.
        name: Of the environment.
        names: Of discrete actions, or of the numbers of an action, if somebody knows them.
        bins: Of each number.

    Raises:
        ValueError: If they are neither integers nor bounded numbers, or differ in number from
            their names.
    """
    if isinstance(space, spaces.Discrete):
        start, count = int(space.start), int(space.n)
        check_names(names, count, name)
        return NamedActions(
            name, list(names) or [f"action{start + i}" for i in range(count)], start
        )
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        check_names(names, len(space.nvec), name)
        parts = list(names) or [f"part{i}" for i in range(len(space.nvec))]
        counts = dict(zip(parts, space.nvec.tolist(), strict=True))
        return MultiDiscreteActions(name, counts, space.start.tolist(), np.dtype(space.dtype).name)
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int | np.integer):
        check_names(names, int(space.n), name)
        parts = list(names) or [f"part{i}" for i in range(int(space.n))]
        dtype = np.dtype(space.dtype).name
        return MultiDiscreteActions(name, dict.fromkeys(parts, 2), dtype=dtype)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        check_names(names, space.shape[0], name)
        dimensions = list(names) or [f"x{i}" for i in range(space.shape[0])]
        low, high = space.low.tolist(), space.high.tolist()
        dtype = np.dtype(space.dtype).name
        return ContinuousActions.between(name, dimensions, low, high, bins=bins, dtype=dtype)
    raise ValueError(
        f"the actions of {name} are {space}, which are not recorded; wrap the environment so that "
        "they are Discrete, MultiDiscrete, MultiBinary or a bounded Box of one dimension"
    )


def check_names(names: Sequence[str], count: int, name: str) -> None:
    """Refuses names of actions that are not as many as the actions, or repeat."""
    if not names:
        return
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"{len(set(names))} different names ({', '.join(names)}) for {count} actions of "
            f"{name}; name each of them once with --action-names"
        )


def written_action(space: ActionSpace, action: Any) -> str:
    """An action as a file holds it: a name, or JSON.

    Raises:
        ValueError: If it is no action of the space.
    """
    tokens = space.encode(action)
    if isinstance(space, NamedActions):
        return space.decode(tokens)
    return json.dumps(np.asarray(action).tolist())


def load_policy(name: str, env: gymnasium.Env) -> Policy:
    """`random`, or `module:function`, called with the observation, or first with the environment.

    A function of one argument is the policy. One of none or of an argument named `env` makes it,
    once for each episode.

    Raises:
        ValueError: If there is no such function.
    """
    if name == "random":
        return lambda observation: env.action_space.sample()
    module, _, function = name.partition(":")
    try:
        found = named_function(module, function)
    except ValueError as error:
        raise ValueError(
            f"policy {name!r} is neither 'random' nor module:function ({error}); the module must "
            "be importable from here"
        ) from error
    try:
        names = list(inspect.signature(found).parameters)
    except ValueError:  # of some functions written in C
        names = []
    return found(env) if names == ["env"] else found


@dataclass
class GymnasiumRecorder:
    """Records episodes of one environment.

    Args:
        env: Its id, perhaps with the module that registers it, `module:Id-v0`.
        policy: See `load_policy`.
        size: Height and width of the frames; None leaves them as they are rendered.
        task: Words that open each episode; None takes the environment's own, if it tells any.
        max_steps: Where an episode is cut off, ongoing.
        outcome: What a success is, see `data.outcomes.OutcomeRule`; None takes the environment's
            own `reward_threshold`, and without one nobody knows how an episode ended.
        noise: Share of the steps at which a random action is taken; what the policy would have done
            there is still what is learned (arXiv:1703.09327), so that mistakes are seen and mended.
        bins: Bins of each number of a continuous action.
        is_still: Whether the view never moves, which spares the model to find it out.
        action_names: Of the actions, in the environment's order; those that it gives if empty.
        keep_last_frame: Whether an end that is rendered blank shows the frame before it again.
        options: For `gymnasium.make`.
    """

    env: str
    policy: str = "random"
    size: tuple[int, int] | None = None
    task: str | None = None
    max_steps: int = 200
    outcome: str | None = None
    noise: float = 0.0
    bins: int = 256
    is_still: bool = False
    action_names: Sequence[str] = ()
    keep_last_frame: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            options = {"render_mode": "rgb_array", **self.options}
            self.environment = gymnasium.make(self.env, **options)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"environment {self.env!r} cannot be made: {error}") from error
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise} must be at least 0 and below 1")
        self.actions = action_space_of(self.environment, self.bins, self.action_names)
        threshold = self.environment.spec.reward_threshold if self.environment.spec else None
        self.rule = OutcomeRule(self.outcome) if self.outcome else default_rule(threshold)
        self.has_told_blank = False
        load_policy(self.policy, self.environment)

    @property
    def rule_text(self) -> str:
        """A report of where outcomes come from."""
        return told_rule(self.outcome, self.rule)

    def close(self) -> None:
        """Closes the environment, and with it its renderer."""
        self.environment.close()

    def record(self, seed: int) -> EpisodeRecord:
        """One episode: the environment, its action space and the policy begin from this seed.

        Raises:
            ValueError: If the policy gives something that is no action.
        """
        env = self.environment
        observation, info = env.reset(seed=seed)
        env.action_space.seed(seed)
        policy = load_policy(self.policy, env)
        dice = np.random.default_rng(seed)
        segments = []
        task = self.task or told_task(observation, info)
        if task:
            segments.append(SegmentRecord(kind="text", role="task", text=task, weight=0.0))
        view = self.view()
        segments.append(_frame(view, "ongoing"))
        judge = self.judge()
        # Random actions are shown, not imitated.
        weight = 0.0 if self.policy == "random" else 1.0
        for step in range(self.max_steps):
            action = policy(observation)
            try:
                target = written = written_action(self.actions, action)
            except ValueError as error:
                raise ValueError(f"{self.env}, seed {seed}, step {step}: {error}") from error
            if dice.random() < self.noise:
                action = env.action_space.sample()
                written = written_action(self.actions, action)
            observation, reward, terminated, truncated, info = env.step(action)
            segments.append(
                SegmentRecord(
                    kind="action",
                    role="agent",
                    action=written,
                    target=None if target == written else target,
                    weight=weight,
                    motion=(0.0, 0.0, 0.0) if self.is_still else None,
                )
            )
            outcome = judge(float(reward), terminated, truncated, info, observation)
            is_over = terminated or truncated or outcome in ("success", "failure")
            before, view = view, self.view()
            if is_over and is_blank_end(before, view):
                self._tell_blank(seed)
                view = before if self.keep_last_frame else view
            segments.append(_frame(view, outcome))
            if is_over:
                break
            told = self.task or told_task(observation, info)
            if told and told != task:
                segments.append(SegmentRecord(kind="text", role="task", text=told, weight=0.0))
                task = told
        return EpisodeRecord(
            id=f"{self.env}/{self.policy}/{seed}",
            source="gymnasium",
            level=self.env,
            seed=seed,
            behaviour=self.policy,
            segments=segments,
        )

    def judge(self, env: gymnasium.Env | None = None) -> Judge:
        """Tells the outcome after every step of one episode.

        Args:
            env: Which one is played; None is this recorder's own.
        """
        return self.rule.begin(self.environment if env is None else env)

    def _tell_blank(self, seed: int) -> None:
        """Says once that the environment shows nothing when it is over."""
        if not self.has_told_blank:
            self.has_told_blank = True
            what = "its frame before is kept" if self.keep_last_frame else "--keep-last-frame mends"
            tqdm.write(
                f"warning: {self.env} renders a blank frame after its end (seed {seed}); {what}",
                file=sys.stderr,
            )

    def view(self) -> np.ndarray:
        """What the environment shows now, `(H, W, 3)` uint8 in the size that is recorded.

        Raises:
            ValueError: If it renders no picture.
        """
        pixels = self.environment.render()
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"{self.env} renders {type(pixels).__name__}, not an RGB array; record one that "
                "has the render mode rgb_array"
            )
        if pixels.dtype != np.uint8:
            raise ValueError(
                f"{self.env} renders {pixels.dtype}, not uint8 from 0 to 255; wrap it so that "
                "render gives uint8"
            )
        pixels = np.array(pixels, order="C")  # the renderer may use its own again
        return resized(pixels, self.size, f"what {self.env} renders")


def _frame(view: np.ndarray, outcome: str | None) -> SegmentRecord:
    return SegmentRecord(kind="frame", role="world", frame=encode_png(view), outcome=outcome)


def told_task(observation: Any, info: Mapping[str, Any]) -> str | None:
    """The task that the environment gives with its observation or `info`."""
    for source in (observation, info):
        if isinstance(source, Mapping):
            for key in ("mission", "task", "instruction"):
                if isinstance(source.get(key), str):
                    return source[key]
    return None
