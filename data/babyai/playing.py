"""BabyAI for the player's world seat: its levels and ours, and the bot as expert.

`unified play --env data.babyai.playing:environment` sits it there.
"""

import contextlib
import io
from typing import Any

import gymnasium
import numpy as np

from data.babyai.expert import Expert
from data.babyai.levels import CLUTTER, WORKSHOP
from data.babyai.views import ACTIONS, render_view

LEVELS = ("GoToLocal", "GoToRedBall", "OpenDoor", "PickupLoc", "PutNextLocal", CLUTTER, WORKSHOP)
"""What a player is offered; every other level of BabyAI can be named as well."""


class PlayedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A level whose observation holds the frame, and which has an expert."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self._view = np.zeros((7, 7, 3), np.uint8)
        self._expert: Expert | None = None
        self._previous: int | None = None
        self._is_fresh = False

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begins anew, without a word of the layouts that were tried."""
        with contextlib.redirect_stdout(io.StringIO()):
            observation, info = self.env.reset(**options)
        self._expert = self._previous = None
        return self._shown(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes an action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self._is_fresh:
            self._expert = None  # it was not asked before the last step, and lost the thread
        self._previous, self._is_fresh = int(action), False
        return self._shown(observation), reward, terminated, truncated, info

    def expert_action(self) -> int | None:
        """What the bot does now; None where it cannot go on."""
        previous = self._previous
        if self._expert is None:
            self._expert, previous = Expert(self.env.unwrapped), None
        action, _ = self._expert.suggest(self._view, previous)
        self._is_fresh = True
        return None if action is None else ACTIONS.index(action)

    def _shown(self, observation: Any) -> dict[str, Any]:
        self._view = observation["image"]
        return {**observation, "image": render_view(self._view)}


class Environment:
    """Makes levels for the player."""

    levels = LEVELS

    def __call__(self, level: str | None) -> PlayedEnv:
        """An environment of a level.

        Raises:
            ValueError: If there is no such level.
        """
        name = f"BabyAI-{level}-v0"
        if name not in gymnasium.registry:
            raise ValueError(f"level {level!r} is unknown; use one such as {', '.join(LEVELS)}")
        return PlayedEnv(gymnasium.make(name, disable_env_checker=True))


environment = Environment()
