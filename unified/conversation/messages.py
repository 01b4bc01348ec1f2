"""Conversion between messages, as in chat templates, and segments.

A message is `{"role": "task" | "world" | "agent", "content": [items]}`. Items are
`{"type": "text", "text": ...}`, `{"type": "frame", "frame": ...}` with a PIL image, a `(H, W, 3)`
uint8 array or the path of a picture, `{"type": "outcome", "outcome": ...}` behind its frame, and
`{"type": "action", "action": ...}` with `"hindsight": True` for an action told after its frame. A
plain string stands for one text item. Words of the world stand before the frame that they describe.

The usual names of chat templates are understood, too: `image` is a frame, `assistant` is the agent,
and `user` speaks for task and world at once. The user's first words are the task, and come before
the frame that they are about; later words are heard with the frame that they came with.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from unified.conversation.turns import OUTCOMES, check_turns
from unified.media.pictures import read_picture

_USER = "user"
_ALIASES = {"assistant": "agent"}
_OWNERS = {"text": "task", "frame": "world", "outcome": "world"}
"""For whom a user speaks, by the type of the item."""
_KEYS = {
    "text": {"type", "text"},
    "frame": {"type", "frame"},
    "outcome": {"type", "outcome"},
    "action": {"type", "action", "hindsight"},
}


def sequence_from_messages(
    messages: Any,
    check_action: Callable[[object], Any],
    read_frame: Callable[[Any, str], np.ndarray] = read_picture,
) -> Sequence:
    """Reads a conversation. A frame without an outcome is ongoing if something follows it.

    Args:
        messages: A list of messages, see above.
        check_action: Raises ValueError for an action that the action space does not have.
        read_frame: Gives the pixels of a frame, told what an error calls it.

    Raises:
        ValueError: If a message is malformed, or out of turn; names it and the fix.
    """
    if not isinstance(messages, list | tuple):
        raise ValueError(
            f"the conversation is {_short(messages)}; give a list of messages, dicts of 'role' and "
            "'content'"
        )
    if not messages:
        raise ValueError("the prompt is empty; give at least a task or a frame")
    segments: list[Segment] = []
    origins: list[str] = []
    for number, message in enumerate(messages):
        role, items = _read_message(message, number, is_first=not segments)
        for item in items:
            speaker = _OWNERS.get(item["type"], role) if role == _USER else role
            where = f"message {number} ({role})"
            with _named(where):
                _read_item(item, speaker, segments, check_action, read_frame)
            origins += [where] * (len(segments) - len(origins))
    check_turns(segments, names=origins)
    last = len(segments) - 1
    for i, segment in enumerate(segments):
        if segment.kind is Kind.FRAME and segment.outcome is None and i < last:
            segments[i] = frame_segment(segment.frame, latents=segment.latents, outcome="ongoing")
    return Sequence(segments)


def _read_message(message: Any, number: int, is_first: bool) -> tuple[str, list[dict[str, Any]]]:
    """Role and items of a message, in the order in which they are said."""
    if not isinstance(message, dict):
        raise ValueError(
            f"message {number} is {_short(message)}; give a dict of 'role' and 'content'"
        )
    unknown = [key for key in message if key not in ("role", "content")]
    if unknown:
        raise ValueError(
            f"message {number} has {_short(unknown[0])}; a message has 'role' and 'content'"
        )
    role = message.get("role")
    if not isinstance(role, str) or _ALIASES.get(role, role) not in (*ROLES, _USER):
        raise ValueError(
            f"message {number} has role {_short(role)}; use one of {', '.join(ROLES)}, or "
            "'user' and 'assistant'"
        )
    role = _ALIASES.get(role, role)
    where = f"message {number} ({role})"
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if content is None or (isinstance(content, list | tuple) and not content):
        raise ValueError(f"{where} has no content; give it an item")
    if not isinstance(content, list | tuple):
        raise ValueError(
            f"{where}: content is {_short(content)}; give words, or a list of items, such as "
            "[{'type': 'text', 'text': ...}]"
        )
    items = [_read_keys(item, where) for item in content]
    if role == _USER:
        words = [item for item in items if item["type"] == "text"]
        shown = [item for item in items if item["type"] != "text"]
        items = words + shown if is_first else shown + words
    return role, items


def _read_keys(item: Any, where: str) -> dict[str, Any]:
    """An item by our names, without a key that nobody would read."""
    if not isinstance(item, dict):
        raise ValueError(f"{where}: item {_short(item)} cannot be read; give a dict with a 'type'")
    kind = item.get("type")
    if kind == "image":
        sources = [key for key in ("image", "path", "frame") if key in item]
        if len(sources) != 1 or set(item) != {"type", sources[0]}:
            raise ValueError(
                f"{where}: an image has {', '.join(map(_short, item))}; give 'type' and 'image', a "
                "picture or the path of one"
            )
        return {"type": "frame", "frame": item[sources[0]]}
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError(
            f"{where}: type {_short(kind)} is unknown; use text, frame, action, outcome"
        )
    unknown = [key for key in item if key not in _KEYS[kind]]
    if unknown:
        raise ValueError(
            f"{where}: {_short(unknown[0])} of a {kind} is unknown; use "
            f"{', '.join(sorted(_KEYS[kind]))}"
        )
    if kind not in item:
        fix = f"use one of {', '.join(OUTCOMES)}" if kind == "outcome" else f"give {kind!r}"
        raise ValueError(f"{where}: {kind} is missing; {fix}")
    return item


def _read_item(
    item: dict[str, Any],
    role: str,
    segments: list[Segment],
    check_action: Callable[[object], Any],
    read_frame: Callable[[Any, str], np.ndarray],
) -> None:
    kind = item["type"]
    if kind == "text":
        if not isinstance(item["text"], str) or not item["text"]:
            raise ValueError(f"text is {_short(item['text'])}; give words")
        if segments and segments[-1].kind is Kind.TEXT and segments[-1].role == role:
            raise ValueError(f"words of the {role} follow words of the {role}; join them into one")
        segments.append(text_segment(item["text"], role))  # pyright: ignore[reportArgumentType]
    elif kind == "frame":
        if role != "world":
            raise ValueError("only the world shows frames; use role 'world'")
        segments.append(frame_segment(read_frame(item["frame"], "the frame")))
    elif kind == "outcome":
        outcome = item["outcome"]
        if not segments or segments[-1].kind is not Kind.FRAME:
            raise ValueError(
                "an outcome follows a frame; put it behind one (a reply that begins with an "
                "outcome goes behind the prompt that it answers)"
            )
        if not isinstance(outcome, str) or outcome not in OUTCOMES:
            raise ValueError(
                f"outcome {_short(outcome)} is unknown; use one of {', '.join(OUTCOMES)}"
            )
        last = segments[-1]
        if last.outcome is not None:
            raise ValueError(f"outcome {outcome!r} follows {last.outcome!r}; a frame has one")
        segments[-1] = frame_segment(last.frame, latents=last.latents, outcome=outcome)
    else:
        if role != "agent":
            raise ValueError("only the agent acts; use role 'agent'")
        action, hindsight = item["action"], item.get("hindsight", False)
        if not isinstance(hindsight, bool):
            raise ValueError(f"hindsight is {_short(hindsight)}; say True or False")
        if isinstance(action, str) and action == "unknown":  # an array equals no word
            action = None
        if action is not None:
            check_action(action)
        segments.append(action_segment(action, hindsight=hindsight))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Says in which message the input is bad."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _short(value: Any) -> str:
    """A value as an error shows it."""
    if isinstance(value, str | bytes | int | float | bool | None):
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "..."
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def messages_of(text: Any, images: Any) -> list[Any]:
    """Messages of tasks and first frames, as processors take them; a batch if either is a list.

    Raises:
        ValueError: If there is neither, or they are not equally many.
    """
    if text is None and images is None:
        raise ValueError("there is nothing to read; give text=, images=, or both")
    columns = [text, images]
    sizes = {len(column) for column in columns if isinstance(column, list | tuple)}
    if len(sizes) > 1 or 0 in sizes:
        counts = " and ".join(map(str, sorted(sizes)))
        raise ValueError(f"text and images have {counts} entries; give one of each for a row")
    size = sizes.pop() if sizes else 1
    rows = []
    for row in range(size):
        task, frame = (
            column[row] if isinstance(column, list | tuple) else column for column in columns
        )
        messages: list[dict[str, Any]] = []
        if task is not None:
            messages.append({"role": "task", "content": [{"type": "text", "text": task}]})
        if frame is not None:
            messages.append({"role": "world", "content": [{"type": "frame", "frame": frame}]})
        rows.append(messages)
    is_batch = any(isinstance(column, list | tuple) for column in columns)
    return rows if is_batch else rows[0]


def check_options(options: dict[str, Any]) -> None:
    """Refuses options of a processor that mean nothing here.

    Raises:
        ValueError: Naming the option and the fix.
    """
    kinds = {
        "return_tensors": ("pt", None),
        "tokenize": (True, False),
        "return_dict": (True, False),
        "add_generation_prompt": (True, False),
        "padding": (True, "longest"),
        "truncation": (False, None),
    }
    for name, value in options.items():
        if name not in kinds:
            raise ValueError(f"option {name!r} is unknown; use {', '.join(kinds)}")
        is_known = value in kinds[name] if isinstance(value, str | bool | None) else False
        if not is_known:
            fix = " or ".join(map(repr, kinds[name]))
            raise ValueError(f"{name}={_short(value)} is not made; use {fix}")


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
