"""EmbodiedActions: the action spaces of several embodiments in one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unified.media.action_space import ActionSpace, parsed_action


class EmbodiedActions(ActionSpace):
    """The actions of several embodiments, each with tokens of its own and as many as it needs.

    An action is `{name: action}`. Its first token determines the embodiment, so that its other
    tokens belong to the same one.

    Args:
        name: Name of the space.
        spaces: Name of each embodiment, and its action space, or what `from_config` makes one of.

    >>> from unified.media.actions import NamedActions
    >>> pair = {"arm": NamedActions("arm", ["up"]), "car": NamedActions("car", ["left", "right"])}
    >>> space = EmbodiedActions("both", pair)
    >>> space.encode({"car": "right"}), space.decode(["<arm:up>"])
    (['<car:right>'], {'arm': 'up'})
    """

    kind = "embodied"

    def __init__(self, name: str, spaces: Mapping[str, ActionSpace | Mapping[str, Any]]) -> None:
        if not spaces:
            raise ValueError(f"{name!r} has no embodiments; name at least one")
        self.name = name
        self.spaces: dict[str, ActionSpace] = {}
        for embodiment, space in spaces.items():
            own = space if isinstance(space, ActionSpace) else ActionSpace.from_config(space)
            if isinstance(own, EmbodiedActions) or not embodiment or ":" in embodiment:
                raise ValueError(
                    f"embodiment {embodiment!r} of {name!r} needs a name without colons, and "
                    "actions of its own"
                )
            self.spaces[embodiment] = own
        self._of_token = {
            self._token(embodiment, token): (embodiment, token)
            for embodiment, space in self.spaces.items()
            for token in space.tokens
        }

    @staticmethod
    def _token(embodiment: str, token: str) -> str:
        return f"<{embodiment}:{token.removeprefix('<')}"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of each embodiment, one embodiment after the other."""
        return tuple(self._of_token)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the longest action."""
        return max(space.num_tokens for space in self.spaces.values())

    def choices(self, position: int) -> tuple[str, ...]:
        """Legal tokens of all embodiments whose actions are so long; `formats` has each alone."""
        found = [
            self._token(embodiment, token)
            for embodiment, space in self.spaces.items()
            if position < space.num_tokens
            for token in space.choices(position)
        ]
        if position < 0 or not found:
            raise ValueError(
                f"Actions of {self.name!r} are at most {self.num_tokens} tokens long, got position "
                f"{position}; use 0 to {self.num_tokens - 1}."
            )
        return tuple(found)

    @property
    def formats(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each embodiment the runs `[start, stop)` of `tokens` that are legal at each place."""
        found, start = [], 0
        for space in self.spaces.values():
            for form in space.formats:
                found.append(tuple((start + first, start + stop) for first, stop in form))
            start += len(space.tokens)
        return tuple(found)

    def _of(self, action: Any) -> tuple[str, Any]:
        """Embodiment and its action."""
        action = parsed_action(action)
        if isinstance(action, tuple) and len(action) == 2:  # a sample of gymnasium's OneOf
            names, place = list(self.spaces), action[0]
            if hasattr(place, "__index__") and 0 <= place.__index__() < len(names):
                action = {names[place.__index__()]: action[1]}
        if not isinstance(action, Mapping) or len(action) != 1 or set(action) - set(self.spaces):
            raise ValueError(
                f"action {action!r} of {self.name!r} must be {{name: action}} with one of "
                f"{', '.join(self.spaces)}"
            )
        return next(iter(action.items()))

    def encode(self, action: Any) -> list[str]:
        """Tokens of an action `{name: action}`, the name being the embodiment's."""
        embodiment, own = self._of(action)
        return [self._token(embodiment, token) for token in self.spaces[embodiment].encode(own)]

    def decode(self, tokens: Sequence[str]) -> dict[str, Any]:
        """Read `{name: action}` back."""
        found = [self._of_token.get(token, (None, "")) for token in tokens]
        names = {embodiment for embodiment, _ in found}
        embodiment = found[0][0] if len(names) == 1 else None
        if isinstance(tokens, str) or embodiment is None:
            raise ValueError(f"{tokens!r} is no action of one embodiment of {self.name!r}")
        return {embodiment: self.spaces[embodiment].decode([token for _, token in found])}

    def to_environment(self, action: Any) -> Any:
        """What the environment of that embodiment takes."""
        embodiment, own = self._of(action)
        return self.spaces[embodiment].to_environment(own)

    def to_config(self) -> dict[str, Any]:
        """The plain dict from which `from_config` rebuilds the space."""
        spaces = {name: space.to_config() for name, space in self.spaces.items()}
        return {"name": self.name, "kind": self.kind, "spaces": spaces}
