"""Action spaces: what an agent can do, and how it is written in tokens.

An action space turns one action into a fixed number of vocabulary tokens and back. `NamedActions`
is the simplest
kind: a finite set of named actions, one token each, numbered like the environment's own
`gymnasium.spaces.Discrete`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ActionSpace(ABC):
    """A set of actions, each written as `num_tokens` vocabulary tokens.

    Attributes:
        name: Name of the space, for messages and files.
    """

    name: str

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

    @abstractmethod
    def encode(self, action: Any) -> list[str]:
        """Write one action as `num_tokens` tokens."""

    @abstractmethod
    def decode(self, tokens: Sequence[str]) -> Any:
        """Read one action back from its `num_tokens` tokens."""

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
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} is not valid JSON ({error}); restore it or write it again."
                ) from error
        kind = content.pop("kind", None) if isinstance(content, dict) else None
        if kind not in KINDS:
            raise ValueError(
                f"Unknown action space kind {kind!r}; known kinds: {', '.join(KINDS)}."
            )
        try:
            return KINDS[kind](**content)
        except TypeError as error:
            raise ValueError(
                f"Bad keys for an action space of kind {kind!r} ({error}); see actions/babyai.json."
            ) from error


class NamedActions(ActionSpace):
    """A finite set of named actions, one token each.

    Args:
        name: Name of the space.
        actions: Action names, ordered like the environment's integer actions.

    >>> NamedActions(name="pair", actions=["left", "right"]).tokens
    ('<left>', '<right>')
    """

    def __init__(self, name: str, actions: Sequence[str]) -> None:
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
        self.name = name
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
        """The environment's integer for an action name."""
        if action not in self.names:
            raise ValueError(
                f"Unknown action {action!r} for {self.name!r}; use one of {', '.join(self.names)}."
            )
        return self.names.index(action)

    def encode(self, action: Any) -> list[str]:
        """Write an action as one token.

        Args:
            action: Action name, or its index in [0, len(names)) as gymnasium gives it.
        """
        if isinstance(action, str):
            return [f"<{self.names[self.index(action)]}>"]
        if isinstance(action, bool) or not hasattr(action, "__index__"):
            raise ValueError(
                f"An action is a name or an integer, got {action!r}; use one of "
                f"{', '.join(self.names)}."
            )
        index = action.__index__()
        if not 0 <= index < len(self.names):
            raise ValueError(
                f"Action index {index} is outside [0, {len(self.names)}) of {self.name!r}; use a "
                "legal index."
            )
        return [self.tokens[index]]

    def decode(self, tokens: Sequence[str]) -> str:
        """Read the action name back from its token."""
        if isinstance(tokens, str) or len(tokens) != 1 or tokens[0] not in self._by_token:
            raise ValueError(
                f"{tokens!r} is no action of {self.name!r}; give a list with one of "
                f"{' '.join(self.tokens)}."
            )
        return self._by_token[tokens[0]]

    def to_config(self) -> dict[str, Any]:
        """The plain dict from which `from_config` rebuilds the space."""
        return {"name": self.name, "kind": "discrete", "actions": list(self.names)}


KINDS: dict[str, type[NamedActions]] = {"discrete": NamedActions}
