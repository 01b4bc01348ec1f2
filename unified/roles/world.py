"""WorldEnv and WorldVectorEnv: the model simulates, behind gymnasium's interface.

This module needs gymnasium; the rest of the library does not.
"""

from collections.abc import Sequence as Rows
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, OneOf, Space
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from unified.conversation.processing import UnifiedProcessor
from unified.media.action_space import ActionSpace
from unified.media.actions import (
    ContinuousActions,
    KeyboardMouseActions,
    MultiDiscreteActions,
    NamedActions,
)
from unified.media.embodiments import EmbodiedActions
from unified.model.modeling import UnifiedModel
from unified.roles.simulation import Simulation, Snapshot

METADATA = {"render_modes": ["rgb_array"], "render_fps": 4}


class WorldEnv(gymnasium.Env[np.ndarray, Any]):
    """A gymnasium environment that exists only in the model.

    `reset` opens an episode with a first frame and a task (without a frame, the model imagines
    one from the task). `step` takes one action and shows the frame that the model generates. The
    reward is 1 on success; success and failure terminate. `info` holds the `outcome` and the
    frame's `latents` `(c, h, w)`.

    Any state can be kept by `snapshot` and entered again by `restore`, in this environment or in
    another of the same model: the noise repeats, so the same action gives the same frame.

    Example:
        A counterfactual: what if the agent had turned right?

        >>> def what_if(world, frame, task):
        ...     world.reset(seed=0, options={"frame": frame, "task": task})
        ...     moment = world.snapshot()
        ...     turned_left = world.step("left")[0]
        ...     world.restore(moment)
        ...     return turned_left, world.step("right")[0]
    """

    metadata = METADATA

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        frame: Any = None,
        task: str | None = None,
        *,
        max_steps: int = 64,
        temperature: float = 0.0,
        num_inference_steps: int = 4,
        solver: str = "euler",
        compiled: bool = False,
        render_mode: str | None = "rgb_array",
    ):
        """A world that opens as told here, unless `reset` is told otherwise.

        Args:
            model: Read only.
            processor: The model's.
            frame: First frame, `(H, W, 3)` uint8 or a PIL image; None is imagined.
            task: What the episode is about, in words.
            max_steps: Truncates the episode.
            temperature: Of the outcome; 0 takes the likeliest.
            num_inference_steps: Denoise steps of a frame.
            solver: `euler` or `heun`.
            compiled: See `Session`: pays when some hundred frames are played.
            render_mode: "rgb_array" or None.

        Raises:
            ValueError: If gymnasium has no space for the actions, or a setting is out of range.
        """
        check_settings(max_steps, render_mode)
        options = {
            "temperature": temperature,
            "num_inference_steps": num_inference_steps,
            "solver": solver,
        }
        self._simulation = Simulation(model, processor, 1, options, compiled)
        self.frame, self.task = frame, task
        self.max_steps = max_steps
        self.render_mode = render_mode
        self.action_space, self.observation_space = spaces(self._simulation)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Opens an episode.

        Args:
            seed: Of all noise and samples from now on.
            options: `frame` and `task`, instead of the environment's own.

        Raises:
            ValueError: If there is neither frame nor task, or an option is unknown.
        """
        super().reset(seed=seed)
        start = read_options(options, [(self.frame, self.task)])[0]
        infos = self._simulation.begin([0], [start], [draw_seed(self.np_random)])
        return self._simulation.frames[0].copy(), infos[0]

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes an action, by integer or by name, and generates the frame it leads to.

        Raises:
            ValueError: If the action is unknown, or the episode is over.
        """
        info = self._simulation.advance([0], [action])[0]
        is_over = bool(self._simulation.is_over[0])
        truncated = not is_over and int(self._simulation.steps[0]) >= self.max_steps
        self._simulation.is_over[0] |= truncated
        reward = float(info["outcome"] == "success")
        return self._simulation.frames[0].copy(), reward, is_over, truncated, info

    def render(self) -> Any:
        """The current frame, `(H, W, 3)` uint8; None without a render mode."""
        return None if self.render_mode is None else self._simulation.frames[0].copy()

    def snapshot(self) -> Snapshot:
        """This moment, to `restore` later."""
        return self._simulation.snapshot([self.np_random])

    def restore(self, snapshot: Snapshot) -> np.ndarray:
        """Goes back to a moment, and shows its frame; the snapshot stays good."""
        self._np_random = self._simulation.restore(snapshot)[0]
        return self._simulation.frames[0].copy()


class WorldVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """Many generated worlds in one batch; each row equals a `WorldEnv` of the same seed.

    An episode that ended begins anew at the next step, whose action is ignored
    (`AutoresetMode.NEXT_STEP`).
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        num_envs: int,
        frame: Any = None,
        task: str | Rows[str | None] | None = None,
        *,
        max_steps: int = 64,
        temperature: float = 0.0,
        num_inference_steps: int = 4,
        solver: str = "euler",
        compiled: bool = False,
        render_mode: str | None = "rgb_array",
    ):
        """Worlds that open as told here, unless `reset` is told otherwise.

        Args:
            model: Read only.
            processor: The model's.
            num_envs: Number of rows.
            frame: First frame of all rows, or a list with one for each.
            task: Task of all rows, or a list with one for each.
            max_steps: See `WorldEnv`, as for the following.
            temperature: See `WorldEnv`.
            num_inference_steps: See `WorldEnv`.
            solver: See `WorldEnv`.
            compiled: See `WorldEnv`.
            render_mode: See `WorldEnv`.

        Raises:
            ValueError: As `WorldEnv`, or if a list is not one entry for each row.
        """
        check_settings(max_steps, render_mode)
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1")
        options = {
            "temperature": temperature,
            "num_inference_steps": num_inference_steps,
            "solver": solver,
        }
        self.num_envs = num_envs
        self.metadata = {**METADATA, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = render_mode
        self.max_steps = max_steps
        self._simulation = Simulation(model, processor, num_envs, options, compiled)
        self._starts = read_options({"frame": frame, "task": task}, [(None, None)] * num_envs)
        self._randoms = [seeding.np_random()[0] for _ in range(num_envs)]
        self.single_action_space, self.single_observation_space = spaces(self._simulation)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        seed: int | Rows[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Opens an episode in every row.

        Args:
            seed: One for each row, or a number to count up from.
            options: `frame` and `task`, each one for all rows or a list; `reset_mask` `(N,)`
                bool resets some rows only.

        Raises:
            ValueError: As `WorldEnv.reset`, or if a list is not one entry for each row.
        """
        chosen = dict(options or {})
        mask = np.asarray(chosen.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"reset_mask {mask!r} must be {self.num_envs} bools, some of them True"
            )
        rows = mask.nonzero()[0].tolist()
        starts = read_options(chosen, self._starts)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rows; give one for each")
        for row in rows:
            if seeds is not None and seeds[row] is not None:
                self._randoms[row] = seeding.np_random(seeds[row])[0]
        infos = self._begin(rows, starts, {})
        return self._simulation.frames.copy(), infos

    def _begin(
        self, rows: list[int], starts: list[tuple[Any, str | None]], infos: dict[str, Any]
    ) -> dict[str, Any]:
        seeds = [draw_seed(self._randoms[row]) for row in rows]
        told = self._simulation.begin(rows, [starts[row] for row in rows], seeds)
        for row, info in zip(rows, told, strict=True):
            infos = self._add_info(infos, info, row)
        return infos

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes an action in each row that goes on, and begins the others anew.

        Raises:
            ValueError: If an action is unknown, or nothing was reset.
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} rows; give one for each")
        simulation = self._simulation
        if simulation.session is None:
            raise ValueError("no episode has begun; call reset before step")
        ended = simulation.is_over.nonzero()[0].tolist()
        going = (~simulation.is_over).nonzero()[0].tolist()
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        if going:
            told = simulation.advance(going, [actions[row] for row in going])
            for row, info in zip(going, told, strict=True):
                rewards[row] = info["outcome"] == "success"
                terminated[row] = simulation.is_over[row]
                truncated[row] = not terminated[row] and simulation.steps[row] >= self.max_steps
                infos = self._add_info(infos, info, row)
            simulation.is_over |= truncated
        if ended:
            infos = self._begin(ended, self._starts, infos)
        return simulation.frames.copy(), rewards, terminated, truncated, infos

    def render(self) -> Any:
        """The current frames, one for each row; None without a render mode."""
        return None if self.render_mode is None else tuple(self._simulation.frames.copy())

    def snapshot(self) -> Snapshot:
        """This moment of all rows, to `restore` later."""
        return self._simulation.snapshot(self._randoms)

    def restore(self, snapshot: Snapshot) -> np.ndarray:
        """Goes back to a moment, and shows its frames; the snapshot stays good."""
        self._randoms = self._simulation.restore(snapshot)
        return self._simulation.frames.copy()


def spaces(simulation: Simulation) -> tuple[Space[Any], Box]:
    """What may be done, and what is seen, in one world."""
    return (
        action_space_from(simulation.actions),
        Box(0, 255, shape=simulation.frame_shape, dtype=np.uint8),
    )


def action_space_from(space: ActionSpace) -> Space[Any]:
    """An action space as gymnasium knows it; its samples can be told to the model.

    Raises:
        ValueError: If gymnasium has none of the kind.
    """
    if isinstance(space, NamedActions):
        return Discrete(len(space.names), start=space.start)
    if isinstance(space, MultiDiscreteActions):
        counts = [len(options) for options in space.parts.values()]
        return MultiDiscrete(counts, start=np.array(space.starts))
    if isinstance(space, ContinuousActions):
        # Bounds in float32 may lie outside of those in float64 by a rounding error.
        low = np.nextafter(space.edges[:, 0].astype(np.float32), np.float32(np.inf))
        high = np.nextafter(space.edges[:, -1].astype(np.float32), np.float32(-np.inf))
        if space.chunk > 1:
            low, high = np.tile(low, (space.chunk, 1)), np.tile(high, (space.chunk, 1))
        return Box(low, high, dtype=np.float32)
    if isinstance(space, KeyboardMouseActions):
        mouse = np.nextafter(np.array(space.mouse, np.float32), np.float32(0))
        pointer = Box(-mouse, mouse, dtype=np.float32)
        return Dict({"keys": MultiBinary(len(space.keys)), "mouse": pointer})
    if isinstance(space, EmbodiedActions):
        return OneOf([action_space_from(one) for one in space.spaces.values()])
    raise ValueError(f"gymnasium has no space for the actions of {space.name!r} ({space.kind})")


def draw_seed(random: np.random.Generator) -> int:
    """Seed of one episode's noise."""
    return int(random.integers(2**62))


def check_settings(max_steps: int, render_mode: str | None) -> None:
    """Refuses settings that no episode can have.

    Raises:
        ValueError: Naming the setting.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps} must be at least 1")
    if render_mode not in (None, *METADATA["render_modes"]):
        raise ValueError(f"render_mode {render_mode!r} is unknown; use 'rgb_array' or None")


def read_options(
    options: dict[str, Any] | None, starts: list[tuple[Any, str | None]]
) -> list[tuple[Any, str | None]]:
    """First frame and task of each row: what the options say, else what it has.

    Raises:
        ValueError: If an option is unknown, or a list is not one entry for each row.
    """
    told = dict(options or {})
    unknown = set(told) - {"frame", "task"}
    if unknown:
        raise ValueError(f"option {min(unknown)!r} is unknown; use 'frame' and 'task'")
    columns = []
    for place, name in enumerate(("frame", "task")):
        value = told.get(name)
        if value is None:
            column = [start[place] for start in starts]
        elif isinstance(value, list | tuple):
            column = list(value)
        else:
            column = [value] * len(starts)
        if len(column) != len(starts):
            raise ValueError(f"{len(column)} {name}s for {len(starts)} rows; give one for each")
        columns.append(column)
    return list(zip(*columns, strict=True))
