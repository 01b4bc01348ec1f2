"""Reality: the true environment beside the dream, through gymnasium alone.

An environment is named by a gymnasium id, with `{level}` in it where it has levels, or by
`module:function`, a function of the level that makes one. Its frame is the picture in the
observation, if there is one, else what it renders; its task is the observation's `mission`. One
that has a method `expert_action()`, which names the action to take now or None, has an expert; and
a function that has `levels` tells which it makes.

Environments cannot be copied, so a moment of one is its seed and the actions since.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unified.command import named_function
from unified.media.pictures import fit_picture

BABYAI = "BabyAI-{level}-v0"
_TILE = 8


@dataclass(frozen=True)
class Seen:
    """What the environment shows.

    Attributes:
        pixels: `(H, W, 3)` uint8.
        outcome: ongoing, success or failure.
    """

    pixels: np.ndarray
    outcome: str


def maker_of(name: str) -> Callable[[str | None], Any]:
    """A function of a level that makes an environment.

    Args:
        name: A gymnasium id or `module:function`, see above.

    Raises:
        ValueError: If something is not installed, or there is no such environment.
    """
    module, colon, function = name.partition(":")
    if colon and "-v" not in function:
        try:
            return named_function(module, function)
        except ValueError as error:
            raise ValueError(
                f"environment {name!r} cannot be found ({error}); give a gymnasium id, or "
                "module:function with a module that can be imported from here"
            ) from error
    return lambda level: _made(name, level)


def _made(name: str, level: str | None) -> Any:
    name = name.replace("{level}", level or "")
    try:
        import gymnasium
    except ImportError as error:
        raise _missing(name, "gymnasium") from error
    try:
        if not name.startswith("BabyAI-"):
            return gymnasium.make(name, render_mode="rgb_array")
        from minigrid.wrappers import RGBImgPartialObsWrapper

        env = gymnasium.make(name, disable_env_checker=True)
        return RGBImgPartialObsWrapper(env, tile_size=_TILE)
    except ImportError as error:
        raise _missing(name, error.name or "something") from error
    except gymnasium.error.Error as error:
        raise ValueError(f"environment {name!r} cannot be made: {error}") from error


def _missing(name: str, package: str) -> ValueError:
    return ValueError(
        f"environment {name!r} needs {package}, which is not installed; pip install {package}, or "
        "let the model be the world"
    )


class Reality:
    """One true world, of one player; not to be used by two threads at once.

    Attributes:
        actions: What was done since the environment was reset, as it takes them.
    """

    def __init__(self, make: Callable[[str | None], Any], level: str | None, size: tuple[int, int]):
        """An environment of a level, which is not reset yet.

        Args:
            make: See `maker_of`.
            level: None where there are no levels.
            size: Height and width of the frames.

        Raises:
            ValueError: If it cannot be made.
        """
        self.env = make(level)
        self.size = size
        self.seed = 0
        self.actions: tuple[Any, ...] = ()
        self._now: Seen | None = None

    @property
    def has_expert(self) -> bool:
        """Whether the environment knows what to do."""
        return hasattr(self.env, "expert_action")

    def reset(self, seed: int) -> tuple[Seen, str | None]:
        """Begins anew; returns the first frame and the task."""
        with contextlib.redirect_stdout(io.StringIO()):  # minigrid tells of its attempts
            observation, info = self.env.reset(seed=seed)
        self.seed, self.actions = seed, ()
        self._now = Seen(self._pixels(observation), "ongoing")
        return self._now, _task(observation, info)

    def step(self, action: Any) -> Seen:
        """Takes an action as the environment does."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        is_won = terminated and float(reward) > 0
        outcome = "success" if is_won else "failure" if terminated or truncated else "ongoing"
        self.actions = (*self.actions, action)
        self._now = Seen(self._pixels(observation), outcome)
        return self._now

    def travel(self, actions: Sequence[Any]) -> Seen:
        """Goes to where these actions lead from the seed, on from here if they begin so."""
        mine, told = self.actions, tuple(actions)
        begins = len(mine) <= len(told) and all(
            np.array_equal(a, b) for a, b in zip(mine, told, strict=False)
        )
        if self._now is None or not begins:
            self.reset(self.seed)
        for action in told[len(self.actions) :]:
            self.step(action)
        assert self._now is not None
        return self._now

    def expert_action(self) -> Any:
        """What the environment's expert does now; None where it knows nothing."""
        return self.env.expert_action() if self.has_expert else None

    def close(self) -> None:
        """Frees what the environment draws with."""
        self.env.close()

    def _pixels(self, observation: Any) -> np.ndarray:
        image = observation.get("image") if isinstance(observation, Mapping) else None
        is_picture = isinstance(image, np.ndarray) and image.shape[:2] == self.size
        pixels = image if is_picture else self.env.render()
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"the environment shows {type(pixels).__name__}, not an RGB array; use one that "
                "has the render mode rgb_array"
            )
        own = np.array(pixels, dtype=np.uint8, order="C")  # renderers use theirs again
        return fit_picture(own, self.size, "crop")


def _task(observation: Any, info: Any) -> str | None:
    """The task that an environment tells by itself."""
    for source in (observation, info):
        if isinstance(source, Mapping):
            for key in ("mission", "task", "instruction"):
                if isinstance(source.get(key), str):
                    return source[key]
    return None
