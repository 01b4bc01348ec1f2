"""The command `unified`: prompt a model, and ask what it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from PIL import Image
from transformers.utils import logging

from unified.command import command
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Kind, Segment
from unified.files import atomic_path
from unified.media.pictures import Fit
from unified.model.language import complete
from unified.model.modeling import UnifiedModel, resolve_checkpoint

# tyro joins the lines of a paragraph, so each line is one of its own.
DESCRIPTION = """Unified: one transformer that is both the agent and the world.

Act:       unified prompt --task "open the red door" --frame a.png

Simulate:  unified prompt --frame a.png --action left --query forward --out out/

Explain:   unified prompt --frame a.png --frame b.png --query inverse

Dream:     unified prompt --task "open the red door" --frame a.png --query joint --out out/

Describe:  unified prompt --task "describe what you see" --frame a.png --think True

Converse:  unified prompt --messages conversation.json

Ask:       unified ask "What is the capital of France?" --model runs/smollm2/model

About:     unified info babyai
"""


@dataclass(frozen=True, kw_only=True)
class PromptArguments:
    """Show a model a conversation and let it go on.

    Frames and actions alternate: frame, action, frame, action, and so on. An action that is
    missing between two frames is unknown.
    """

    task: str | None = None
    """What to do, in words."""
    frame: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """An image file; again for the next frame."""
    action: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What the agent did after the frame, or "unknown"; again for the next one."""
    messages: Path | None = None
    """A whole conversation instead, in JSON as reply.json has it, frames as files beside it: then
    task and agent may talk in mid-episode, too."""
    query: Literal["policy", "forward", "inverse", "joint"] = "policy"
    """What to ask: the next action, the next frame, the action that led to the last frame, or
    both in turn."""
    out: Path | None = None
    """Folder for the reply's frames (PNG) and reply.json; None only prints."""
    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    seed: int = 0
    """Of noise and samples."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    num_inference_steps: int = 4
    """Denoise steps of a frame."""
    max_turns: int = 8
    """Frames of a joint reply."""
    think: bool | None = None
    """True makes the agent speak before it acts, False keeps it silent."""
    resize: Fit | None = None
    """What to do with frames of another size than the model's: crop cuts off what hangs over, pad
    adds black; None refuses them."""


@dataclass(frozen=True, kw_only=True)
class AskArguments:
    """Ask a question of the language model that became the decoder, in words alone."""

    question: tyro.conf.Positional[str]
    """In words."""
    model: str
    """Folder or hub id of a model that began as a language model."""
    max_new_tokens: int = 64
    """Of the answer."""


@dataclass(frozen=True, kw_only=True)
class InfoArguments:
    """Say what a model is: its size, its frames, words and actions, and its model card."""

    model: tyro.conf.Positional[str] = "babyai"
    """Folder, hub id, or embedded name."""


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


def messages_from_arguments(arguments: PromptArguments) -> list[dict[str, Any]]:
    """The conversation that the command line tells.

    Raises:
        ValueError: If there is nothing to show, or actions outnumber frames.
    """
    frames, actions = arguments.frame, list(arguments.action)
    if arguments.messages is not None:
        if arguments.task is not None or frames or actions:
            raise ValueError(
                "--messages is a whole conversation; leave out --task, --frame, --action"
            )
        return read_messages(arguments.messages)
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
    return messages


def read_messages(path: Path) -> list[dict[str, Any]]:
    """Messages of a JSON file (see `unified.conversation.messages`); frames are relative paths.

    Raises:
        ValueError: If the file cannot be read, or it holds no list of messages.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); give a JSON file of messages") from error
    if not isinstance(messages, list):
        raise ValueError(f"{path} holds no list; give a list of messages")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for item in content if isinstance(content, list) else ():
            if isinstance(item, dict) and isinstance(item.get("frame"), str):
                item["frame"] = path.parent / item["frame"]
    return messages


@contextmanager
def output_path(path: Path) -> Iterator[Path]:
    """Like `atomic_path`.

    Raises:
        ValueError: If the folder cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}); choose another --out") from error


def prompt(arguments: PromptArguments) -> None:
    """Runs `unified prompt`."""
    messages = messages_from_arguments(arguments)
    processor = UnifiedProcessor.from_pretrained(arguments.model, resize=arguments.resize)
    inputs = processor.apply_chat_template(messages, return_tensors="pt")
    model = UnifiedModel.from_pretrained(arguments.model).eval()
    printer = ReplyPrinter(model, processor, arguments.out)
    model.generate(
        **inputs,
        query=arguments.query,
        generator=torch.Generator().manual_seed(arguments.seed),
        temperature=arguments.temperature,
        num_inference_steps=arguments.num_inference_steps,
        max_turns=arguments.max_turns,
        think=arguments.think,
        callback=printer,
    )
    if arguments.out is not None:
        text = json.dumps(printer.messages, indent=2, ensure_ascii=False) + "\n"
        with output_path(arguments.out / "reply.json") as path:
            path.write_text(text, encoding="utf-8")
        print(f"saved  {arguments.out / 'reply.json'}")


def ask(arguments: AskArguments) -> None:
    """Runs `unified ask`.

    Raises:
        ValueError: If the model was never a language model that answers questions.
    """
    tokenizer = UnifiedProcessor.from_pretrained(arguments.model).tokenizer
    if not tokenizer.chat_template:
        raise ValueError(
            f"{arguments.model!r} has no chat template: it did not begin as a language model that "
            "answers questions; make one with train.pretrain --language-model"
        )
    model = UnifiedModel.from_pretrained(arguments.model).eval()
    turn = [{"role": "user", "content": arguments.question}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    stop = [tokenizer.eos_token_id]
    said = complete(model, torch.tensor(ids), max_new_tokens=arguments.max_new_tokens, stop=stop)
    print(tokenizer.decode(said, skip_special_tokens=True).strip())


def info(arguments: InfoArguments) -> None:
    """Runs `unified info`."""
    processor = UnifiedProcessor.from_pretrained(arguments.model)
    model = UnifiedModel.from_pretrained(arguments.model)
    config, codec, space = model.config, processor.codec, processor.action_space
    rows, cols = config.latent_grid
    facts = {
        "model": arguments.model,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "decoder": f"{config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_attention_heads} heads",
        "vocabulary": f"{config.vocab_size} tokens",
        "memory": f"{config.window_frames} frames, and the task",
        "latents": f"{rows}x{cols} tokens of {config.latent_size} numbers",
        "prediction": config.prediction_type,
    }
    if codec is not None:
        side = config.latent_patch_size * codec.downsample_factor
        facts["frames"] = f"{rows * side}x{cols * side} pixels, RGB"
        size = sum(p.numel() for p in codec.parameters())
        facts["codec"] = f"{type(codec.autoencoder).__name__}, {size:,} parameters"
    if space is not None:
        names = getattr(space, "names", None) or space.tokens
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        facts["actions"] = f"{space.name}: {', '.join(names[:12])}{more} ({space.kind})"
    for name, value in facts.items():
        print(f"{name:<12} {value}")
    card = Path(resolve_checkpoint(arguments.model)) / "README.md"
    if card.is_file():
        print("\n" + card.read_text(encoding="utf-8").strip())


COMMANDS: dict[str, tuple[Any, Any]] = {
    "prompt": (PromptArguments, prompt),
    "ask": (AskArguments, ask),
    "info": (InfoArguments, info),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exits with status 2 and one line where the input is bad.

    Args:
        arguments: Command line without the program's name; None takes the process's own.
    """
    told = tyro.extras.subcommand_cli_from_dict(
        {name: dataclass_of for name, (dataclass_of, _) in COMMANDS.items()},
        prog="unified",
        description=DESCRIPTION,
        args=arguments,
    )
    logging.disable_progress_bar()  # "Loading weights" is over before one can read it
    run = next(run for kind, run in COMMANDS.values() if isinstance(told, kind))
    with command("unified"):
        run(told)


if __name__ == "__main__":
    main()
