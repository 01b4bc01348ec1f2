"""Import episodes written as JSON, one per line, with any interleaving of segments."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.episode import FORMAT_VERSION, EpisodeRecord, SegmentRecord, encode_png
from data.shards import Shard, cut_shards, record_shards, store
from unified.conversation.processing import ACTIONS_FILE
from unified.files import write_json
from unified.media.action_space import ActionSpace
from unified.media.actions import ContinuousActions, KeyboardMouseActions, NamedActions
from unified.media.pictures import read_picture

EPISODES_PER_SHARD = 50

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
    return encode_png(read_picture(path))


def _segment(content: Any, folder: Path, read: Callable[[Path], bytes]) -> SegmentRecord:
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
        content["frame"] = read(folder / content["frame"])
    return SegmentRecord(**content)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number; leave such steps out, or mend them")


def _episode(
    line: bytes, number: int, file: Path, read: Callable[[Path], bytes] = _read_frame
) -> EpisodeRecord:
    """Line `number` of a file, counted from 1.

    Args:
        line: What stands there.
        number: Its number.
        file: Of JSON lines.
        read: Turns an image into what the record holds.

    Raises:
        ValueError: If it is no episode; names file, line and segment.
    """
    try:
        return _parsed(line, number, file.parent, read)
    except ValueError as error:
        raise ValueError(f"{file}:{number}: {error}") from error


def _parsed(line: bytes, number: int, folder: Path, read: Callable[[Path], bytes]) -> EpisodeRecord:
    try:
        content = json.loads(line.decode("utf-8"), parse_constant=_refused)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON ({error}); write one object per line") from error
    content = _checked(content, dict, "the line")
    unknown = sorted(set(content) - _EPISODE_KEYS)
    if unknown:
        raise ValueError(f"key {unknown[0]!r} is unknown; use {sorted(_EPISODE_KEYS)}")
    segments = _checked(content.get("segments"), list, "segments")
    episode = EpisodeRecord(
        id=_checked(content.get("id", f"jsonl/{number}"), str, "id"),
        source="jsonl",
        level=_checked(content.get("level", "jsonl"), str, "level"),
        seed=_checked(content.get("seed", -1), int, "seed"),
        behaviour=_checked(content.get("behaviour", "unknown"), str, "behaviour"),
        segments=[_numbered(one, place, folder, read) for place, one in enumerate(segments)],
    )
    if not episode.num_frames:
        raise ValueError("segments holds no frame; an episode shows at least one")
    return episode


def _numbered(
    content: Any, place: int, folder: Path, read: Callable[[Path], bytes]
) -> SegmentRecord:
    try:
        return _segment(content, folder, read)
    except ValueError as error:
        raise ValueError(f"segment {place}: {error}") from error


@dataclass(frozen=True)
class Lines:
    """Where the episodes of a file stand.

    Attributes:
        file: JSON lines: `segments`, and optionally `id`, `level`, `seed`, `behaviour`. A segment
            has the fields of `SegmentRecord`; its frame is an image path relative to the file, its
            role defaults to the one who may speak ("agent" for texts). Empty lines are skipped.
        places: Line number from 1, and first byte, of each episode.
        digest: Of the whole file.
    """

    file: Path
    places: list[tuple[int, int]]
    digest: str

    @classmethod
    def of(cls, file: Path) -> "Lines":
        """Reads the file once.

        Raises:
            ValueError: If there is no file, or nothing in it.
        """
        if not file.is_file():
            raise ValueError(f"file {file} does not exist; give a JSON lines file")
        places, start, digest = [], 0, hashlib.sha256()
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                digest.update(line)
                if line.strip():
                    places.append((number, start))
                start += len(line)
        if not places:
            raise ValueError(f"{file} holds no episodes; write one object per line")
        return cls(file, places, digest.hexdigest())

    def episodes(
        self, chosen: Iterable[int], read: Callable[[Path], bytes] = _read_frame
    ) -> Iterator[EpisodeRecord]:
        """Some episodes by their order, one at a time.

        Raises:
            ValueError: If a line is wrong.
        """
        with self.file.open("rb") as lines:
            for index in chosen:
                number, start = self.places[index]
                lines.seek(start)
                yield _episode(lines.readline(), number, self.file, read)


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


class _Review:
    """What all lines have in common, found before anything is written."""

    def __init__(self, lines: Lines):
        self.lines = lines
        self.levels: set[str] = set()
        self.frames = 0
        self.words = Counter[str]()
        self.sizes: dict[tuple[int, int], str] = {}  # height and width
        self.actions: list[tuple[int, int, str]] = []  # line, segment, what was done
        seen: set[str] = set()
        numbers = [number for number, _ in lines.places]
        found = lines.episodes(range(len(numbers)), self._measured)
        progress = tqdm(found, total=len(numbers), unit="episode", desc="checked")
        for number, episode in zip(numbers, progress, strict=True):
            if episode.id in seen:
                raise ValueError(f"{lines.file}: id {episode.id!r} occurs twice; make ids unique")
            seen.add(episode.id)
            self._take(number, episode)
        if len(self.sizes) > 1:
            sizes = ", ".join(f"{h} x {w} in {name}" for (h, w), name in self.sizes.items())
            raise ValueError(f"{lines.file}: frames differ in size ({sizes}); resize them to one")

    def _measured(self, path: Path) -> bytes:
        height, width, _ = read_picture(path).shape
        self.sizes.setdefault((height, width), path.name)
        self.frames += 1
        return b""

    def _take(self, number: int, episode: EpisodeRecord) -> None:
        self.levels.add(episode.level)
        for place, segment in enumerate(episode.segments):
            if segment.kind == "text":
                self.words[segment.role] += 1
            told = [one for one in (segment.action, segment.target) if one is not None]
            self.actions += [(number, place, one) for one in told]

    def space(self, actions: Path | None) -> ActionSpace | None:
        """What was given, or what the file shows; all actions fit it."""
        file = self.lines.file
        told = [action for _, _, action in self.actions]
        try:
            own = inferred_actions(file.stem, told) if actions is None else None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        space = own if actions is None else ActionSpace.from_config(actions)
        if space is not None:
            for number, place, action in self.actions:
                try:
                    space.encode(action)
                except ValueError as error:
                    raise ValueError(f"{file}:{number}: segment {place}: {error}") from error
        return space

    def report(self, space: ActionSpace | None) -> str:
        """What is taken, in a few lines."""
        height, width = next(iter(self.sizes))
        kind = "none"
        if space is not None:
            kind = f"{len(self.actions)}, {type(space).__name__}, {space.num_tokens} tokens each"
        return (
            f"{self.lines.file}: {len(self.lines.places)} episodes, {self.frames} frames of "
            f"{height} x {width}\n"
            f"  levels: {', '.join(sorted(self.levels))}\n"
            f"  actions: {kind}\n"
            f"  words: {self.words['task']} times of the task, {self.words['agent']} of the agent"
        )


@functools.cache
def _lines(file: Path, digest: str) -> Lines:
    lines = Lines.of(file)
    if lines.digest != digest:
        raise ValueError(f"{file} has changed since the import began; begin anew in another --out")
    return lines


def _import_shard(file: Path, digest: str, shard: Shard) -> tuple[Shard, int]:
    return store(shard, list(_lines(file, digest).episodes(shard.seeds)))


def import_jsonl(file: Path, out: Path, *, actions: Path | None = None, workers: int = 1) -> None:
    """Writes the episodes of a JSON lines file into a data folder; a second call resumes.

    Every line and every image is checked before anything is written.

    Args:
        file: One episode per line; paths of frames are relative to it.
        out: Data folder to write.
        actions: Action space (JSON) of the file; None makes one of the actions in it.
        workers: Number of processes.

    Raises:
        ValueError: If a line is wrong, frames differ in size, or `out` was begun with something
            else.
    """
    lines = Lines.of(file)
    review = _Review(lines)
    space = review.space(actions)
    print(review.report(space))
    count = len(lines.places)
    request = {
        "source": "jsonl",
        "format_version": FORMAT_VERSION,
        "levels": sorted(review.levels),
        "episodes": count,
        "file": str(file),
        "sha256": lines.digest,
        "actions": actions and str(actions),
    }
    shards = cut_shards(
        out, file.stem, file.stem, first_seed=0, episodes=count, size=EPISODES_PER_SHARD
    )
    write = functools.partial(_import_shard, file, lines.digest)
    record_shards(out, request, shards, write, workers)
    if space is not None:
        write_json(out / ACTIONS_FILE, space.to_config())
