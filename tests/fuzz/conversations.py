"""Fuzz of conversations and options: each is refused by a ValueError, or read as it was said.

A conversation is drawn that is right, and then none, one or two places of it are spoilt. What is
accepted must come back: its words, actions and outcomes from the tokens, its frames as latents. One
in `ASKED` is also answered, with options that are drawn likewise.
"""

import json
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tests.fuzz.tally import SilentChangeError, Tally
from tests.unified.parts import babyai_parts
from unified.conversation.sequence import Kind
from unified.sampling.diffusion.solvers import SOLVERS

ASKED = 20
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
WORDS = ["go", "to", "the", "red", "ball", ",", "2", "\u00e9", "e\u0301", "\U0001f642", "don't"]
WORDS += ["<frame>", "<left>", "</frame>", "\t", "\n", " "]


def nonsense(rng: np.random.Generator) -> Any:
    """Something that nobody should say."""
    things: list[Any] = [
        0,
        7,
        -1,
        2**70,
        1.5,
        math.nan,
        math.inf,
        True,
        None,
        "",
        "\ud800",
        "nonsense",
        "x" * 5000,
        b"bytes",
        [],
        [[]],
        {},
        {"type": "text"},
        {"type": []},
        (item for item in [{"type": "text", "text": "hi"}]),
        {1, 2},
        object(),
        torch.zeros(3),
        torch.zeros(56, 56, 3, requires_grad=True),
        torch.zeros(56, 56, 3, dtype=torch.uint8),
        torch.tensor(3),
        torch.tensor(3.5),
        np.zeros((56, 56, 3)),
        np.zeros((56, 56), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((8, 392, 3), np.uint8),
        np.array(["a", None], dtype=object),
        np.float32(2),
        np.int64(3),
        np.bool_(True),
        Image.new("1", (56, 56)),
        Image.new("RGB", (1, 1)),
        lambda: None,
        json.loads("[" * 300 + "]" * 300),
    ]
    return things[int(rng.integers(len(things)))]


def words(rng: np.random.Generator) -> str:
    """Some words, markers among them."""
    return " ".join(str(w) for w in rng.choice(WORDS, rng.integers(1, 7))) or "go"


def draw(rng: np.random.Generator, frames: list[np.ndarray]) -> list[dict[str, Any]]:
    """A conversation in which everything is right."""
    messages: list[dict[str, Any]] = []

    def say(role: str, *items: dict[str, Any]) -> None:
        messages.append({"role": role, "content": list(items)})

    if rng.random() < 0.7:
        text = words(rng)
        messages.append({"role": "task", "content": text})
        if rng.random() < 0.5:
            messages[-1]["content"] = [{"type": "text", "text": text}]
    count = int(rng.integers(0 if messages else 1, 4))
    for place in range(count):
        pixels = frames[int(rng.integers(len(frames)))]
        shown = {
            "type": "frame",
            "frame": Image.fromarray(pixels) if rng.random() < 0.5 else pixels,
        }
        told = [{"type": "outcome", "outcome": "ongoing"}] if rng.random() < 0.5 else []
        say("world", shown, *told)
        if place == count - 1 and rng.random() < 0.4:
            break
        if rng.random() < 0.3:
            say("agent", {"type": "text", "text": words(rng)})
            if rng.random() < 0.3:
                say("task", {"type": "text", "text": words(rng)})
        named = str(rng.choice([*ACTIONS, "unknown"]))
        number = ACTIONS.index(named) if named in ACTIONS and rng.random() < 0.3 else named
        say("agent", {"type": "action", "action": number})
    return messages


def spoil(messages: list[Any], rng: np.random.Generator) -> list[Any]:
    """Changes one place of a conversation."""
    spoilt = [dict(m) if isinstance(m, dict) else m for m in messages]
    place = int(rng.integers(len(spoilt))) if spoilt else 0
    kind = int(rng.integers(8))
    if not spoilt or kind == 0:
        return spoilt[:place] + [nonsense(rng)] + spoilt[place:]
    if kind == 1:
        return spoilt[:place] + spoilt[place + 1 :]
    if kind == 2:
        spoilt.insert(place, spoilt[int(rng.integers(len(spoilt)))])
        return spoilt
    message = spoilt[place]
    if not isinstance(message, dict):
        return spoilt
    if kind == 3:
        message[str(rng.choice(["role", "content", "name"]))] = nonsense(rng)
        return spoilt
    if kind == 4:
        message.pop(str(rng.choice(["role", "content"])), None)
        return spoilt
    content = message.get("content")
    if not isinstance(content, list) or not content:
        message["content"] = nonsense(rng)
        return spoilt
    items = [dict(item) if isinstance(item, dict) else item for item in content]
    message["content"] = items
    index = int(rng.integers(len(items)))
    item = items[index]
    if kind == 5 or not isinstance(item, dict) or not item:
        items[index] = nonsense(rng)
    elif kind == 6:
        names = [*item, "hindsight", "weight", "text", "frame"]
        item[names[int(rng.integers(len(names)))]] = nonsense(rng)
    else:
        item.pop(list(item)[int(rng.integers(len(item)))])
    return spoilt


def said(messages: Any) -> list[tuple[str, str, Any]]:
    """Who said what, by a reading of messages that shares no code with the library."""
    told: list[tuple[str, str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for item in items:
            value = item[item["type"]]
            if item["type"] == "action":
                value = "unknown" if value is None else value
                value = value if isinstance(value, str) else ACTIONS[int(value)]
            told.append((role, item["type"], value))
    return told


def check_reading(parts: Any, messages: Any) -> Any:
    """Reads a conversation, and compares what came of it with what was said.

    Raises:
        ValueError: If it is refused.
        SilentChangeError: If it became something else.
    """
    model, processor = parts
    inputs = processor.apply_chat_template(messages)
    ids = inputs["input_ids"][0]
    latents = inputs["latents"][0] if "latents" in inputs else None
    segments = processor.segments(ids, latents, model.config)
    heard: list[tuple[str, str, Any]] = []
    shown = [item for item in said(messages) if item[1] == "frame"]
    for segment in segments:
        if segment.kind is Kind.TEXT:
            heard.append((segment.role, "text", segment.text))
        elif segment.kind is Kind.ACTION:
            heard.append((segment.role, "action", segment.action or "unknown"))
        else:
            heard.append((segment.role, "frame", None))
            pixels = np.asarray(shown.pop(0)[2])
            expected = processor.encode_pixels(pixels[None])[0]
            if not torch.allclose(torch.as_tensor(segment.latents), expected, atol=1e-4):
                raise SilentChangeError("a frame became another one")
            if segment.outcome is not None:
                heard.append((segment.role, "outcome", segment.outcome))
    expected = [(role, kind, None if kind == "frame" else v) for role, kind, v in said(messages)]
    outcomes = [item for item in expected if item[1] == "outcome"]
    kept = [item for item in heard if item[1] != "outcome" or item in outcomes]
    if [i for i in kept if i[1] != "outcome"] != [i for i in expected if i[1] != "outcome"]:
        raise SilentChangeError(f"{expected} became {kept}")
    return inputs


def draw_options(rng: np.random.Generator) -> dict[str, Any]:
    """Options of `generate`, some of them spoilt."""
    options: dict[str, Any] = {"num_inference_steps": 1, "max_text_tokens": 3, "max_turns": 2}
    good: dict[str, list[Any]] = {
        "query": ["policy", "forward", "inverse", "joint", None],
        "temperature": [0, 0.5, 1e-45, 1e300, 1],
        "top_k": [None, 1, 5, 10_000],
        "top_p": [None, 0.1, 1.0],
        "think": [None, True, False],
        "seed": [0, 1],
        "max_new_tokens": [None, 1, 60],
        "num_return_sequences": [None, 1, 2],
        "do_sample": [None, True, False],
        "solver": [*SOLVERS, "ddim:eta=0.5"],
        "time_grid": ["uniform", "shifted:by=3", "logit_normal", "karras"],
        "timesteps": [None, [1, 0.4, 0], torch.tensor([1.0, 0.0])],
        "guidance_scale": [None, 1, 2.5, {"action": 3, "history": 0}, "text=0.5,action=2"],
    }
    bad = ["temperature", "top_k", "top_p", "num_inference_steps", "max_turns", "max_text_tokens"]
    bad += ["think", "seed", "query", "generator", "solver", "latents", "attention_mask", "foo"]
    bad += ["time_grid", "timesteps", "guidance_scale", "known", "memory"]
    for name, values in good.items():
        if rng.random() < 0.4:
            options[name] = values[int(rng.integers(len(values)))]
    if rng.random() < 0.6:
        options[str(rng.choice(bad))] = nonsense(rng)
    return options


def check_answer(parts: Any, inputs: Any, options: dict[str, Any]) -> None:
    """Answers a conversation; the reply must be legal after its prompt.

    Raises:
        ValueError: If it is refused.
        SilentChangeError: If the reply is no conversation, or too long.
    """
    model, processor = parts
    reply = model.generate(**{**inputs, **options})
    limit = options.get("max_new_tokens")
    vocabulary = model.config.vocab_size
    for ids, latents in reply.rows():
        if limit is not None and len(ids) > limit:
            raise SilentChangeError(f"{len(ids)} new tokens, at most {limit} were wanted")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise SilentChangeError("a token outside of the vocabulary")
        if not bool(torch.isfinite(latents).all()):
            raise SilentChangeError("latents that are not finite")
    processor.batch_decode(reply)


def fuzz(count: int, seed: int = 0) -> Tally:
    """Tries so many conversations.

    Args:
        count: How many.
        seed: Of the first; the others follow it.
    """
    parts = babyai_parts()
    parts[1].latent_grid = (7, 7)  # as a checkpoint has it
    picture = np.random.default_rng(seed)
    frames = list(picture.integers(0, 256, (4, 56, 56, 3), dtype=np.uint8))
    tally = Tally()
    for number in tqdm(range(seed, seed + count), desc="conversations", leave=False):
        rng = np.random.default_rng(number)
        messages: Any = draw(rng, frames)
        for _ in range(int(rng.integers(3))):
            messages = spoil(messages, rng)
        if rng.random() < 0.02:
            messages = nonsense(rng)

        def attempt(number: int = number, messages: Any = messages) -> None:
            inputs = check_reading(parts, messages)
            if number % ASKED == 0:
                options = draw_options(np.random.default_rng(number))
                check_answer(parts, inputs, options)

        tally.attempt(f"conversation {number}", attempt)
    return tally
