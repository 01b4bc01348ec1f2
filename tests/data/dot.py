"""A small environment: a dot on a dark square that has to reach the right edge."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 56
MOVES = np.array([[0, -8], [0, 8], [-8, 0], [8, 0]])


class Dot(gymnasium.Env):
    """Moves by four directions, by a vector, or by two choices."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, actions: str = "discrete", render_mode: str | None = None):
        self.render_mode = render_mode
        self.action_space = {
            "discrete": spaces.Discrete(4),
            "box": spaces.Box(-8.0, 8.0, (2,)),
            "multi": spaces.MultiDiscrete([3, 3]),
            "free": spaces.Box(-np.inf, np.inf, (2,)),
            "signed": spaces.Discrete(3, start=-1),
            "signed_multi": spaces.MultiDiscrete([3, 4], start=np.array([-1, 2])),
            "whole": spaces.Box(-8, 8, (2,), np.int16),
            "short_multi": spaces.MultiDiscrete([3, 3], np.int8),
            "dict": spaces.Dict({"a": spaces.Discrete(2)}),
        }[actions]
        self.observation_space = spaces.Box(0, SIDE, (2,))
        self.place = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(16, 32, 2)
        return self.place.astype(np.float32), {"task": "go right"}

    def step(self, action: Any):
        if not isinstance(self.action_space, spaces.Box):
            assert self.action_space.contains(action)
        if isinstance(self.action_space, spaces.Discrete):
            move = MOVES[action]
        else:
            move = np.asarray(action, dtype=float)
        self.place = np.clip(self.place + move, 0, SIDE - 1)
        is_there = bool(self.place[1] > SIDE - 12)
        return self.place.astype(np.float32), float(is_there), is_there, False, {"won": is_there}

    def render(self):
        frame = np.full((SIDE, SIDE, 3), 20, np.uint8)
        row, column = self.place.astype(int)
        frame[max(0, row - 3) : row + 3, max(0, column - 3) : column + 3] = (250, 60, 60)
        return frame


gymnasium.register(id="Dot-v0", entry_point=f"{__name__}:Dot")


class DarkAtTheEnd(Dot):
    """Renders black once it is over, as some games do."""

    def step(self, action: Any):
        found = super().step(action)
        self.is_over = found[2]
        return found

    def reset(self, *, seed: int | None = None, options: Any = None):
        self.is_over = False
        return super().reset(seed=seed, options=options)

    def render(self):
        return np.zeros((SIDE, SIDE, 3), np.uint8) if self.is_over else super().render()


class Reusing(DarkAtTheEnd):
    """Renders into one array, again and again."""

    shown = np.zeros((SIDE, SIDE, 3), np.uint8)

    def render(self):
        self.shown[:] = super().render()
        return self.shown


class Fractions(Dot):
    """Renders numbers from 0 to 1."""

    def render(self) -> Any:
        return super().render() / 255


class Codes(Dot):
    """Shows a grid of codes, as minigrid does without a wrapper."""

    def render(self):
        return np.arange(7 * 7 * 3, dtype=np.uint8).reshape(7, 7, 3) % 10


class Shifting(Dot):
    """Has another task from its second step on."""

    def step(self, action: Any):
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {"task": "go on", "won": terminated}


gymnasium.register(id="DarkDot-v0", entry_point=f"{__name__}:DarkAtTheEnd")
gymnasium.register(id="ReusingDot-v0", entry_point=f"{__name__}:Reusing")
gymnasium.register(id="FractionDot-v0", entry_point=f"{__name__}:Fractions")
gymnasium.register(id="CodeDot-v0", entry_point=f"{__name__}:Codes")
gymnasium.register(id="ShiftingDot-v0", entry_point=f"{__name__}:Shifting")
gymnasium.register(
    id="LimitedDot-v0", entry_point=f"{__name__}:Dot", max_episode_steps=2, reward_threshold=0.5
)


def go_right(observation):
    """A policy."""
    return 1


def make_runner(env):
    """A policy that has to know its environment."""
    return lambda observation: np.array([0.0, env.action_space.high[1]])


def lost(observation):
    """A policy that gives no action."""
    return np.array([np.nan, 0.0])


def boxed(observation):
    """A policy whose action is in an array."""
    return np.array([1])


def judged(step):
    """An outcome: a success from three on."""
    return "success" if step.reward >= 3 else None


def misjudged(step):
    """No outcome."""
    return "won"
