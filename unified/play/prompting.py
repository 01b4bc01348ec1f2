"""Any conversation at all: what the page's second tab asks, and the lines that repeat it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from typing import Any

from unified.conversation.sequence import Kind, Segment
from unified.play.engine import Engine
from unified.play.pictures import fitted, picture_file, read_upload
from unified.play.protocol import Prompt, pack

NO_SHELL = "# words in mid-episode: write the messages to a file and use --messages FILE"


async def answers(
    engine: Engine, model: str, request: Prompt
) -> AsyncIterator[dict[str, Any] | bytes]:
    """The model's reply, segment by segment as it comes, then how to ask again.

    Raises:
        ValueError: If the conversation cannot be read.
    """
    messages, notes = await asyncio.to_thread(_messages, engine, request)
    for note in notes:
        yield {"type": "note", "id": request.id, "words": note}
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Segment | None] = asyncio.Queue()

    def tell(segment: Segment) -> None:
        loop.call_soon_threadsafe(news.put_nowait, segment)

    future = asyncio.wrap_future(engine.prompt(messages, tell, _options(request)))

    def end(done: asyncio.Future[None]) -> None:
        if not done.cancelled():
            done.exception()  # is told of below, if anybody still listens
        news.put_nowait(None)

    future.add_done_callback(end)
    while (segment := await news.get()) is not None:
        yield _reply(engine, request.id, segment)
    await future
    python, shell = lines(model, request)
    yield {"type": "replied", "id": request.id, "python": python, "shell": shell}


def _options(request: Prompt) -> dict[str, Any]:
    """The arguments of `generate` that a message asks for."""
    return {
        "query": request.query,
        "seed": request.seed,
        "temperature": request.temperature,
        "num_inference_steps": request.num_inference_steps,
        "max_turns": request.max_turns,
        "think": request.think,
    }


def _messages(engine: Engine, request: Prompt) -> tuple[list[dict[str, Any]], list[str]]:
    """What `UnifiedProcessor` reads, and what was done to pictures."""
    messages: list[dict[str, Any]] = []
    notes = []
    for item in request.items:
        if item.picture is not None:
            pixels, note = fitted(read_upload(item.picture), engine.frame_size)
            notes += [note] if note else []
            content = {"type": "frame", "frame": pixels}
        elif item.text is not None:
            content = {"type": "text", "text": item.text}
        else:
            content = {"type": "action", "action": item.action}
        if messages and messages[-1]["role"] == item.role:
            messages[-1]["content"].append(content)
        else:
            messages.append({"role": item.role, "content": [content]})
    return messages, notes


def _reply(engine: Engine, id_: int, segment: Segment) -> dict[str, Any] | bytes:
    header = {
        "type": "reply",
        "id": id_,
        "role": segment.role,
        "kind": segment.kind.value,
        "text": segment.text,
        "action": segment.action,
        "outcome": segment.outcome,
    }
    has_frame = segment.kind is Kind.FRAME and segment.latents is not None
    files = {"view": picture_file(engine.processor.pixels(segment))} if has_frame else {}
    return pack(header, files)


def lines(model: str, request: Prompt) -> tuple[str, str]:
    """Python and a shell command that ask the same; pictures are `0.png`, `1.png` and so on."""
    count = 0
    told, words, is_plain = [], ["unified", "prompt", "--model", model], True
    seen_frame = False
    for item in request.items:
        if item.picture is not None:
            content = {"type": "frame", "frame": f"{count}.png"}
            words += ["--frame", f"{count}.png"]
            count, seen_frame = count + 1, True
        elif item.text is not None:
            content = {"type": "text", "text": item.text}
            is_plain &= item.role == "task" and not seen_frame and "--task" not in words
            words += ["--task", item.text]
        else:
            content = {"type": "action", "action": item.action}
            is_plain &= isinstance(item.action, str)
            words += ["--action", str(item.action)]
        told.append(f"    {{'role': {item.role!r}, 'content': [{content!r}]}},")
    given = {name: value for name, value in _options(request).items() if value is not None}
    asked = ", ".join(f"{name}={value!r}" for name, value in given.items())
    python = "\n".join(
        [
            "from unified import UnifiedModel, UnifiedProcessor",
            "",
            f"model = UnifiedModel.from_pretrained({model!r})",
            f"processor = UnifiedProcessor.from_pretrained({model!r}, resize='crop')",
            "messages = [",
            *told,
            "]",
            "inputs = processor.apply_chat_template(messages)",
            f"reply = model.generate(**inputs, {asked})",
            "print(processor.decode(reply))",
        ]
    )
    for name, value in given.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    shell = shlex.join([*words, "--resize", "crop"])
    return (
        python,
        shell if is_plain else "# in mid-episode words: use --messages, see docs/prompt.md",
    )
