"""WorldEnv and WorldVectorEnv: the model simulates, behind gymnasium's interface.

This module needs gymnasium; the rest of the library does not.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from numbers import Integral
from pathlib import Path
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
from unified.modeling import UnifiedModel
from unified.roles.registration import register_worlds
from unified.roles.simulation import History, Simulation, Snapshot, Start
from unified.sampling.options import Options, count

METADATA = {"render_modes": ["rgb_array"], "render_fps": 4}


class WorldEnv(gymnasium.Env[np.ndarray, Any]):
    """A gymnasium environment that exists only in the model.

    `reset` opens an episode with a first frame and a task (without a frame, the model imagines
    one from the task), or with a history of frames and actions. `step` takes one action and shows
    the frame that the model generates. The reward is 1 on success; success and failure terminate.
    `info` holds the `outcome` and the frame's `latents` `(c, h, w)`.

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
        model: UnifiedModel | str | Path,
        processor: UnifiedProcessor | None = None,
        frame: Any = None,
        task: str | None = None,
        *,
        history: History | None = None,
        words: str | None = None,
        device: str | None = None,
        max_steps: int = 64,
        temperature: float = 0.0,
        num_inference_steps: int | None = None,
        solver: str = "euler",
        time_grid: str = "uniform",
        guidance_scale: Any = None,
        compiled: bool = False,
        memory: str | None = None,
        render_mode: str | None = "rgb_array",
    ):
        """A world with a first frame and a task, unless `reset` gives others.

        Args:
            model: Read only; or its folder, hub id or embedded name.
            processor: The model's; None where the model is named.
            frame: First frame, `(H, W, 3)` uint8, a PIL image or the path of one; None is imagined.
            task: What the episode is about, in words.
            history: What was seen and done before, instead of a frame.
            words: What the world says of its first frame, such as "you see a red ball 2 ahead".
                None promises what the task asks for, if the model was taught such words.
            device: Where a model that is named goes, such as "cuda"; None is the CPU.
            max_steps: Truncates the episode.
            temperature: Temperature of the outcome; 0 takes the likeliest.
            num_inference_steps: Denoise steps of a frame.
            solver: See `UnifiedModel.generate`, as for the following.
            time_grid: See `generate`.
            guidance_scale: See `generate`.
            compiled: See `Session`: pays when some hundred frames are played.
            memory: What stays of frames that are past, such as "place"; None is the model's. See
                `unified.memory`.
            render_mode: "rgb_array" or None.

        Raises:
            ValueError: If gymnasium has no space for the actions, or a setting is out of range.
        """
        self.max_steps = check_settings(max_steps, render_mode)
        options = run_options(
            temperature=temperature,
            num_inference_steps=num_inference_steps,
            solver=solver,
            time_grid=time_grid,
            guidance_scale=guidance_scale,
        )
        self.start = Start(frame, task, history, words)
        parts = named_parts(model, processor, device)
        self._simulation = Simulation(*parts, 1, options, compiled, memory)
        self.render_mode = render_mode
        self.action_space, self.observation_space = spaces(self._simulation)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Opens an episode.

        Args:
            seed: Seed of all noise and samples from now on.
            options: `frame`, `task`, `history` and `words`, instead of the environment's own.

        Raises:
            ValueError: If there is neither frame nor task, or an option is unknown.
        """
        super().reset(seed=seed)
        start = read_options(options, [self.start])[0]
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

    def imagine(self, actions: Rows[Any], schedule: str = "autoregressive") -> np.ndarray:
        """What would follow if these actions were taken one after another; nothing is taken.

        Args:
            actions: By integer or by name.
            schedule: How the frames are drawn together: "autoregressive", "chunked:frames=4",
                "pyramid:lag=1", "full" or "bidirectional". Only the first is what the embedded
                checkpoints were trained for. See `unified.sampling.futures`.

        Returns:
            `(T, H, W, 3)` uint8, as if no frame ended the episode.

        Raises:
            ValueError: If there is no action, one is unknown, or the episode is over.
        """
        return self._simulation.imagine(0, list(actions), schedule)

    def tell(self, words: str) -> None:
        """Says what happens in the world with the next step, such as "a box appears 1 ahead".

        Raises:
            ValueError: If the model was never taught words of the world, or there are none.
        """
        self._simulation.tell([0], [words])

    def render(self) -> Any:
        """The current frame, `(H, W, 3)` uint8; None without a render mode."""
        return None if self.render_mode is None else self._simulation.frames[0].copy()

    def snapshot(self) -> Snapshot:
        """This moment, to `restore` later."""
        return self._simulation.snapshot([self.np_random])

    def restore(self, snapshot: Snapshot) -> np.ndarray:
        """Goes back to a moment, and returns its frame; the snapshot can be restored again."""
        self._np_random = self._simulation.restore(snapshot)[0]
        return self._simulation.frames[0].copy()


class WorldVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """Many generated worlds in one batch; each row equals a `WorldEnv` of the same seed.

    An episode that ended begins anew at the next step, whose action is ignored
    (`AutoresetMode.NEXT_STEP`), with the frame and task that its row was last reset with.
    """

    def __init__(
        self,
        model: UnifiedModel | str | Path,
        processor: UnifiedProcessor | None = None,
        num_envs: int = 1,
        frame: Any = None,
        task: str | Rows[str | None] | None = None,
        *,
        history: History | Rows[History | None] | None = None,
        device: str | None = None,
        max_steps: int = 64,
        temperature: float = 0.0,
        num_inference_steps: int | None = None,
        solver: str = "euler",
        time_grid: str = "uniform",
        guidance_scale: Any = None,
        compiled: bool = False,
        memory: str | None = None,
        render_mode: str | None = "rgb_array",
    ):
        """Worlds with first frames and tasks, unless `reset` gives others.

        Args:
            model: See `WorldEnv`.
            processor: See `WorldEnv`.
            num_envs: Number of rows.
            frame: First frame of all rows, or a list with one for each.
            task: Task of all rows, or a list with one for each.
            history: See `WorldEnv`; for all rows, or a list with one for each.
            device: See `WorldEnv`.
            max_steps: See `WorldEnv`, as for the following.
            temperature: See `WorldEnv`.
            num_inference_steps: See `WorldEnv`.
            solver: See `WorldEnv`.
            time_grid: See `WorldEnv`.
            guidance_scale: See `WorldEnv`.
            compiled: See `WorldEnv`.
            memory: See `WorldEnv`.
            render_mode: See `WorldEnv`.

        Raises:
            ValueError: As `WorldEnv`, or if a list is not one entry for each row.
        """
        self.max_steps = check_settings(max_steps, render_mode)
        options = run_options(
            temperature=temperature,
            num_inference_steps=num_inference_steps,
            solver=solver,
            time_grid=time_grid,
            guidance_scale=guidance_scale,
        )
        self.num_envs = num_envs = count("num_envs", num_envs)
        told = {"frame": frame, "task": task, "history": history}
        self._starts = read_options(told, [Start()] * num_envs)
        self._current = list(self._starts)
        self.metadata = {**METADATA, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = render_mode
        parts = named_parts(model, processor, device)
        self._simulation = Simulation(*parts, num_envs, options, compiled, memory)
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
            options: `frame`, `task` and `history`, each one for all rows or a list: what the rows
                begin with now, and whenever their episodes end, until the next reset.
                `reset_mask` `(N,)` bool resets some rows only.

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
        seeds: Rows[int | None] | None = None
        if isinstance(seed, Integral):
            seeds = [int(seed) + i for i in range(self.num_envs)]
        elif isinstance(seed, list | tuple):
            seeds = seed
        elif seed is not None:
            raise ValueError(f"seed={seed!r} is no seed; give a whole number, or a list of them")
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rows; give one for each")
        for row in rows:
            if seeds is not None and seeds[row] is not None:
                self._randoms[row] = seeding.np_random(seeds[row])[0]
        infos = self._begin(rows, starts, {})
        for row in rows:
            self._current[row] = starts[row]
        return self._simulation.frames.copy(), infos

    def _begin(self, rows: list[int], starts: list[Start], infos: dict[str, Any]) -> dict[str, Any]:
        seeds = [draw_seed(self._randoms[row]) for row in rows]
        row_infos = self._simulation.begin(rows, [starts[row] for row in rows], seeds)
        for row, info in zip(rows, row_infos, strict=True):
            infos = self._add_info(infos, info, row)
        return infos

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes an action in each row that goes on, and begins the others anew.

        Raises:
            ValueError: If an action is unknown, or nothing was reset.
        """
        if isinstance(actions, Mapping) and isinstance(self.single_action_space, Dict):
            actions = self._rows_of(actions, list(self.single_action_space.spaces))
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
            row_infos = simulation.advance(going, [actions[row] for row in going])
            for row, info in zip(going, row_infos, strict=True):
                rewards[row] = info["outcome"] == "success"
                terminated[row] = simulation.is_over[row]
                truncated[row] = not terminated[row] and simulation.steps[row] >= self.max_steps
                infos = self._add_info(infos, info, row)
            simulation.is_over |= truncated
        if ended:
            infos = self._begin(ended, self._current, infos)
        return simulation.frames.copy(), rewards, terminated, truncated, infos

    def _rows_of(self, batch: Mapping[str, Any], names: list[str]) -> list[dict[str, Any]]:
        """The actions of all rows in one dict, as gymnasium samples them, as one for each row."""
        lengths = {key: len(part) if hasattr(part, "__len__") else 1 for key, part in batch.items()}
        if set(batch) != set(names) or set(lengths.values()) != {self.num_envs}:
            raise ValueError(
                f"actions hold {lengths}; give {self.num_envs} of each of {', '.join(names)}"
            )
        return [{name: batch[name][row] for name in names} for row in range(self.num_envs)]

    def render(self) -> Any:
        """The current frames, one for each row; None without a render mode."""
        return None if self.render_mode is None else tuple(self._simulation.frames.copy())

    def snapshot(self) -> Snapshot:
        """This moment of all rows, to `restore` later."""
        return self._simulation.snapshot(self._randoms)

    def restore(self, snapshot: Snapshot) -> np.ndarray:
        """Goes back to a moment, and returns its frames; the snapshot can be restored again."""
        self._randoms = self._simulation.restore(snapshot)
        return self._simulation.frames.copy()


def spaces(simulation: Simulation) -> tuple[Space[Any], Box]:
    """Action space and observation space of one world."""
    return (
        action_space_from(simulation.actions),
        Box(0, 255, shape=simulation.frame_shape, dtype=np.uint8),
    )


def action_space_from(space: ActionSpace) -> Space[Any]:
    """The Gymnasium space of an action space; its samples are legal actions of the model.

    Raises:
        ValueError: If gymnasium has none of the kind.
    """
    if isinstance(space, NamedActions):
        return Discrete(len(space.names), start=space.start)
    if isinstance(space, MultiDiscreteActions):
        counts = [len(options) for options in space.parts.values()]
        return MultiDiscrete(counts, dtype=space.dtype.type, start=np.array(space.starts))
    if isinstance(space, ContinuousActions):
        low, high = space.bounds.astype(space.dtype)
        if space.dtype.kind == "f":
            # Bounds in float32 may lie outside of those in float64 by a rounding error.
            low, high = np.nextafter(low, high), np.nextafter(high, low)
        if space.chunk > 1:
            low, high = np.tile(low, (space.chunk, 1)), np.tile(high, (space.chunk, 1))
        return Box(low, high, dtype=space.dtype.type)
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


def named_parts(
    model: UnifiedModel | str | Path, processor: UnifiedProcessor | None, device: str | None
) -> tuple[UnifiedModel, UnifiedProcessor]:
    """Model and processor, loaded if they are named.

    Raises:
        ValueError: If a processor is missing, or one is given beside a name.
    """
    if isinstance(model, str | Path):
        if processor is not None:
            raise ValueError(
                f"the model is named ({str(model)!r}), and so is its processor; "
                "leave processor out, or load both"
            )
        loaded: Any = UnifiedModel.from_pretrained(model).eval()
        return loaded.to(device or "cpu"), UnifiedProcessor.from_pretrained(model)
    if processor is None:
        raise ValueError("processor is missing; give the model's, or name the model")
    if device is not None:
        raise ValueError(f"device={device!r} is for a model that is named; move this one by .to()")
    return model, processor


def run_options(**told: Any) -> dict[str, Any]:
    """Options of `Session.run`, checked before anything is loaded."""
    checked = Options(**told)
    return {name: getattr(checked, name) for name in told}


def check_settings(max_steps: int, render_mode: str | None) -> int:
    """Refuses settings that no episode can have; returns `max_steps`.

    Raises:
        ValueError: Naming the setting.
    """
    if render_mode not in (None, *METADATA["render_modes"]):
        raise ValueError(f"render_mode {render_mode!r} is unknown; use 'rgb_array' or None")
    return count("max_steps", max_steps)


def read_options(options: dict[str, Any] | None, starts: list[Start]) -> list[Start]:
    """How each row opens: what the options say, else what it has.

    A frame or a history that is told replaces both.

    Raises:
        ValueError: If an option is unknown, or a list is not one entry for each row.
    """
    names = ("frame", "task", "history", "words")
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"options is a {type(options).__name__}; give a dict")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    unknown = [name for name in options or {} if name not in names]
    if unknown:
        raise ValueError(
            f"option {unknown[0]!r} is unknown; use 'frame', 'task', 'history', 'words'"
        )
    columns: dict[str, list[Any]] = {}
    for name, value in given.items():
        is_batch = isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 4
        columns[name] = list(value) if is_batch else [value] * len(starts)
        if len(columns[name]) != len(starts):
            raise ValueError(
                f"{len(columns[name])} {name}s for {len(starts)} rows; give one for each"
            )
    opened = []
    for row, start in enumerate(starts):
        said = {name: column[row] for name, column in columns.items()}
        own = {"frame": start.frame, "history": start.history}
        if any(said.get(name) is not None for name in own):
            own = {}
        kept = {name: value for name, value in said.items() if value is not None}
        opened.append(Start(**{**own, "task": start.task, "words": start.words, **kept}))
    return opened


register_worlds()
