"""RemoteWorldEnv: a world that a server's model dreams, behind gymnasium's interface.

This module needs gymnasium, websockets and pydantic; neither torch nor the model are needed here.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from PIL import Image
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from unified.media.action_space import ActionSpace
from unified.media.pictures import read_picture
from unified.play.protocol import VERSION, unpack
from unified.roles.world import METADATA, action_space_from, draw_seed

SECONDS = 60.0
"""That an answer may take."""


class RemoteWorldEnv(gymnasium.Env[np.ndarray, Any]):
    """`WorldEnv` by a server: the same seeds, frames, rewards and ends, without a model here.

    `info` holds the `outcome`. Several of them, in threads or processes, share the server's batch.

    Example:
        >>> def walk(url, frame):  # url: "ws://127.0.0.1:8000" of a running `unified play`
        ...     world = RemoteWorldEnv(url, frame=frame, task="go to the red ball")
        ...     world.reset(seed=0)
        ...     moment = world.snapshot()
        ...     turned_left = world.step("left")[0]
        ...     world.restore(moment)
        ...     return turned_left, world.step("right")[0]
    """

    metadata = METADATA

    def __init__(
        self,
        url: str,
        frame: Any = None,
        task: str | None = None,
        *,
        words: str | None = None,
        token: str | None = None,
        max_steps: int = 64,
        render_mode: str | None = "rgb_array",
    ):
        """Takes a place on the server.

        Args:
            url: Such as "ws://127.0.0.1:8000".
            frame: First frame, `(H, W, 3)` uint8, a PIL image or the path of one; None is imagined.
            task: What the episode is about, in words.
            words: What the world says of its first frame.
            token: Where the server asks for one.
            max_steps: Truncates the episode.
            render_mode: "rgb_array" or None.

        Raises:
            ValueError: If the server cannot be reached, or refuses.
        """
        self.url, self.max_steps, self.render_mode = url, max_steps, render_mode
        self.start = {"frame": frame, "task": task, "words": words}
        self._ids = itertools.count(1)
        self._steps, self._is_over = 0, True
        self._frame = np.zeros(0, np.uint8)
        try:
            self._connection = connect(url.rstrip("/") + "/ws", max_size=None, compression=None)
            self._socket = self._connection.__enter__()
        except (OSError, WebSocketException, ValueError) as error:
            raise ValueError(
                f"no server answers at {url!r} ({error}); start one with `unified play`, and give "
                "its address like ws://127.0.0.1:8000"
            ) from error
        hello = {"type": "hello", "protocol": VERSION, "token": token, "exact": True}
        self.facts, _ = self._ask(hello)
        self.actions = ActionSpace.from_config(self.facts["actions"])
        self.action_space = action_space_from(self.actions)
        shape = (*self.facts["frame_size"], 3)
        self.observation_space = Box(0, 255, shape=shape, dtype=np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Opens an episode.

        Args:
            seed: Of all noise from now on.
            options: `frame`, `task` and `words`, instead of the environment's own.

        Raises:
            ValueError: If there is neither frame nor words, or an option is unknown.
        """
        super().reset(seed=seed)
        unknown = sorted(set(options or {}) - set(self.start))
        if unknown:
            raise ValueError(f"option {unknown[0]!r} is unknown; use 'frame', 'task', 'words'")
        given = {**self.start, **{k: v for k, v in (options or {}).items() if v is not None}}
        opening: dict[str, Any] = {"noise": draw_seed(self.np_random)}
        if given["frame"] is not None:
            out = io.BytesIO()
            Image.fromarray(read_picture(given["frame"], "the frame")).save(out, format="PNG")
            opening["picture"] = base64.b64encode(out.getvalue()).decode()
        opening |= {k: given[k] for k in ("task", "words") if given[k] is not None}
        header, files = self._ask({"type": "open", "opening": opening})
        self._steps, self._is_over = 0, False
        return self._seen(header, files)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes an action, by integer or by name, and shows the frame it leads to.

        Raises:
            ValueError: If the action is unknown, or the episode is over.
        """
        if self._is_over:
            raise ValueError("the episode is over or has not begun; call reset before step")
        told = self.actions.decode(self.actions.encode(action))
        header, files = self._ask({"type": "step", "action": told})
        frame, info = self._seen(header, files)
        self._steps += 1
        terminated = info["outcome"] != "ongoing"
        truncated = not terminated and self._steps >= self.max_steps
        self._is_over = terminated or truncated
        return frame, float(info["outcome"] == "success"), terminated, truncated, info

    def tell(self, words: str) -> None:
        """Says what happens in the world with the next step.

        Raises:
            ValueError: If the model was never taught words of the world.
        """
        self._ask({"type": "tell", "words": words})

    def snapshot(self) -> tuple[int, int, bool]:
        """This moment, to `restore` in this environment until its next reset."""
        return int(self._node), self._steps, self._is_over

    def restore(self, snapshot: tuple[int, int, bool]) -> np.ndarray:
        """Goes back to a moment, and shows its frame."""
        node, self._steps, self._is_over = snapshot
        self._ask({"type": "goto", "node": node})
        self._node, self._frame = node, self._frames[node]
        return self._frame.copy()

    def render(self) -> Any:
        """The current frame, `(H, W, 3)` uint8; None without a render mode."""
        return None if self.render_mode is None else self._frame.copy()

    def close(self) -> None:
        """Gives the place back."""
        self._connection.__exit__(None, None, None)

    def _seen(
        self, header: dict[str, Any], files: dict[str, bytes]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if header.get("is_first"):
            self._frames: dict[int, np.ndarray] = {}
        self._node = header["node"]
        self._frame = self._frames[self._node] = read_picture(files["view"], "the frame")
        return self._frame.copy(), {"outcome": header["outcome"]}

    def _ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Says something, and waits for the answer to it."""
        number = next(self._ids)
        told = {name: value for name, value in message.items() if value is not None}
        try:
            self._socket.send(json.dumps({**told, "id": number}))
            while True:
                answer = self._socket.recv(timeout=SECONDS)
                is_text = isinstance(answer, str)
                header, files = (json.loads(answer), {}) if is_text else unpack(answer)
                if header["type"] in ("error", "closed") and header.get("id") in (number, None):
                    raise ValueError(f"{self.url}: {header['words']}")
                if header.get("id") == number:
                    return header, files
        except (WebSocketException, OSError, TimeoutError) as error:
            raise ValueError(f"{self.url} is gone ({error!r}); make the world again") from error
