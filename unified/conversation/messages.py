"""Messages, as chat templates have them, <-> segments.

A message is `{"role": "task" | "world" | "agent", "content": [items]}`. Items are
`{"type": "text", "text": ...}`, `{"type": "frame", "frame": PIL image, (H, W, 3) uint8 or file}`,
`{"type": "outcome", "outcome": ...}` behind its frame, and `{"type": "action", "action": ...}` with
`"hindsight": True` for an action told after its frame. A plain string stands for one text item.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from unified.conversation.sequence import (
    ROLES,
    Kind,
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.media.pictures import read_picture
from unified.model.configuration import OUTCOMES


def sequence_from_messages(
    messages: list[dict[str, Any]],
    check_action: Callable[[object], Any],
    read_frame: Callable[[Any, str], np.ndarray] = read_picture,
) -> Sequence:
    """Reads a conversation. A frame that somebody has answered counts as ongoing.

    Args:
        messages: See above.
        check_action: Raises ValueError for an action that the action space does not have.
        read_frame: Gives the pixels of a frame, told what an error calls it.

    Raises:
        ValueError: If a message is malformed; names it and the fix.
    """
    if not messages:
        raise ValueError("the prompt is empty; give at least a task or a frame")
    segments: list[Segment] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(
                f"message {number} is {message!r}; give a dict of 'role' and 'content'"
            )
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"message {number} has role {role!r}; use one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not content:
            raise ValueError(f"message {number} ({role}) has no content; give it an item")
        for item in content:
            _read_item(item, role, number, segments, check_action, read_frame)
    last = len(segments) - 1
    for i, segment in enumerate(segments):
        if segment.kind is Kind.FRAME and segment.outcome is None and i < last:
            segments[i] = frame_segment(segment.frame, latents=segment.latents, outcome="ongoing")
    return Sequence(segments)


def _read_item(
    item: dict[str, Any],
    role: str,
    number: int,
    segments: list[Segment],
    check_action: Callable[[object], Any],
    read_frame: Callable[[Any, str], np.ndarray],
) -> None:
    where = f"message {number} ({role})"
    if not isinstance(item, dict):
        raise ValueError(f"{where}: item {item!r} cannot be read; give a dict with a 'type'")
    kind = item.get("type")
    if kind == "text":
        if not isinstance(item.get("text"), str) or not item["text"]:
            raise ValueError(f"{where}: text is {item.get('text')!r}; give words")
        if role == "world":
            raise ValueError(f"{where}: the world shows frames; use role 'task' or 'agent'")
        segments.append(text_segment(item["text"], role))  # pyright: ignore[reportArgumentType]
    elif kind == "frame":
        if role != "world":
            raise ValueError(f"{where}: only the world shows frames; use role 'world'")
        segments.append(frame_segment(read_frame(item.get("frame"), f"{where}: the frame")))
    elif kind == "outcome":
        if not segments or segments[-1].kind is not Kind.FRAME:
            raise ValueError(f"{where}: an outcome follows a frame; put it behind one")
        if item.get("outcome") is None:
            raise ValueError(f"{where}: outcome is missing; use one of {', '.join(OUTCOMES)}")
        last = segments[-1]
        segments[-1] = frame_segment(last.frame, latents=last.latents, outcome=item["outcome"])
    elif kind == "action":
        if role != "agent":
            raise ValueError(f"{where}: only the agent acts; use role 'agent'")
        action = item.get("action")
        if isinstance(action, str) and action == "unknown":  # an array equals no word
            action = None
        if action is not None:
            check_action(action)
        segments.append(action_segment(action, hindsight=bool(item.get("hindsight", False))))
    else:
        raise ValueError(f"{where}: type {kind!r} is unknown; use text, frame, action, outcome")


def messages_from_segments(
    segments: list[Segment], pixels: Callable[[Segment], np.ndarray]
) -> list[dict[str, Any]]:
    """The inverse of `sequence_from_messages`: messages with PIL frames.

    Args:
        segments: In order.
        pixels: Draws a FRAME segment as `(H, W, 3)` uint8.
    """
    messages: list[dict[str, Any]] = []
    for segment in segments:
        items: list[dict[str, Any]] = []
        if segment.kind is Kind.TEXT:
            items.append({"type": "text", "text": segment.text})
        elif segment.kind is Kind.ACTION:
            action = "unknown" if segment.action is None else segment.action
            item = {"type": "action", "action": action}
            items.append({**item, "hindsight": True} if segment.hindsight else item)
        else:
            # A reply may begin with the outcome of a frame that the prompt holds.
            if segment.frame is not None or segment.latents is not None:
                items.append({"type": "frame", "frame": Image.fromarray(pixels(segment))})
            if segment.outcome is not None:
                items.append({"type": "outcome", "outcome": segment.outcome})
        if messages and messages[-1]["role"] == segment.role:
            messages[-1]["content"].extend(items)
        else:
            messages.append({"role": segment.role, "content": items})
    return messages
