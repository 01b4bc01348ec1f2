"""The conversations that a command line tells."""

import json
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

from unified.cli.arguments import PromptArguments
from unified.files import path_inside

STDIN = Path("-")


def conversations_of(arguments: PromptArguments) -> list[list[dict[str, Any]]]:
    """Each as a list of messages.

    Raises:
        ValueError: If there is nothing to show, a file of messages cannot be read, or actions
            outnumber frames.
    """
    frames, actions = arguments.frame, list(arguments.action)
    if arguments.messages:
        if arguments.task is not None or frames or actions:
            raise ValueError(
                "--messages is a whole conversation; leave out --task, --frame, --action"
            )
        allowed = {"allow_outside": arguments.allow_outside}
        return [one for path in arguments.messages for one in read_conversations(path, **allowed)]
    if arguments.task is None and not frames:
        raise ValueError("the prompt is empty; give --task, --frame, or both, or --messages")
    if len(actions) > len(frames):
        raise ValueError(
            f"{len(actions)} actions for {len(frames)} frames; each action follows a frame: "
            "--frame a.png --action left --frame b.png"
        )
    actions += ["unknown"] * (len(frames) - 1 - len(actions))
    messages: list[dict[str, Any]] = []
    if arguments.task is not None:
        content = [{"type": "text", "text": arguments.task}]
        messages.append({"role": "task", "content": content})
    for number, path in enumerate(frames):
        content = [{"type": "frame", "frame": path}]
        messages.append({"role": "world", "content": content})
        if number < len(actions):
            action = [{"type": "action", "action": actions[number]}]
            messages.append({"role": "agent", "content": action})
    return [messages]


def read_conversations(path: Path, *, allow_outside: bool = False) -> list[list[dict[str, Any]]]:
    """Conversations of a file (see `unified.conversation.messages`); frames are relative paths.

    Args:
        path: JSON of messages or of lists of them, or JSON lines (.jsonl) with either in a line;
            `STDIN` reads lines from standard input.
        allow_outside: Whether paths of frames may leave the file's folder.

    Raises:
        ValueError: If the file cannot be read, it holds no messages, or a path leaves its folder.
    """
    name = "standard input" if path == STDIN else str(path)
    has_lines = path == STDIN or path.suffix == ".jsonl"
    try:
        text = sys.stdin.read() if path == STDIN else path.read_text(encoding="utf-8")
        parts = [line for line in text.split("\n") if line.strip()] if has_lines else [text]
        told = [json.loads(part) for part in parts]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {name} ({error}); give a JSON file of messages") from error
    found = []
    for content in told:
        if not isinstance(content, list):
            raise ValueError(f"{name} holds no list; give a list of messages")
        is_batch = bool(content) and all(isinstance(one, list) for one in content)
        found += content if is_batch else [content]
    if not found:
        raise ValueError(f"{name} is empty; give a list of messages")
    for messages in found:
        for message in messages:
            _find_frames(message, path.parent, allow_outside)
    return found


def _find_frames(message: Any, folder: Path, allow_outside: bool) -> None:
    """Makes paths of the frames that a message names."""
    content = message.get("content") if isinstance(message, dict) else None
    for item in content if isinstance(content, list) else ():
        for key in ("frame", "image", "path"):
            if isinstance(item, dict) and isinstance(item.get(key), str):
                place = folder / item[key]
                item[key] = path_inside(folder, place, allow_outside=allow_outside)


def read_numbers(messages: list[dict[str, Any]], tokens: Container[str]) -> None:
    """Makes integers of the actions that a command line gives by number.

    Args:
        messages: Of the command line.
        tokens: Of the action space: `<5>` is an action by the name of "5".
    """
    for message in messages:
        for item in message["content"]:
            action = item.get("action")
            if isinstance(action, str) and action.isdecimal() and f"<{action}>" not in tokens:
                item["action"] = int(action)


def words_of(messages: list[dict[str, Any]]) -> str:
    """All that is said in words."""
    words = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            words.append(content)
            continue
        words += [item["text"] for item in content if item["type"] == "text"]
    return "\n".join(words)
