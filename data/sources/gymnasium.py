"""Episodes of any Gymnasium environment that can be rendered, by any policy."""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from data.episode import EpisodeRecord, SegmentRecord, encode_png
from data.sources.video import resized
from unified.media.actions import (
    ActionSpace,
    ContinuousActions,
    MultiDiscreteActions,
    NamedActions,
)

Policy = Callable[[Any], Any]
"""From an observation to an action."""


def action_space_of(env: gymnasium.Env, bins: int = 256) -> ActionSpace:
    """The environment's actions, as tokens can tell them; see `action_space_from`."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    name = env.spec.id if env.spec else type(env).__name__
    return action_space_from(env.action_space, name, meanings() if meanings else None, bins)


def action_space_from(
    space: Any, name: str, meanings: list[str] | None = None, bins: int = 256
) -> ActionSpace:
    """A space of gymnasium, as tokens can tell its actions.

    Args:
        space: Of the actions.
        name: Of the environment.
        meanings: Names of discrete actions, if somebody knows them.
        bins: Of each number.

    Raises:
        ValueError: If they are neither integers nor bounded numbers.
    """
    if isinstance(space, spaces.Discrete):
        names = meanings or [f"action{i}" for i in range(int(space.n))]
        return NamedActions(name, [str(action).lower() for action in names])
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        parts = {f"part{i}": int(count) for i, count in enumerate(space.nvec)}
        return MultiDiscreteActions(name, parts)
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int | np.integer):
        return MultiDiscreteActions(name, {f"part{i}": 2 for i in range(int(space.n))})
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        dimensions = [f"x{i}" for i in range(space.shape[0])]
        low, high = space.low.tolist(), space.high.tolist()
        return ContinuousActions.between(name, dimensions, low, high, bins=bins)
    raise ValueError(
        f"the actions of {name} are {space}, which are not recorded; wrap the environment so that "
        "they are Discrete, MultiDiscrete, MultiBinary or a bounded Box of one dimension"
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
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"policy {name!r} is neither 'random' nor module:function ({error}); the module must "
            "be importable from here"
        ) from error
    names = list(inspect.signature(found).parameters)
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
        success: Key of `info` that is true at a success; without it, an end with a reward is one.
        noise: Share of the steps at which a random action is taken; what the policy would have done
            there is still what is learned (arXiv:1703.09327), so that mistakes are seen and mended.
        bins: Of each number of a continuous action.
        is_still: Whether the view never moves, which spares the model to find it out.
        options: For `gymnasium.make`.
    """

    env: str
    policy: str = "random"
    size: tuple[int, int] | None = None
    task: str | None = None
    max_steps: int = 200
    success: str | None = None
    noise: float = 0.0
    bins: int = 256
    is_still: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            options = {"render_mode": "rgb_array", **self.options}
            self.made = gymnasium.make(self.env, **options)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"environment {self.env!r} cannot be made: {error}") from error
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise} must be at least 0 and below 1")
        self.actions = action_space_of(self.made, self.bins)
        load_policy(self.policy, self.made)

    def close(self) -> None:
        """Frees what the environment draws with."""
        self.made.close()

    def record(self, seed: int) -> EpisodeRecord:
        """One episode: the environment, its action space and the policy begin from this seed.

        Raises:
            ValueError: If the policy gives something that is no action.
        """
        env = self.made
        observation, info = env.reset(seed=seed)
        env.action_space.seed(seed)
        policy = load_policy(self.policy, env)
        dice = np.random.default_rng(seed)
        segments = []
        task = self.task or told_task(observation, info)
        if task:
            segments.append(SegmentRecord(kind="text", role="task", text=task, weight=0.0))
        segments.append(self._frame("ongoing"))
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
            outcome = self.outcome(float(reward), terminated, info)
            segments.append(self._frame(outcome))
            if terminated or truncated or outcome != "ongoing":
                break
        return EpisodeRecord(
            id=f"{self.env}/{self.policy}/{seed}",
            source="gymnasium",
            level=self.env,
            seed=seed,
            behaviour=self.policy,
            segments=segments,
        )

    def outcome(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> str:
        """What a step led to: ongoing, success or failure.

        Raises:
            ValueError: If `info` lacks the key that tells success.
        """
        if self.success is not None:
            if self.success not in info:
                raise ValueError(
                    f"{self.env} tells no {self.success!r} in info, only "
                    f"{', '.join(map(str, info)) or 'nothing'}; choose another --success"
                )
            if info[self.success]:
                return "success"
            return "failure" if terminated else "ongoing"
        if not terminated:
            return "ongoing"
        return "success" if reward > 0 else "failure"

    def view(self) -> np.ndarray:
        """What the environment shows now, `(H, W, 3)` uint8 in the size that is recorded.

        Raises:
            ValueError: If it renders no picture.
        """
        pixels = self.made.render()
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"{self.env} renders {type(pixels).__name__}, not an RGB array; record one that "
                "has the render mode rgb_array"
            )
        return resized(np.ascontiguousarray(pixels), self.size)

    def _frame(self, outcome: str) -> SegmentRecord:
        return SegmentRecord(
            kind="frame", role="world", frame=encode_png(self.view()), outcome=outcome
        )


def told_task(observation: Any, info: Mapping[str, Any]) -> str | None:
    """A task that the environment tells by itself."""
    for source in (observation, info):
        if isinstance(source, Mapping):
            for key in ("mission", "task", "instruction"):
                if isinstance(source.get(key), str):
                    return source[key]
    return None
