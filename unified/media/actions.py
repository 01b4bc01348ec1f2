"""Action spaces: what an agent can do, and how it is written in tokens.

There are named actions, several choices at once, keyboard and mouse, and vectors of numbers, one or
a chunk of them. Names are decoded exactly, numbers to within half a bin, see `resolution`.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from unified.media.action_space import (
    ActionSpace,
    check_position,
    check_tokens,
    parsed_action,
    shown,
)
from unified.media.numbers import check_reach, is_whole, number_table, number_type


class NamedActions(ActionSpace):
    """A finite set of named actions, one token each.

    Args:
        name: Name of the space.
        actions: Action names, ordered like the environment's integer actions.
        start: The environment's integer of the first one.

    >>> NamedActions(name="pair", actions=["left", "right"]).tokens
    ('<left>', '<right>')
    """

    kind = "discrete"

    def __init__(self, name: str, actions: Sequence[str], start: int = 0) -> None:
        if isinstance(start, bool) or not isinstance(start, int):
            raise ValueError(f"start={start!r} of {name!r} must be an integer")
        if (
            isinstance(actions, str)
            or not actions
            or not all(isinstance(a, str) and a for a in actions)
        ):
            raise ValueError(
                f"Actions must be a list of one or more non-empty names, got {actions!r}."
            )
        if len(set(actions)) != len(actions):
            raise ValueError(
                f"Action names must differ from each other, got {list(actions)}; rename the "
                "repeated one."
            )
        self.name, self.start = name, start
        self.names = tuple(actions)
        self._by_token = {f"<{action}>": action for action in self.names}

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token the space can produce, in the order of the action names."""
        return tuple(self._by_token)

    @property
    def num_tokens(self) -> int:
        """How many tokens one action takes: one."""
        return 1

    def choices(self, position: int) -> tuple[str, ...]:
        """Tokens that are legal at a position of an action."""
        if position != 0:
            raise ValueError(
                f"Actions of {self.name!r} are one token long, got position {position}; use 0."
            )
        return self.tokens

    def index(self, action: str) -> int:
        """The place of an action name among the names."""
        if action not in self.names:
            raise ValueError(
                f"Unknown action {action!r} for {self.name!r}; use one of {', '.join(self.names)}."
            )
        return self.names.index(action)

    def encode(self, action: Any) -> list[str]:
        """Write an action as one token.

        Args:
            action: Action name, or the environment's integer, `start` for the first name.
        """
        if isinstance(action, str):
            return [f"<{self.names[self.index(action)]}>"]
        try:
            index = None if isinstance(action, bool) else operator.index(action)
        except TypeError:  # an array of one integer, too
            index = None
        if index is None:
            raise ValueError(
                f"An action is a name or an integer, got {shown(action)}; use one of "
                f"{', '.join(self.names)}."
            )
        stop = self.start + len(self.names)
        if not self.start <= index < stop:
            raise ValueError(
                f"Action index {index} is outside [{self.start}, {stop}) of {self.name!r}; use a "
                "legal index."
            )
        return [self.tokens[index - self.start]]

    def decode(self, tokens: Sequence[str]) -> str:
        """Read the action name back from its token."""
        if isinstance(tokens, str) or len(tokens) != 1 or tokens[0] not in self._by_token:
            raise ValueError(
                f"{tokens!r} is no action of {self.name!r}; give a list with one of "
                f"{' '.join(self.tokens)}."
            )
        return self._by_token[tokens[0]]

    def to_environment(self, action: Any) -> int:
        """The action's integer."""
        return self.start + self.names.index(self.decode(self.encode(action)))

    def to_config(self) -> dict[str, Any]:
        """The plain dict from which `from_config` rebuilds the space."""
        config = {"name": self.name, "kind": self.kind, "actions": list(self.names)}
        return {**config, "start": self.start} if self.start else config


class MultiDiscreteActions(ActionSpace):
    """Several choices made at once, like `gymnasium.spaces.MultiDiscrete`; a token for each.

    Args:
        name: Name of the space.
        parts: For each part of an action the names of its options, in the environment's order; a
            number stands for that many options without names.
        starts: For each part the environment's integer of the first option; None for zeros.
        dtype: Integer type of the environment's array.

    >>> space = MultiDiscreteActions("arm", {"move": ["left", "right"], "grip": 2})
    >>> space.encode([1, 0]), space.decode(["<move:left>", "<grip:1>"])
    (['<move:right>', '<grip:0>'], {'move': 'left', 'grip': '1'})
    """

    kind = "multi_discrete"

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Sequence[str] | int],
        starts: Sequence[int] | None = None,
        dtype: str = "int64",
    ) -> None:
        if not parts:
            raise ValueError(f"the parts of {name!r} are empty; name at least one choice")
        self.name, self.starts = name, tuple(starts or (0,) * len(parts))
        self.dtype = number_type(dtype, name, "iu")
        if len(self.starts) != len(parts):
            raise ValueError(
                f"starts={starts!r} of {name!r} must hold {len(parts)} integers, one for each part"
            )
        self.parts: dict[str, tuple[str, ...]] = {}
        for (part, options), start in zip(parts.items(), self.starts, strict=True):
            numbers = range(start, start + options) if isinstance(options, int) else ()
            given = [str(i) for i in numbers] if isinstance(options, int) else list(options)
            self.parts[part] = NamedActions(f"{name}, {part}", given, start).names
        repeated = [token for token, count in Counter(self.tokens).items() if count > 1]
        if repeated:
            raise ValueError(
                f"two parts of {name!r} write an option as {repeated[0]}; rename a part, or leave "
                "colons out of the names"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every option of every part."""
        return tuple(t for position in range(self.num_tokens) for t in self.choices(position))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an action: one for each part."""
        return len(self.parts)

    def choices(self, position: int) -> tuple[str, ...]:
        """The options of one part."""
        check_position(self, position)
        part = list(self.parts)[position]
        return tuple(f"<{part}:{option}>" for option in self.parts[part])

    def indices(self, action: Any) -> list[int]:
        """The places of the options, from 0.

        Args:
            action: A mapping from parts to options, or the environment's integers.
        """
        action = parsed_action(action)
        if isinstance(action, Mapping):
            if set(action) != set(self.parts):
                raise ValueError(
                    f"action {dict(action)!r} of {self.name!r} must name {', '.join(self.parts)}"
                )
            action = [action[part] for part in self.parts]
        is_many = isinstance(action, Sequence | np.ndarray) and np.ndim(action) > 0
        values = list(action) if is_many else [action]
        if isinstance(action, str) or len(values) != self.num_tokens:
            raise ValueError(
                f"action {action!r} of {self.name!r} must have {self.num_tokens} parts: "
                f"{', '.join(self.parts)}"
            )
        spaces = (
            NamedActions(part, options, start)
            for (part, options), start in zip(self.parts.items(), self.starts, strict=True)
        )
        return [
            space.names.index(space.decode(space.encode(value)))
            for space, value in zip(spaces, values, strict=True)
        ]

    def encode(self, action: Any) -> list[str]:
        """Write an action: a mapping from parts to options, or the environment's integers."""
        indices = self.indices(action)
        return [self.choices(position)[index] for position, index in enumerate(indices)]

    def decode(self, tokens: Sequence[str]) -> dict[str, str]:
        """Read an action back, as a mapping from parts to options."""
        check_tokens(self, tokens)
        return {
            part: options[self.choices(position).index(tokens[position])]
            for position, (part, options) in enumerate(self.parts.items())
        }

    def to_environment(self, action: Any) -> np.ndarray:
        """The environment's integers, `(parts,)` of the space's `dtype`."""
        return np.add(self.indices(action), self.starts, dtype=np.int64).astype(self.dtype)

    def to_config(self) -> dict[str, Any]:
        """The plain dict from which `from_config` rebuilds the space."""
        parts = {part: list(options) for part, options in self.parts.items()}
        config: dict[str, Any] = {"name": self.name, "kind": self.kind, "parts": parts}
        config |= {} if self.dtype == np.int64 else {"dtype": self.dtype.name}
        return {**config, "starts": list(self.starts)} if any(self.starts) else config


Spacing = Literal["uniform", "mu_law", "quantile"]
MU = 10.0
"""Parameter of the mu-law, which gives small values finer bins (VPT, arXiv:2206.11795)."""


def _bins(count: Any) -> int:
    """A number of bins, if it is one."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"bins={count!r} must be a whole number of at least 1; 256 is usual")
    return int(count)


class ContinuousActions(ActionSpace):
    """A vector of numbers, or a chunk of several vectors; one of `bins` tokens for each number.

    All dimensions share the tokens, each with its own bins. A number comes back as the middle of
    its bin; of an integer type, as the integer nearest to that, within the bounds.

    Args:
        name: Name of the space.
        dimensions: Names of the D numbers.
        edges: D lists of `bins + 1` numbers that never fall: where each dimension's bins meet.
        chunk: Vectors in one action.
        dtype: Type of the environment's numbers, such as float32 or int64.

    >>> space = ContinuousActions.between("arm", ["x", "y"], [-1, 0], [1, 1], bins=4)
    >>> space.encode([-0.9, 1.0]), space.decode(["<bin0>", "<bin3>"])
    (['<bin0>', '<bin3>'], [-0.75, 0.875])
    """

    kind = "continuous"

    def __init__(
        self,
        name: str,
        dimensions: Sequence[str],
        edges: Sequence[Sequence[float]],
        chunk: int = 1,
        dtype: str = "float32",
    ) -> None:
        self.name, self.dimensions, self.chunk = name, tuple(dimensions), chunk
        self.dtype = number_type(dtype, name)
        self.edges = np.asarray(edges, dtype=np.float64)
        rows, columns = self.edges.shape if self.edges.ndim == 2 else (0, 0)
        if rows != len(self.dimensions) or columns < 2:
            raise ValueError(
                f"the edges of {name!r} have shape {self.edges.shape}; give one list of bins + 1 "
                f"numbers for each of {list(dimensions)}"
            )
        if not np.isfinite(self.edges).all() or (np.diff(self.edges) < 0).any():
            raise ValueError(f"the edges of {name!r} must be finite and never fall")
        check_reach(name, self.edges, self.dtype)
        if (self.bounds[0] > self.bounds[1]).any():
            raise ValueError(f"between the edges of {name!r} lies no integer; widen them")
        if chunk < 1:
            raise ValueError(f"chunk={chunk} of {name!r} must be at least 1")

    @classmethod
    def between(
        cls,
        name: str,
        dimensions: Sequence[str],
        low: Sequence[float],
        high: Sequence[float],
        *,
        bins: int = 256,
        spacing: Literal["uniform", "mu_law"] = "uniform",
        chunk: int = 1,
        dtype: str = "float32",
    ) -> ContinuousActions:
        """Bins between bounds: all as wide, or by the mu-law, finest in the middle.

        Raises:
            ValueError: If a bound is not finite, or none is below the other.
        """
        bounds = number_table(name, dimensions, [low, high])
        if not np.isfinite(bounds).all() or (bounds[0] >= bounds[1]).any():
            raise ValueError(
                f"low {list(low)} and high {list(high)} of {name!r} must be finite, and low below "
                "high; fit the bins to recorded actions with ContinuousActions.fit"
            )
        check_reach(name, bounds, number_type(dtype, name))
        steps = np.linspace(-1, 1, _bins(bins) + 1)
        if spacing == "mu_law":  # the inverse of sign(x) log(1 + mu |x|) / log(1 + mu)
            steps = np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(MU)) / MU
        steps = (steps - steps[::-1]) / 2  # as rounding leaves it, rest is not exactly zero
        middle, half = bounds.mean(0), (bounds[1] - bounds[0]) / 2
        edges = middle[:, None] + half[:, None] * steps
        edges[:, 0], edges[:, -1] = bounds
        return cls(name, dimensions, edges.tolist(), chunk, dtype)

    @classmethod
    def fit(
        cls,
        name: str,
        dimensions: Sequence[str],
        actions: np.ndarray,
        *,
        bins: int = 256,
        chunk: int = 1,
        dtype: str = "float32",
    ) -> ContinuousActions:
        """Bins that hold equally many of the recorded actions, `(N, D)`; seldom values get wide.

        The least and the greatest value, and any that takes more than three bins' share, such as a
        zero, have bins of no width, and so come back exactly. Integers of an integer `dtype` all
        do, if their range, or twice the number of those that differ, is no more than the bins.

        Raises:
            ValueError: If they are no table of numbers, or one is not finite; names its row.
        """
        values = number_table(name, dimensions, actions)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            row, dimension = wrong[0]
            raise ValueError(
                f"action {row} of {name!r} has {dimensions[dimension]}={values[row, dimension]}; "
                "leave such steps out, or mend them"
            )
        check_reach(name, values, number_type(dtype, name))
        shares = np.linspace(0, 1, _bins(bins) + 1)
        if bins >= 3:
            shares = np.concatenate([[0], np.linspace(0, 1, bins - 1), [1]])
        edges = np.maximum.accumulate(np.quantile(values, shares, axis=0).T, axis=1)
        for row, column in zip(edges, values.T, strict=True) if is_whole(dtype) else ():
            different = np.unique(column)
            if different[-1] - different[0] < bins:  # bins narrower than 1
                row[:] = np.linspace(different[0], different[-1], bins + 1)
            elif 2 * len(different) <= bins + 1:  # a bin of no width for each
                row[:] = different[-1]
                row[: 2 * len(different)] = np.repeat(different, 2)
        return cls(name, dimensions, edges.tolist(), chunk, dtype)

    @property
    def bounds(self) -> np.ndarray:
        """The least and the greatest number of each dimension, `(2, D)`."""
        ends = self.edges[:, [0, -1]].T
        return np.stack([np.ceil(ends[0]), np.floor(ends[1])]) if is_whole(self.dtype) else ends

    @property
    def bins(self) -> int:
        """Number of bins of each dimension."""
        return self.edges.shape[1] - 1

    @property
    def resolution(self) -> np.ndarray:
        """Greatest error of a number that is encoded and decoded, in each dimension, `(D,)`."""
        half = np.diff(self.edges).max(1) / 2
        return np.floor(half + 0.5) if is_whole(self.dtype) else half

    @property
    def tokens(self) -> tuple[str, ...]:
        """One token for each bin."""
        return tuple(f"<bin{i}>" for i in range(self.bins))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an action: one for each number of each vector."""
        return self.chunk * len(self.dimensions)

    def choices(self, position: int) -> tuple[str, ...]:
        """Tokens of all bins, at every position."""
        check_position(self, position)
        return self.tokens

    def encode(self, action: Any) -> list[str]:
        """Write a vector `(D,)`, or a chunk `(chunk, D)` of them."""
        shape = (len(self.dimensions),) if self.chunk == 1 else (self.chunk, len(self.dimensions))
        action = parsed_action(action)
        try:
            values = np.asarray(action, dtype=np.float64)
        except OverflowError as error:
            raise ValueError(
                f"an action of {self.name!r} holds a number that is too large; clip it to the "
                "range of the space"
            ) from error
        except (TypeError, ValueError, RuntimeError) as error:  # of a tensor that has a gradient
            raise ValueError(
                f"action {shown(action)} of {self.name!r} is no vector ({error})"
            ) from error
        if values.shape != shape:
            raise ValueError(
                f"action {shown(action)} of {self.name!r} has shape {values.shape}, not {shape}: "
                f"{', '.join(self.dimensions)}"
            )
        tokens = []
        for vector in values.reshape(self.chunk, -1):
            for dimension, edges, value in zip(self.dimensions, self.edges, vector, strict=True):
                if not edges[0] <= value <= edges[-1]:  # NaN is in no range
                    raise ValueError(
                        f"{dimension}={value} of {self.name!r} is not between {edges[0]} and "
                        f"{edges[-1]}; clip it, or fit the bins to actions that hold it"
                    )
                if is_whole(self.dtype) and value != np.rint(value):
                    raise ValueError(
                        f"{dimension}={value} of {self.name!r} is no integer, as {self.dtype} "
                        "holds; round it"
                    )
                # Between equal edges lies a bin of no width: the middle one of them is exact.
                first = int(np.searchsorted(edges[1:-1], value, "left"))
                last = int(np.searchsorted(edges[1:], value, "right"))
                tokens.append(f"<bin{(first + last) // 2}>")
        return tokens

    def decode(self, tokens: Sequence[str]) -> list[Any]:
        """Read a vector back, or a chunk of them, as lists of numbers."""
        check_tokens(self, tokens)
        place = {token: index for index, token in enumerate(self.tokens)}
        indices = np.array([place[token] for token in tokens]).reshape(self.chunk, -1)
        dimension = np.arange(len(self.dimensions))
        values = (self.edges[dimension, indices] + self.edges[dimension, indices + 1]) / 2
        if is_whole(self.dtype):
            values = np.clip(np.rint(values), *self.bounds).astype(self.dtype)
        return values[0].tolist() if self.chunk == 1 else values.tolist()

    def to_environment(self, action: Any) -> np.ndarray:
        """The numbers, `(D,)` or `(chunk, D)` of the space's `dtype`."""
        return np.asarray(self.decode(self.encode(action)), dtype=self.dtype)

    def to_config(self) -> dict[str, Any]:
        """The plain dict from which `from_config` rebuilds the space."""
        return {
            "name": self.name,
            "kind": self.kind,
            "dimensions": list(self.dimensions),
            "edges": self.edges.tolist(),
            "chunk": self.chunk,
            **({} if self.dtype == np.float32 else {"dtype": self.dtype.name}),
        }


class KeyboardMouseActions(ActionSpace):
    """Which keys and buttons are held, and how the mouse moves.

    A token for each key, up or down, then one of `bins` for each of the mouse's two directions, by
    the mu-law: small movements have fine bins.

    Args:
        name: Name of the space.
        keys: Names of keys and buttons.
        mouse: Farthest movement to the right or left, and down or up, in the recorder's unit; one
            number for both.
        bins: For each direction; odd, so that one is rest.

    >>> space = KeyboardMouseActions("game", ["w", "space"], mouse=10)
    >>> space.decode(space.encode({"keys": ["w"], "mouse": [0, 0]}))
    {'keys': ['w'], 'mouse': [0.0, 0.0]}
    """

    kind = "keyboard_mouse"

    def __init__(
        self, name: str, keys: Sequence[str], mouse: float | Sequence[float], bins: int = 11
    ) -> None:
        farthest = [mouse, mouse] if isinstance(mouse, int | float) else list(mouse)
        if len(farthest) != 2:
            raise ValueError(f"mouse={mouse!r} of {name!r} must be one number, or right and down")
        self.name, self.mouse = name, (float(farthest[0]), float(farthest[1]))
        self.keys = NamedActions(f"{name}, keys", list(keys)).names
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins={bins} of {name!r} must be odd and at least 3: one is rest")
        axes = ["mouse to the right", "mouse down"]
        span = [-x for x in self.mouse], self.mouse
        self._axes = ContinuousActions.between(name, axes, *span, bins=bins, spacing="mu_law")
        self.bins = bins

    @property
    def tokens(self) -> tuple[str, ...]:
        """Up, down, then the mouse's bins."""
        return ("<key up>", "<key down>", *(f"<mouse{i}>" for i in range(self.bins)))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an action: one for each key, two for the mouse."""
        return len(self.keys) + 2

    @property
    def resolution(self) -> np.ndarray:
        """How far a movement comes back at most from what it was, `(2,)`: right, and down."""
        return self._axes.resolution

    def choices(self, position: int) -> tuple[str, ...]:
        """Up or down for a key, a bin for the mouse."""
        check_position(self, position)
        return self.tokens[:2] if position < len(self.keys) else self.tokens[2:]

    def encode(self, action: Any) -> list[str]:
        """Write `{"keys": names of those held, or 0 and 1 for each, "mouse": [right, down]}`."""
        action = parsed_action(action)
        if not isinstance(action, Mapping) or set(action) != {"keys", "mouse"}:
            raise ValueError(
                f"action {action!r} of {self.name!r} must be a mapping with keys and mouse"
            )
        keys, mouse = self._held(action["keys"]), action["mouse"]
        if not isinstance(mouse, Sequence | np.ndarray) or np.shape(mouse) != (2,):
            raise ValueError(f"mouse {mouse!r} of {self.name!r} must be two numbers")
        held = [self.tokens[key in keys] for key in self.keys]
        moved = self._axes.encode(mouse)
        return held + [token.replace("bin", "mouse") for token in moved]

    def _held(self, keys: Any) -> list[str]:
        """Names of the keys that are held, of names or of a 0 or 1 for each."""
        told = keys.tolist() if isinstance(keys, np.ndarray) else keys
        if not isinstance(told, list | tuple | set | frozenset):
            raise ValueError(
                f"keys {keys!r} of {self.name!r} must be a list: of the names of those held, or of "
                f"0 or 1 for each of {', '.join(self.keys)}"
            )
        if len(told) == len(self.keys) and all(
            isinstance(x, int | float | np.number | np.bool_) and x in (0, 1) for x in told
        ):
            return [key for key, held in zip(self.keys, told, strict=True) if held]
        unknown = [key for key in told if key not in self.keys]
        if unknown:
            raise ValueError(
                f"key {unknown[0]!r} is none of {self.name!r}; use {', '.join(self.keys)}, or 0 or "
                f"1 for each of these {len(self.keys)}"
            )
        return list(told)

    def decode(self, tokens: Sequence[str]) -> dict[str, Any]:
        """Read the keys that are held, in the space's order, and the mouse's movement."""
        check_tokens(self, tokens)
        keys = [key for key, token in zip(self.keys, tokens, strict=False) if "down" in token]
        moved = [token.replace("mouse", "bin") for token in tokens[len(self.keys) :]]
        return {"keys": keys, "mouse": self._axes.decode(moved)}

    def to_environment(self, action: Any) -> dict[str, np.ndarray]:
        """`keys` `(keys,)` int8, 1 where held, and `mouse` `(2,)` float32."""
        pressed = self.decode(self.encode(action))
        held = np.array([key in pressed["keys"] for key in self.keys], dtype=np.int8)
        return {"keys": held, "mouse": np.array(pressed["mouse"], dtype=np.float32)}

    def to_config(self) -> dict[str, Any]:
        """The plain dict from which `from_config` rebuilds the space."""
        return {
            "name": self.name,
            "kind": self.kind,
            "keys": list(self.keys),
            "mouse": self.mouse[0] if self.mouse[0] == self.mouse[1] else list(self.mouse),
            "bins": self.bins,
        }
