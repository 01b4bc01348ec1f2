"""Import episodes written as JSON, one per line, with any interleaving of segments."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.episode import FORMAT_VERSION, EpisodeRecord, SegmentRecord, encode_png
from data.frames import check_size
from data.json_text import parsed
from data.shards import Shard, cut_shards, record_shards, store
from data.sources.mouse import MouseRange
from unified.files import path_inside
from unified.media.action_space import ActionSpace
from unified.media.actions import ContinuousActions, KeyboardMouseActions, NamedActions
from unified.media.pictures import read_picture

EPISODES_PER_SHARD = 50
MOST_CHOICES = 1000
"""Of one integer: more are numbers."""

_SEGMENT_KEYS = {field.name for field in fields(SegmentRecord)}
_EPISODE_KEYS = {"id", "level", "seed", "behaviour", "segments"}
_ROLE_OF = {"text": "agent", "action": "agent", "frame": "world"}


def _checked(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{name} is {value!r}; give {expected}")
    return value


@dataclass(frozen=True)
class Reading:
    """How a line becomes a record.

    Attributes:
        folder: Paths of images are relative to it.
        frame: What the record holds of an image.
        action: How an action is written, a name or JSON.
        allow_outside: Whether paths may leave the folder.
    """

    folder: Path
    frame: Callable[[Path], bytes]
    action: Callable[[Any], str]
    allow_outside: bool = False


def _read_frame(path: Path) -> bytes:
    return encode_png(read_picture(path))


def _segment(content: Any, reading: Reading) -> SegmentRecord:
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
            content[name] = reading.action(_checked(content[name], (str, int, list, dict), name))
    _checked(content.get("hindsight", False), bool, "hindsight")
    content["weight"] = float(_checked(content.get("weight", 1.0), (int, float), "weight"))
    content.setdefault("role", _ROLE_OF.get(content["kind"], "agent"))
    if content.get("motion") is not None:
        motion = _checked(content["motion"], list, "motion")
        content["motion"] = tuple(float(_checked(x, (int, float), "motion")) for x in motion)
    if content.get("frame") is not None:
        path = reading.folder / content["frame"]
        path = path_inside(reading.folder, path, allow_outside=reading.allow_outside)
        content["frame"] = reading.frame(path)
    return SegmentRecord(**content)


def _episode(line: bytes, number: int, file: Path, reading: Reading) -> EpisodeRecord:
    """Line `number` of a file, counted from 1.

    Args:
        line: What stands there.
        number: Its number.
        file: Of JSON lines.
        reading: What becomes of it.

    Raises:
        ValueError: If it is no episode; names file, line and segment.
    """
    try:
        return _parsed(line, number, reading)
    except ValueError as error:
        raise ValueError(f"{file}:{number}: {error}") from error


def _parsed(line: bytes, number: int, reading: Reading) -> EpisodeRecord:
    content = _checked(parsed(line, "write one object per line"), dict, "the line")
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
        segments=[_numbered(one, place, reading) for place, one in enumerate(segments)],
    )
    if not episode.num_frames:
        raise ValueError("segments holds no frame; an episode shows at least one")
    return episode


def _numbered(content: Any, place: int, reading: Reading) -> SegmentRecord:
    try:
        return _segment(content, reading)
    except ValueError as error:
        raise ValueError(f"segment {place}: {error}") from error


@dataclass(frozen=True)
class Lines:
    """Byte positions of the episodes of a file.

    Attributes:
        file: JSON lines: `segments`, and optionally `id`, `level`, `seed`, `behaviour`. A segment
            has the fields of `SegmentRecord`; its frame is an image path relative to the file, its
            role defaults to the one who may speak ("agent" for texts). Empty lines are skipped.
        places: Line number from 1, and first byte, of each episode.
        digest: Hash of the whole file.
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

    def episodes(self, chosen: Iterable[int], reading: Reading) -> Iterator[EpisodeRecord]:
        """Some episodes by their order, one at a time.

        Raises:
            ValueError: If a line is wrong.
        """
        with self.file.open("rb") as lines:
            for index in chosen:
                number, start = self.places[index]
                lines.seek(start)
                yield _episode(lines.readline(), number, self.file, reading)


def inferred_actions(name: str, actions: list[Any]) -> ActionSpace | None:
    """The action space of what was done: names, integers, vectors, or keyboard and mouse.

    Args:
        name: Of the space.
        actions: As JSON has them.

    Returns:
        None if nothing was done.

    Raises:
        ValueError: If they are of several kinds.
    """
    if not actions:
        return None
    if all(isinstance(action, str) for action in actions):
        return NamedActions(name, list(dict.fromkeys(actions)))
    if all(isinstance(action, int) for action in actions):
        least, most = min(actions), max(actions)
        if most - least >= MOST_CHOICES:
            raise ValueError(
                f"actions are integers from {least} to {most}, which is no choice of a few; write "
                "them as vectors, such as [3.0], or give --actions"
            )
        return NamedActions(name, [f"action{i}" for i in range(least, most + 1)], least)
    if all(isinstance(action, list) for action in actions):
        values = np.array(actions, dtype=object)
        if values.ndim != 2 or not all(isinstance(x, int | float) for x in values.ravel()):
            raise ValueError("vectors of numbers have to be equally long; or give --actions")
        dimensions = [f"x{i}" for i in range(values.shape[1])]
        are_integers = all(type(x) is int for x in values.ravel())  # neither 3.0 nor true
        dtype = "int64" if are_integers else "float32"
        return ContinuousActions.fit(name, dimensions, values.astype(np.float64), dtype=dtype)
    if all(_is_pressed(action) for action in actions):
        keys = sorted({key for action in actions for key in action["keys"]})
        reach = MouseRange.of([action["mouse"] for action in actions])
        return KeyboardMouseActions(name, keys, reach.farthest)
    raise ValueError(
        "actions are neither all names, nor all integers, nor all vectors, nor all keys and mouse; "
        "describe them in a file for --actions"
    )


def _is_pressed(action: Any) -> bool:
    if not isinstance(action, dict) or set(action) != {"keys", "mouse"}:
        return False
    keys, mouse = action["keys"], action["mouse"]
    return (
        isinstance(keys, list)
        and all(isinstance(key, str) for key in keys)
        and isinstance(mouse, list)
        and len(mouse) == 2
        and all(isinstance(x, int | float) for x in mouse)
    )


def _raw(action: Any) -> str:
    return action if isinstance(action, str) else json.dumps(action)


def written(space: ActionSpace | None, mouse: MouseRange | None, action: Any) -> str:
    """An action as a data folder holds it.

    Args:
        space: Of the file; an integer becomes the name that it stands for.
        mouse: Range that movements are clipped to, if the space was made of the file.
        action: As JSON has it.
    """
    if isinstance(space, NamedActions) and isinstance(action, int):
        return space.decode(space.encode(action))
    if mouse is not None and _is_pressed(action):
        action = {**action, "mouse": mouse.clip(action["mouse"])}
    return _raw(action)


class _Review:
    """Checks all lines, and finds their action space, before anything is written."""

    def __init__(self, lines: Lines, *, allow_outside: bool):
        self.lines = lines
        self.levels: set[str] = set()
        self.frames = 0
        self.words = Counter[str]()
        self.sizes: dict[tuple[int, int], str] = {}  # height and width
        self.actions: list[tuple[int, int, Any]] = []  # line, segment, what was done
        self.said: list[Any] = []  # of one line
        reading = Reading(lines.file.parent, self._measured, self._noted, allow_outside)
        seen: set[str] = set()
        numbers = [number for number, _ in lines.places]
        found = lines.episodes(range(len(numbers)), reading)
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
        check_size(height, width, f"frame image {path}")
        self.sizes.setdefault((height, width), path.name)
        self.frames += 1
        return b""

    def _noted(self, action: Any) -> str:
        self.said.append(action)
        return _raw(action)

    def _take(self, number: int, episode: EpisodeRecord) -> None:
        self.levels.add(episode.level)
        taken = iter(self.said)
        for place, segment in enumerate(episode.segments):
            if segment.kind == "text":
                self.words[segment.role] += 1
            for one in (segment.action, segment.target):
                if one is not None:
                    self.actions.append((number, place, next(taken)))
        self.said = []

    def space(self, actions: Path | None) -> ActionSpace | None:
        """The given action space, or one inferred from the file; all actions fit it."""
        file = self.lines.file
        values = [action for _, _, action in self.actions]
        self.mouse = None
        try:
            own = inferred_actions(file.stem, values) if actions is None else None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        space = own if actions is None else ActionSpace.from_config(actions)
        if isinstance(own, KeyboardMouseActions):
            self.mouse = MouseRange.of([action["mouse"] for action in values])
        if space is not None:
            for number, place, action in self.actions:
                try:
                    space.encode(written(space, self.mouse, action))
                except ValueError as error:
                    raise ValueError(f"{file}:{number}: segment {place}: {error}") from error
        return space

    def report(self, space: ActionSpace | None) -> str:
        """A report in a few lines of what is imported."""
        height, width = next(iter(self.sizes))
        kind = "none"
        if space is not None:
            kind = f"{len(self.actions)}, {type(space).__name__}, {space.num_tokens} tokens each"
        if isinstance(space, NamedActions):
            count = Counter(written(space, None, action) for _, _, action in self.actions)
            kind += f"\n    {', '.join(f'{name} ({count[name]})' for name in space.names)}"
        if isinstance(space, KeyboardMouseActions) and self.mouse is not None:
            kind += f"\n    mouse: {self.mouse.report(space)}"
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


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    given = json.loads(options)
    file = Path(given["file"])
    space = given["space"] and ActionSpace.from_config(given["space"])
    mouse = given["mouse"] and MouseRange(**given["mouse"])
    action = functools.partial(written, space, mouse)
    reading = Reading(file.parent, _read_frame, action, given["allow_outside"])
    return store(shard, list(_lines(file, given["sha256"]).episodes(shard.seeds, reading)))


def import_jsonl(
    file: Path,
    out: Path,
    *,
    actions: Path | None = None,
    allow_outside: bool = False,
    workers: int = 1,
) -> None:
    """Writes the episodes of a JSON lines file into a data folder; a second call resumes.

    Every line and every image is checked before anything is written.

    Args:
        file: One episode per line; paths of frames are relative to it.
        out: Data folder to write.
        actions: Action space (JSON) of the file; None makes one of the actions in it.
        allow_outside: Whether paths of frames may leave the file's folder.
        workers: Number of processes.

    Raises:
        ValueError: If a line is wrong, frames differ in size, or `out` was begun with something
            else.
    """
    lines = Lines.of(file)
    review = _Review(lines, allow_outside=allow_outside)
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
    options = {
        "file": str(file),
        "sha256": lines.digest,
        "space": space and space.to_config(),
        "mouse": review.mouse and asdict(review.mouse),
        "allow_outside": allow_outside,
    }
    write = functools.partial(_import_shard, json.dumps(options))
    record_shards(out, request, shards, write, workers, actions=space)
