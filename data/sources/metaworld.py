"""Meta-World (arXiv:1910.10897): a robot arm, several tasks in words, and their scripted expert.

Importing this module registers `MetaWorld-v0`. It needs the package `metaworld`, and MuJoCo needs
EGL or OSMesa to draw without a screen (`MUJOCO_GL=egl`).
"""

import warnings
from typing import Any

import gymnasium
import numpy as np

TASKS = {
    "button-press-topdown-v3": "press the button from above",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "window-open-v3": "open the window",
}
CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)
"""Closer to the table than as published: in small frames nothing else is visible."""


class MetaWorld(gymnasium.Env[np.ndarray, np.ndarray]):
    """Seed s is task s modulo their number, with objects placed by s; frames show the table.

    An action moves the hand (x, y, z) and the fingers, each in [-1, 1], and is held for
    `action_repeat` steps of Meta-World, so that consecutive frames differ. Observations are
    Meta-World's 39 numbers; an agent looks at `render()`. `info` holds `task` and `success`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 16}

    def __init__(
        self,
        tasks: tuple[str, ...] = tuple(TASKS),
        size: int = 128,
        action_repeat: int = 5,
        render_mode: str | None = "rgb_array",
    ) -> None:
        """Builds the tasks when they are first played.

        Args:
            tasks: Keys of `TASKS`.
            size: Side of the square frames, in pixels; recorded smaller (`--size 64 64`), they
                have smooth edges.
            action_repeat: Steps that an action is held.
            render_mode: "rgb_array" or None.

        Raises:
            ValueError: If a task is unknown.
        """
        unknown = sorted(set(tasks) - set(TASKS))
        if unknown or not tasks:
            raise ValueError(f"tasks {unknown or tasks} are unknown; use {', '.join(TASKS)}")
        self.tasks, self.size, self.action_repeat = tuple(tasks), size, action_repeat
        self.render_mode = render_mode
        self.name = self.tasks[0]
        self._made: dict[str, Any] = {}
        self._renderers: dict[str, Any] = {}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64)
        self._observation = np.zeros(39)

    @property
    def _env(self) -> Any:
        if self.name not in self._made:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # pyright: ignore

            env: Any = ALL_V3_ENVIRONMENTS[self.name]()
            # Objects are placed anew at each reset, by the environment's own generator.
            env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
            env.model.cam_pos[env.model.camera(CAMERA).id] = CAMERA_POSITION
            self._made[self.name] = env
        return self._made[self.name]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins the task of this seed; without one, of a random seed."""
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.name = self.tasks[seed % len(self.tasks)]
        self._env.seed(seed)
        self._observation = self._env.reset()[0]
        return self._observation, {"task": TASKS[self.name], "success": False}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds an action; a success ends the episode."""
        reward, success = 0.0, False
        for _ in range(self.action_repeat):
            self._observation, gained, _, truncated, info = self._env.step(np.asarray(action))
            reward, success = reward + float(gained), success or bool(info["success"])
            if success or truncated:
                break
        info = {"task": TASKS[self.name], "success": success}
        return self._observation, reward, success, False, info

    def render(self) -> Any:
        """The table, `(size, size, 3)` uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        if self.name not in self._renderers:
            import mujoco  # pyright: ignore

            # Shadows and smooth edges take nine tenths of the time of drawing without a GPU.
            self._env.model.vis.quality.offsamples = 0
            renderer: Any = mujoco.Renderer(self._env.model, self.size, self.size)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._renderers[self.name] = renderer
        renderer = self._renderers[self.name]
        renderer.update_scene(self._env.data, camera=CAMERA)
        # The camera hangs upside down.
        return np.ascontiguousarray(renderer.render()[::-1, ::-1])

    def close(self) -> None:
        """Frees the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._made, self._renderers = {}, {}


def expert(env: Any) -> Any:
    """Meta-World's scripted policy for whatever task the environment plays."""
    from metaworld.policies import ENV_POLICY_MAP  # pyright: ignore

    policy: Any = ENV_POLICY_MAP[env.unwrapped.name]()

    def act(observation: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the action will be clipped, as it is here
            return np.clip(policy.get_action(observation), -1, 1).astype(np.float32)

    return act


gymnasium.register("MetaWorld-v0", entry_point="data.sources.metaworld:MetaWorld")
