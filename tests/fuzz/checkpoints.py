"""Fuzz of checkpoint folders: a broken one is refused by a ValueError, or replies as before.

One file of a good folder is cut off, emptied, removed, overwritten, or holds something of another
kind at one place. Nothing here changes a number into another number of its kind: that would be
another checkpoint, and a right one.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from tests.fuzz.tally import SilentChangeError, Tally
from tests.unified.parts import babyai_parts, random_frames
from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel

WRONG: list[Any] = ["nonsense", None, [], {}, -1, 0, 1.5, True, [7], 2**70, 1e400, "\ud800"]
"""What a place of a JSON file may hold instead of what belongs there."""


def files_of(folder: Path) -> list[Path]:
    """All files, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def places_of(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON document; of long lists the first items alone."""
    found = [path]
    if isinstance(content, dict):
        for key, value in list(content.items())[:40]:
            found += places_of(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content[:3]):
            found += places_of(value, (*path, index))
    return found


def is_alike(value: Any, other: Any) -> bool:
    """Whether one may stand for the other: of one kind, or numbers both."""
    numbers = (int, float)
    if isinstance(value, bool) or isinstance(other, bool):
        return isinstance(value, bool) and isinstance(other, bool)
    if isinstance(value, numbers) and isinstance(other, numbers):
        return True
    return value is not None and type(value) is type(other)


def break_json(path: Path, rng: np.random.Generator) -> str | None:
    """Puts something of another kind at one place; None if nothing was changed."""
    content = json.loads(path.read_text())
    places = places_of(content)
    place = places[int(rng.integers(len(places)))]
    wrong = WRONG[int(rng.integers(len(WRONG)))]
    if not place:
        path.write_text(json.dumps(wrong))
        return f"holds {wrong!r}"
    parent = content
    for step in place[:-1]:
        parent = parent[step]
    if parent[place[-1]] is None or is_alike(parent[place[-1]], wrong):
        return None
    parent[place[-1]] = wrong
    path.write_text(json.dumps(content))
    return f"holds {wrong!r} at {place}"


def break_weights(path: Path, rng: np.random.Generator) -> str:
    """Other types, names, shapes or numbers of one tensor."""
    tensors = load_file(path)
    names = sorted(tensors)
    name = names[int(rng.integers(len(names)))]
    kind = str(rng.choice(["int8", "name", "shape", "missing", "nan", "bool"]))
    tensor = tensors.pop(name)
    if kind == "int8":
        tensors[name] = (tensor * 100).to(torch.int8)
    elif kind == "bool":
        tensors[name] = tensor > 0
    elif kind == "name":
        tensors[f"{name}_"] = tensor
    elif kind == "shape":
        tensors[name] = torch.cat([tensor, tensor])
    elif kind == "nan":
        tensors[name] = torch.full_like(tensor, torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{kind} {name}"


def break_bytes(path: Path, rng: np.random.Generator) -> str:
    """Cut off, emptied, removed, or overwritten."""
    content = path.read_bytes()
    kind = str(rng.choice(["cut", "empty", "removed", "noise", "deep", "binary", "folder"]))
    if kind == "cut":
        path.write_bytes(content[: int(rng.integers(1, len(content)))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(rng.bytes(200))
    elif kind == "deep":
        path.write_text("[" * 10_000 + "]" * 10_000)
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe" + content)
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
    return kind


def reply_of(folder: Path, frames: list[np.ndarray]) -> list[torch.Tensor]:
    """What a checkpoint says to a conversation that uses all of it."""
    model = UnifiedModel.from_pretrained(folder).eval()
    processor = UnifiedProcessor.from_pretrained(folder)
    messages = [
        {"role": "task", "content": "open the red door"},
        {"role": "world", "content": [{"type": "frame", "frame": frames[0]}]},
        {"role": "agent", "content": [{"type": "action", "action": "left"}]},
    ]
    inputs = processor.apply_chat_template(messages)
    reply = model.generate(**inputs, query="joint", num_inference_steps=1, seed=0, max_turns=2)
    shown = processor.batch_decode(reply)[0]
    pixels = [
        torch.tensor(np.array(item["frame"]))
        for message in shown
        for item in message["content"]
        if item["type"] == "frame"
    ]
    return [*reply.input_ids, *reply.latents, *pixels]


def fuzz(count: int, seed: int = 0, skip: tuple[str, ...] = ()) -> Tally:
    """Tries so many folders.

    Args:
        count: How many.
        seed: Of the first; the others follow it.
        skip: Names of files that stay whole.
    """
    tally, frames = Tally(), random_frames(1)
    with tempfile.TemporaryDirectory() as scratch:
        good = Path(scratch) / "good"
        model, processor = babyai_parts()
        model.save_pretrained(good)
        processor.save_pretrained(good)
        expected = reply_of(good, frames)
        for number in tqdm(range(seed, seed + count), desc="checkpoints", leave=False):
            rng = np.random.default_rng(number)
            folder = Path(scratch) / "broken"
            shutil.copytree(good, folder)
            files = [path for path in files_of(folder) if path.name not in skip]
            path = files[int(rng.integers(len(files)))]
            how = None
            while how is None:
                breaking = rng.random()
                if path.suffix == ".json" and breaking < 0.6:
                    how = break_json(path, rng)
                elif path.suffix == ".safetensors" and breaking < 0.6:
                    how = break_weights(path, rng)
                else:
                    how = break_bytes(path, rng)

            def attempt(folder: Path = folder) -> None:
                found = reply_of(folder, frames)
                same = len(found) == len(expected) and all(map(torch.equal, found, expected))
                if not same:
                    raise SilentChangeError("it replies otherwise than the whole one")

            tally.attempt(f"checkpoint {number}, {path.relative_to(folder)} {how}", attempt)
            shutil.rmtree(folder)
    return tally
