"""`unified prompt`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unified.cli.arguments import PromptArguments
from unified.cli.conversations import conversations_of, read_numbers, words_of
from unified.cli.loading import load_model, load_processor
from unified.command import chosen_device
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Segment
from unified.conversation.turns import Kind
from unified.files import atomic_path
from unified.memory import read_memory
from unified.modeling import UnifiedModel
from unified.sampling.options import Options

_OPTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "num_inference_steps",
    "solver",
    "time_grid",
    "timesteps",
    "guidance_scale",
    "max_turns",
    "max_text_tokens",
    "max_new_tokens",
    "think",
)


def prompt(arguments: PromptArguments) -> None:
    """Replies to each conversation as it would to it alone.

    Raises:
        ValueError: If an option, a conversation, the checkpoint or the device cannot be used.
    """
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    options["timesteps"] = options["timesteps"] or None
    Options(**options)  # before the model is loaded
    if arguments.memory is not None:
        read_memory(arguments.memory)
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a file; name a folder")
    conversations = conversations_of(arguments)
    device = chosen_device(arguments.device)
    processor = load_processor(arguments.model, device, arguments.resize)
    if not arguments.messages and processor.action_space is not None:
        read_numbers(conversations[0], processor.action_space.tokens)
    inputs = [processor.apply_chat_template(messages) for messages in conversations]
    model = load_model(arguments.model, device)
    has_several = len(conversations) > 1
    for number, messages in enumerate(conversations):
        out = arguments.out
        if has_several:
            print(f"prompt {number}", flush=True)
            out = None if out is None else out / f"{number:03d}"
        _hint(processor, messages)
        printer = ReplyPrinter(model, processor, out)
        model.generate(
            **inputs[number],
            query=arguments.query,
            seed=arguments.seed,
            memory=arguments.memory,
            callback=printer,
            **options,
        )
        printer.save()


def _hint(processor: UnifiedProcessor, messages: list[dict[str, Any]]) -> None:
    """Says which words the checkpoint never heard."""
    hint = None if processor.lexicon is None else processor.lexicon.hint(words_of(messages))
    if hint is not None:
        print(f"unified: hint: {hint}", file=sys.stderr)


class ReplyPrinter:
    """Prints each segment of a reply as soon as it is finished, and saves its frames."""

    def __init__(self, model: UnifiedModel, processor: UnifiedProcessor, out: Path | None):
        """Nothing is written before there is something to write."""
        self.model = model
        self.processor = processor
        self.out = out
        self.num_frames = 0
        self.messages: list[dict[str, Any]] = []

    def __call__(self, row: int, input_ids: torch.Tensor, latents: torch.Tensor | None) -> None:
        """Takes a finished segment; the callback of `UnifiedModel.generate`."""
        for segment in self.processor.segments(input_ids, latents, self.model.config):
            items = self._read(segment)
            if self.messages and self.messages[-1]["role"] == segment.role:
                self.messages[-1]["content"].extend(items)
            else:
                self.messages.append({"role": segment.role, "content": items})

    def save(self) -> None:
        """Writes reply.json, if there is a folder."""
        if self.out is None:
            return
        text = json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n"
        with output_path(self.out / "reply.json") as path:
            path.write_text(text, encoding="utf-8")
        print(f"saved  {self.out / 'reply.json'}")

    def _read(self, segment: Segment) -> list[dict[str, Any]]:
        """Prints one segment; returns it as the items of a message, frames by file name."""
        if segment.kind is Kind.TEXT:
            print(f"agent  says    {segment.text}", flush=True)
            return [{"type": "text", "text": segment.text}]
        if segment.kind is Kind.ACTION:
            verb = "did " if segment.hindsight else "acts"
            print(f"agent  {verb}    {segment.action}", flush=True)
            item = {"type": "action", "action": segment.action}
            return [{**item, "hindsight": True} if segment.hindsight else item]
        items: list[dict[str, Any]] = []
        if segment.latents is not None:
            name = f"frame_{self.num_frames:03d}.png"
            self.num_frames += 1
            if self.out is None:
                print("world  shows   a frame (--out FOLDER saves it)", flush=True)
            else:
                image = Image.fromarray(self.processor.pixels(segment))
                with output_path(self.out / name) as path:
                    image.save(path, format="PNG")
                print(f"world  shows   {self.out / name}", flush=True)
            items.append({"type": "frame", "frame": name})
        if segment.outcome is not None:
            print(f"world  says    {segment.outcome}", flush=True)
            items.append({"type": "outcome", "outcome": segment.outcome})
        return items


@contextmanager
def output_path(path: Path) -> Iterator[Path]:
    """`atomic_path`, whose failure names --out.

    Raises:
        ValueError: If the folder cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}); choose another --out") from error
