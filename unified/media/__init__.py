"""Frames and actions as numbers and tokens: the codec and the action spaces."""

# `ActionSpace.from_config` builds a space of any kind, so the kinds are known from the start.
from unified.media import actions, embodiments

__all__ = ["actions", "embodiments"]
