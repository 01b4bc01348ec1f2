"""Who may speak after whom.

This file does not import torch, so that recording an episode does not have to.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Protocol

ROLES = ("task", "agent", "world")
"""The parties of a conversation."""
OUTCOMES = ("ongoing", "success", "failure")
"""What may be said after a frame: the episode goes on, or has ended."""


class Kind(StrEnum):
    """What a segment is made of."""

    TEXT = "text"
    ACTION = "action"
    FRAME = "frame"


class Turn(Protocol):
    """The fields of a segment, recorded or in a conversation, that `check_turns` reads."""

    @property
    def kind(self) -> str:
        """A `Kind`, or its value."""
        ...

    @property
    def role(self) -> str:
        """Who speaks."""
        ...

    @property
    def hindsight(self) -> bool:
        """Whether it is an action that is named after the frame it led to."""
        ...

    @property
    def outcome(self) -> str | None:
        """Outcome of a frame, None if it is unknown."""
        ...


def check_turns(
    segments: Iterable[Turn], *, is_whole: bool = False, names: Sequence[str] | None = None
) -> None:
    """Refuses a conversation in which somebody speaks out of turn; see the grammar.

    Args:
        segments: In order.
        is_whole: They are an episode from its beginning, so that the world shows something before
            anybody acts.
        names: What the user calls each of them; None counts segments.

    Raises:
        ValueError: Naming the segment and the fix.
    """
    previous: Turn | None = None
    waits = False  # a frame was shown, and nothing was done since
    for place, segment in enumerate(segments):
        of_agent = segment.role == "agent" and not segment.hindsight
        fix = None
        was_told = previous is not None and previous.kind == Kind.TEXT and previous.role == "world"
        if segment.kind == Kind.FRAME:
            if previous is not None and previous.kind == Kind.TEXT and previous.role == "agent":
                fix = "a frame follows the agent's words; put an action between"
            elif waits:
                fix = "a frame follows a frame; put an action between, None if nobody knows it"
            waits = True
        elif segment.hindsight:
            if previous is None or previous.kind != Kind.FRAME or not previous.outcome:
                fix = "an action told in hindsight follows a frame and its outcome; move it there"
        elif was_told and not (segment.kind == Kind.TEXT and segment.role == "world"):
            fix = "the world's words stand before what they describe; put its frame behind them"
        elif segment.kind == Kind.TEXT and segment.role == "world":
            if waits:
                fix = "the world speaks before the agent has acted; put its words behind an action"
        elif previous is not None and previous.kind == Kind.ACTION and not previous.hindsight:
            speaker = "the agent goes on" if of_agent else "the task speaks"
            fix = f"{speaker} after an action; put the frame that it led to between"
        elif of_agent and is_whole and not waits:
            fix = "the agent's turn comes before any frame; put what it saw before it"
        if fix is not None:
            where = f"segment {place}" if names is None else names[place]
            raise ValueError(f"{where}: {fix}")
        waits &= not (of_agent and segment.kind == Kind.ACTION)
        previous = segment
