"""Import episodes written as JSON, one per line, with any interleaving of segments."""

import json
import struct
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.episode import (
    EPISODES_FOLDER,
    FORMAT_VERSION,
    INFO_FILE,
    EpisodeRecord,
    SegmentRecord,
    encode_png,
    write_shard,
)
from unified.action_space import ActionSpace
from unified.actions import ContinuousActions, KeyboardMouseActions, NamedActions
from unified.files import write_json
from unified.processing import ACTIONS_FILE

EPISODES_PER_SHARD = 250

_SEGMENT_KEYS = {field.name for field in fields(SegmentRecord)}
_EPISODE_KEYS = {"id", "level", "seed", "behaviour", "segments"}
_ROLE_OF = {"text": "agent", "action": "agent", "frame": "world"}


def _checked(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{name} is {value!r}; give {expected}")
    return value


def _read_frame(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"frame image {path} does not exist; paths are relative to the JSON file")
    try:
        with Image.open(path) as image:
            return encode_png(np.array(image.convert("RGB")))
    except OSError as error:
        raise ValueError(f"frame image {path} cannot be read ({error}); save it again") from error


def _segment(content: Any, folder: Path) -> SegmentRecord:
    content = dict(_checked(content, dict, "a segment"))
    unknown = sorted(set(content) - _SEGMENT_KEYS)
    if unknown:
        raise ValueError(f"segment key {unknown[0]!r} is unknown; use {sorted(_SEGMENT_KEYS)}")
    if "kind" not in content:
        raise ValueError("a segment has no kind; give text, action or frame")
    for name in ("kind", "role", "text", "frame", "caption", "outcome"):
        if content.get(name) is not None:
            _checked(content[name], str, name)
    for name in ("action", "target"):
        if content.get(name) is not None:
            told = _checked(content[name], (str, list, dict), name)
            content[name] = told if isinstance(told, str) else json.dumps(told)
    _checked(content.get("hindsight", False), bool, "hindsight")
    content["weight"] = float(_checked(content.get("weight", 1.0), (int, float), "weight"))
    content.setdefault("role", _ROLE_OF.get(content["kind"], "agent"))
    if content.get("motion") is not None:
        motion = _checked(content["motion"], list, "motion")
        content["motion"] = tuple(float(_checked(x, (int, float), "motion")) for x in motion)
    if content.get("frame") is not None:
        content["frame"] = _read_frame(folder / content["frame"])
    return SegmentRecord(**content)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number; leave such steps out, or mend them")


def _episode(line: str, number: int, folder: Path) -> EpisodeRecord:
    try:
        content = json.loads(line, parse_constant=_refused)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); write one object per line") from error
    content = _checked(content, dict, "the line")
    unknown = sorted(set(content) - _EPISODE_KEYS)
    if unknown:
        raise ValueError(f"key {unknown[0]!r} is unknown; use {sorted(_EPISODE_KEYS)}")
    segments = _checked(content.get("segments"), list, "segments")
    if not segments:
        raise ValueError("segments is empty; an episode has at least one segment")
    return EpisodeRecord(
        id=_checked(content.get("id", f"jsonl/{number}"), str, "id"),
        source="jsonl",
        level=_checked(content.get("level", "jsonl"), str, "level"),
        seed=_checked(content.get("seed", -1), int, "seed"),
        behaviour=_checked(content.get("behaviour", "unknown"), str, "behaviour"),
        segments=[_numbered(segment, place, folder) for place, segment in enumerate(segments)],
    )


def _numbered(content: Any, place: int, folder: Path) -> SegmentRecord:
    try:
        return _segment(content, folder)
    except ValueError as error:
        raise ValueError(f"segment {place}: {error}") from error


def read_jsonl(file: Path) -> Iterator[EpisodeRecord]:
    """Read the episodes of a JSON lines file, skipping empty lines.

    Args:
        file: One object per line: `segments`, and optionally `id`, `level`, `seed`, `behaviour`.
            A segment has the fields of `SegmentRecord`; its frame is an image path relative to
            the file, its role defaults to the one who may speak ("agent" for texts).

    Raises:
        ValueError: A line is wrong; the message names file and line.
    """
    if not file.is_file():
        raise ValueError(f"file {file} does not exist; give a JSON lines file")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield _episode(line, number, file.parent)
                except ValueError as error:
                    raise ValueError(f"{file}:{number}: {error}") from error


def inferred_actions(name: str, actions: list[str]) -> ActionSpace | None:
    """The action space of what was done: names, vectors, or keyboard and mouse.

    Args:
        name: Of the space.
        actions: As a file holds them: names, or JSON.

    Returns:
        None if nothing was done.

    Raises:
        ValueError: If they are of several kinds.
    """
    if not actions:
        return None
    told: list[Any] = [
        json.loads(action) if action[:1] in ("[", "{") else action for action in actions
    ]
    if all(isinstance(action, str) for action in told):
        return NamedActions(name, list(dict.fromkeys(told)))
    if all(isinstance(action, list) for action in told):
        values = np.array(told, dtype=object)
        if values.ndim != 2 or not all(isinstance(x, int | float) for x in values.ravel()):
            raise ValueError("vectors of numbers have to be equally long; or give --actions")
        dimensions = [f"x{i}" for i in range(values.shape[1])]
        return ContinuousActions.fit(name, dimensions, values.astype(np.float64))
    if all(isinstance(action, dict) and set(action) == {"keys", "mouse"} for action in told):
        keys = sorted({key for action in told for key in action["keys"]})
        farthest = max(abs(float(x)) for action in told for x in action["mouse"])
        return KeyboardMouseActions(name, keys, mouse=farthest or 1.0)
    raise ValueError(
        "actions are neither all names, nor all vectors, nor all keys and mouse; describe them in "
        "a file for --actions"
    )


def _check_actions(episode: EpisodeRecord, space: ActionSpace) -> None:
    for place, segment in enumerate(episode.segments):
        for told in (segment.action, segment.target):
            if told is not None:
                try:
                    space.encode(told)
                except ValueError as error:
                    raise ValueError(f"segment {place}: {error}") from error


def _frame_sizes(episode: EpisodeRecord) -> set[tuple[int, int]]:
    """Widths and heights, as PNG headers say them."""
    pngs = (segment.frame for segment in episode.segments if segment.frame is not None)
    return {struct.unpack(">II", png[16:24]) for png in pngs}


def import_jsonl(file: Path, out: Path, *, actions: Path | None = None) -> None:
    """Write the episodes of a JSON lines file into a new data folder.

    Every line is checked before anything is written.

    Args:
        file: One episode per line, see `read_jsonl`; paths of frames are relative to it.
        out: Data folder to write.
        actions: Action space (JSON) of the file; None makes one of the actions in it.

    Raises:
        ValueError: A line is wrong, frames differ in size, or `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose an empty or new folder as --out")
    episodes = list(tqdm(read_jsonl(file), unit="episode", desc=file.name))
    if not episodes:
        raise ValueError(f"{file} holds no episodes; write one object per line")
    seen: set[str] = set()
    for episode in episodes:
        if episode.id in seen:
            raise ValueError(f"{file}: id {episode.id!r} occurs twice; make ids unique")
        seen.add(episode.id)
    space = _space_of(file, episodes, actions)
    sizes: dict[tuple[int, int], str] = {}
    for episode in episodes:
        sizes |= {size: episode.id for size in _frame_sizes(episode) if size not in sizes}
    if len(sizes) > 1:
        found = ", ".join(f"{h} x {w} in {name!r}" for (w, h), name in sizes.items())
        raise ValueError(f"{file}: frames differ in size ({found}); resize them to one")
    shards = []
    for start in range(0, len(episodes), EPISODES_PER_SHARD):
        part = episodes[start : start + EPISODES_PER_SHARD]
        name = f"{EPISODES_FOLDER}/{file.stem}-{start:06d}.parquet"
        write_shard(out / name, part)
        frames = sum(episode.num_frames for episode in part)
        shards.append({"file": name, "episodes": len(part), "frames": frames})
    write_json(
        out / INFO_FILE,
        {
            "source": "jsonl",
            "format_version": FORMAT_VERSION,
            "levels": sorted({episode.level for episode in episodes}),
            "episodes": len(episodes),
            "frames": sum(shard["frames"] for shard in shards),
            "shards": shards,
        },
    )
    if space is not None:
        write_json(out / ACTIONS_FILE, space.to_config())


def _space_of(
    file: Path, episodes: list[EpisodeRecord], actions: Path | None
) -> ActionSpace | None:
    """What was given, or what the file shows; all actions fit it."""
    segments = [segment for episode in episodes for segment in episode.segments]
    told = [a for s in segments for a in (s.action, s.target) if a is not None]
    try:
        space = (
            inferred_actions(file.stem, told)
            if actions is None
            else ActionSpace.from_config(actions)
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for episode in episodes:
        try:
            if space is not None:
                _check_actions(episode, space)
        except ValueError as error:
            raise ValueError(f"{file}: episode {episode.id!r}, {error}") from error
    return space
