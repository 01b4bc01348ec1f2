"""Segment and Sequence: an episode as a conversation.

This file does not import torch, so that recording and importing do not have to.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from unified.conversation.turns import OUTCOMES, ROLES, Kind

if TYPE_CHECKING:
    from torch import Tensor

Motion = tuple[float, float, float]
Role = Literal["task", "agent", "world"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One maximal run of one kind in a conversation.

    The constructors `text_segment`, `action_segment` and `frame_segment` read better than this.

    Attributes:
        kind: TEXT, ACTION or FRAME.
        role: Who speaks. The task opens, and may speak again once a frame was shown; the world
            shows frames, and may say before a frame what it shows; the agent speaks and acts.
        text: The words of a TEXT.
        action: The action that was taken, as its action space names it; None is unknown.
        target: The action to learn instead of the one shown (an expert's), or None.
        hindsight: True for an ACTION that is named after the frame it led to.
        frame: `(H, W, 3)` uint8 pixels of a FRAME, or None when latents are given.
        latents: `(c, h, w)` normalised latents of a FRAME, or None when pixels are given.
        outcome: Whether the episode goes on after a FRAME: ongoing, success or failure. None is
            unknown.
        weight: Loss weight; 0 is not learned.
        motion: How an ACTION moved the view, if it was measured: a turn in radians to the right,
            then the distances ahead and to the right, in latent tokens of a frame.
    """

    kind: Kind
    role: Role
    text: str | None = None
    action: object = None
    target: object = None
    hindsight: bool = False
    frame: np.ndarray | None = None
    latents: "Tensor | np.ndarray | None" = None
    outcome: str | None = None
    weight: float = 1.0
    motion: Motion | None = None

    def __post_init__(self):
        """Checks the fields against each other."""
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is unknown; use one of {', '.join(ROLES)}")
        if self.outcome is not None and self.outcome not in OUTCOMES:
            raise ValueError(
                f"outcome {self.outcome!r} is unknown; use one of {', '.join(OUTCOMES)}"
            )
        owner = {Kind.TEXT: ROLES, Kind.ACTION: ("agent",), Kind.FRAME: ("world",)}
        if self.role not in owner[self.kind]:
            raise ValueError(
                f"a {self.kind.value} cannot be spoken by {self.role!r}; "
                f"it belongs to {' or '.join(owner[self.kind])}"
            )
        if self.kind is Kind.TEXT:
            check_text(self.text)
        if self.motion is not None and (self.kind is not Kind.ACTION or len(self.motion) != 3):
            raise ValueError(
                f"motion {self.motion} of a {self.kind.value}; only actions have one, of three "
                "numbers: turn, ahead, right"
            )


def check_text(text: object) -> None:
    """Refuses what no tokenizer can write.

    Raises:
        ValueError: If it is no text, or holds half of a surrogate pair, as broken files do.
    """
    if not isinstance(text, str):
        raise ValueError(f"text is a {type(text).__name__}; give words as str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of {text[:40]!r} is half a surrogate pair; decode the text "
            "anew, as UTF-8"
        ) from error


def text_segment(text: str, role: Role = "agent", *, weight: float = 1.0) -> Segment:
    """Words of the agent, of the task, or of the world."""
    return Segment(kind=Kind.TEXT, role=role, text=text, weight=weight)


def action_segment(
    action: object,
    *,
    target: object = None,
    hindsight: bool = False,
    weight: float = 1.0,
    motion: Motion | None = None,
) -> Segment:
    """An action of the agent; None is an unknown action."""
    return Segment(
        kind=Kind.ACTION,
        role="agent",
        action=action,
        target=target,
        hindsight=hindsight,
        weight=weight,
        motion=motion,
    )


def frame_segment(
    frame: np.ndarray | None = None,
    *,
    latents: "Tensor | np.ndarray | None" = None,
    outcome: str | None = None,
    weight: float = 1.0,
) -> Segment:
    """A frame of the world, as pixels or as latents, and its outcome."""
    return Segment(
        kind=Kind.FRAME, role="world", frame=frame, latents=latents, outcome=outcome, weight=weight
    )


@dataclass
class Sequence:
    """The interleaved list of segments of one episode."""

    segments: list[Segment] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of segments."""
        return len(self.segments)

    def frames(self) -> list[Segment]:
        """The FRAME segments, in order."""
        return [segment for segment in self.segments if segment.kind is Kind.FRAME]

    def actions(self) -> list[Segment]:
        """The ACTION segments, in order."""
        return [segment for segment in self.segments if segment.kind is Kind.ACTION]
