"""ActionSpace: a set of actions, each written as a fixed number of tokens."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from unified.files import read_json

ACTIONS_FILE = "action_space.json"
"""Name of the file in the folder of a data set or of a processor."""
KINDS: dict[str, type[ActionSpace]] = {}
"""Action spaces by the kind that a file names."""


class ActionSpace(ABC):
    """A set of actions, each written as `num_tokens` vocabulary tokens (see `formats`).

    Attributes:
        name: Name of the space, for messages and files.
        kind: Name of this class in files, see `from_config`.
    """

    name: str
    kind: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the kind known to `from_config`."""
        super().__init_subclass__(**kwargs)
        KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def tokens(self) -> tuple[str, ...]:
        """Every token the space can produce, in vocabulary order."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """How many tokens one action takes."""

    @abstractmethod
    def choices(self, position: int) -> tuple[str, ...]:
        """Tokens that are legal at a position of an action, for constrained sampling.

        Args:
            position: Index of the token inside the action, in [0, num_tokens).
        """

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """For each position, the run `[start, stop)` of `tokens` that is legal there."""
        place = {token: index for index, token in enumerate(self.tokens)}
        runs = [self.choices(position) for position in range(self.num_tokens)]
        return tuple((place[run[0]], place[run[0]] + len(run)) for run in runs)

    @property
    def formats(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Every way to write an action, as `ranges`; the first token determines which it is."""
        return (self.ranges,)

    @abstractmethod
    def encode(self, action: Any) -> list[str]:
        """Write one action as `num_tokens` tokens.

        Raises:
            ValueError: If it is no action of this space, or not a finite number.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[str]) -> Any:
        """Read one action back from its `num_tokens` tokens."""

    @abstractmethod
    def to_environment(self, action: Any) -> Any:
        """An action as a Gymnasium environment takes it: an integer, or arrays.

        Args:
            action: As `encode` takes it.

        Raises:
            ValueError: If it is no action of this space.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The plain dict from which `from_config` rebuilds the space."""

    @staticmethod
    def from_config(config: str | Path | Mapping[str, Any]) -> ActionSpace:
        """Build a space from a dict, or from a JSON file that holds one.

        Args:
            config: Mapping with the key `kind` and that kind's own keys, or the path of such a
                JSON file.

        >>> config = {"name": "pair", "kind": "discrete", "actions": ["left", "right"]}
        >>> space = ActionSpace.from_config(config)
        >>> space.encode("right"), space.encode(0), space.decode(["<right>"])
        (['<right>'], ['<left>'], 'right')
        """
        if isinstance(config, Mapping):
            content = dict(config)
        else:
            path = Path(config)
            if not path.is_file():
                raise ValueError(
                    f"No action space file at {path}; give the path of a JSON file like "
                    "actions/babyai.json."
                )
            content = read_json(path)
        kind = content.pop("kind", None)
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(
                f"Unknown action space kind {kind!r}; known kinds: {', '.join(KINDS)}."
            )
        try:
            return KINDS[kind](**content)
        except (TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"Bad keys for an action space of kind {kind!r} ({error}); see actions/babyai.json."
            ) from error


def parsed_action(action: Any) -> Any:
    """An action that a file holds as JSON; any other as it is."""
    if not isinstance(action, str):
        return action
    try:
        return json.loads(action)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise ValueError(
            f"action {shown(action)} is not JSON ({error}); write it as JSON"
        ) from error


def shown(action: Any) -> str:
    """An action as an error shows it: as Python writes it, its beginning if that is long."""
    try:
        written = repr(action)
    except ValueError:  # Python writes no number of thousands of digits
        return f"of type {type(action).__name__}"
    return written if len(written) <= 200 else f"{written[:200]}..."


def check_position(space: ActionSpace, position: int) -> None:
    """Refuses a place that no token of an action has."""
    if not 0 <= position < space.num_tokens:
        raise ValueError(
            f"Actions of {space.name!r} are {space.num_tokens} tokens long, got position "
            f"{position}; use 0 to {space.num_tokens - 1}."
        )


def check_tokens(space: ActionSpace, tokens: Sequence[str]) -> None:
    """Refuses tokens that are no action of the space."""
    is_right = not isinstance(tokens, str) and len(tokens) == space.num_tokens
    if not is_right or any(t not in space.choices(i) for i, t in enumerate(tokens)):
        raise ValueError(
            f"{tokens!r} is no action of {space.name!r}; give {space.num_tokens} tokens, each one "
            "of choices(position)."
        )
