"""Read a data folder for training: all but the pixels in memory, latents mapped from disk."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.episode import (
    FORMAT_VERSION,
    INFO_FILE,
    KINDS,
    LATENTS_INFO_FILE,
    ROWS_PER_GROUP,
    SPEAKERS,
    check_schema,
    decode_png,
)
from data.frames import named_inside
from data.json_text import read_json
from unified.conversation.sequence import (
    Motion,
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.conversation.turns import OUTCOMES, ROLES
from unified.media.action_space import ACTIONS_FILE, ActionSpace

LATENTS_FILE = "latents.npy"
LATENTS_CHECKED = 1024
"""Frames whose latents are looked at in one go when a folder is opened."""
ACTIONS_CHECKED = 10_000
"""Different actions that are looked at when a folder is opened: where there are more, they are
numbers, and training looks at them all."""

_EPISODE_COLUMNS = ("id", "source", "level", "behaviour", "seed")
_STRING_FIELDS = ("kind", "role", "text", "action", "target", "caption", "outcome")
_FRAME_COLUMN = "segments.list.element.frame.bytes"


def read_info(folder: Path) -> dict[str, Any]:
    """Read `info.json` of a complete data folder.

    Raises:
        ValueError: The folder is missing, half written, or of another format version.
    """
    path = folder / INFO_FILE
    if not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist; write one with data.prepare")
    if not path.exists():
        raise ValueError(
            f"data folder {folder} has no {INFO_FILE}, so it is not complete; "
            "rerun the data.prepare command that began it, it resumes"
        )
    fix = "delete it and rerun data.prepare"
    info = read_json(path, fix)
    if info.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"data folder {folder} has format version {info.get('format_version')}, "
            f"this code reads {FORMAT_VERSION}; write it again with data.prepare"
        )
    shards = info.get("shards")
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{path} is damaged (shards is {shards!r}, no list of files); {fix}")
    for shard in shards:
        file, count = (
            (shard.get("file"), shard.get("episodes")) if isinstance(shard, dict) else (None, None)
        )
        if not isinstance(file, str) or type(count) is not int or count < 0:
            raise ValueError(
                f"{path} is damaged (the shard {shard!r} lacks its file or its number of "
                f"episodes); {fix}"
            )
        try:
            named_inside(folder, file)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return info


def read_latents_info(folder: Path) -> dict[str, Any] | None:
    """Read `latents.json` of a data folder: `codec`, its fingerprint, and `shape`; None if none.

    Raises:
        ValueError: It is damaged.
    """
    path = folder / LATENTS_INFO_FILE
    if not path.exists():
        return None
    fix = "delete it and rerun python -m data.prepare latents"
    info = read_json(path, fix)
    codec, shape = info.get("codec"), info.get("shape")
    if not isinstance(codec, str):
        raise ValueError(f"{path} is damaged (codec is {codec!r}, no fingerprint); {fix}")
    if not isinstance(shape, list) or any(type(side) is not int for side in shape):
        raise ValueError(f"{path} is damaged (shape is {shape!r}, no list of integers); {fix}")
    return info


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode without its pixels: T actions, T + 1 frames when it comes from an environment.

    Attributes:
        id: Unique within the data folder.
        level: Name of the level or data set.
        seed: Environment seed, -1 when there is none.
        behaviour: Who acted.
        task: The words that open it, None when there are none.
        actions: T names of the actions taken, None for unknown. Action t leads from frame t to
            frame t + 1.
        targets: T names of the actions to learn instead, None for the one taken.
        action_weights: T loss weights of the actions.
        motions: T motions, what each action did to where the view is, None where unmeasured.
        said: T + 1 lists, what task and agent said after each frame, before the next action.
        told: T + 1 texts, what the world said before each frame, None where it said nothing.
        outcomes: T + 1 outcomes, one per frame.
        captions: T + 1 descriptions of the frames, None where there is none.
        latents: float16 (T + 1, c, h, w), None when the folder has no latents.
    """

    id: str
    level: str
    seed: int
    behaviour: str
    task: str | None
    actions: list[str | None]
    targets: list[str | None]
    action_weights: list[float]
    motions: list[Motion | None]
    said: list[list[Segment]]
    told: list[str | None]
    outcomes: list[str | None]
    captions: list[str | None]
    latents: np.ndarray | None


class EpisodeDataset:
    """The episodes of a data folder, in the order in which they were written.

    Args:
        folder: Data folder written by `python -m data.prepare`.
        require_latents: Refuse a folder without latents.

    Attributes:
        info: Content of `info.json`.
        levels: Names of the levels, sorted.
        lengths: int64 (episodes,), number of frames of each.
        episode_levels: str (episodes,), level of each.
        episode_behaviours: str (episodes,), behaviour of each.
        episode_seeds: int64 (episodes,), environment seed of each.
        latents: float16 (frames, c, h, w) mapped from disk, or None.

    Raises:
        ValueError: The folder is not complete, holds what no record can hold or an action that
            its action space does not know, or its latents are not those of its frames, or not
            finite.
    """

    def __init__(self, folder: str | Path, *, require_latents: bool = False) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self._shards = [self.folder / shard["file"] for shard in self.info["shards"]]
        self._shard_starts = np.cumsum([0] + [shard["episodes"] for shard in self.info["shards"]])
        self._load()
        self._check_actions()
        self._group: tuple[tuple[int, int], pa.Array] | None = None
        self.latents = self._open_latents()
        if self.latents is not None:
            self._check_latents(self.latents)
        if require_latents and self.latents is None:
            raise ValueError(
                f"data folder {self.folder} has no latents; write them with "
                f"python -m data.prepare latents --data {self.folder} --codec FOLDER"
            )

    def _load(self) -> None:
        columns = [f"segments.list.element.{name}" for name in (*_STRING_FIELDS, "hindsight")]
        columns += ["segments.list.element.weight", *_EPISODE_COLUMNS]
        columns += ["segments.list.element.motion.list.element"]
        tables, files = [], []
        for path in self._shards:
            if not path.exists():
                raise ValueError(f"{path} is missing; delete {INFO_FILE} and rerun data.prepare")
            try:
                file = pq.ParquetFile(path)
                check_schema(file)
                tables.append(file.read(columns=columns))
                files.append(file)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}); delete it and {INFO_FILE}, rerun data.prepare"
                ) from error
        table = pa.concat_tables(tables)
        rows = table.combine_chunks()
        if rows.num_rows != self._shard_starts[-1]:
            raise ValueError(
                f"{self.folder} holds {rows.num_rows} episodes, {INFO_FILE} says "
                f"{self._shard_starts[-1]}; write it again with data.prepare"
            )
        segments = rows["segments"].combine_chunks()
        starts = np.concatenate([[0], np.cumsum(segments.value_lengths().to_numpy())])
        self._starts: list[int] = starts.tolist()
        fields = segments.flatten()
        self._words: dict[str, list[str | None]] = {}
        self._codes: dict[str, np.ndarray] = {}
        for name in _STRING_FIELDS:
            encoded = fields.field(name).dictionary_encode()
            self._words[name] = [*encoded.dictionary.to_pylist(), None]
            codes = encoded.indices.fill_null(len(encoded.dictionary))
            self._codes[name] = codes.to_numpy(zero_copy_only=False).astype(np.int32)
        self._weights = fields.field("weight").to_numpy(zero_copy_only=False)
        self._hindsight = fields.field("hindsight").to_numpy(zero_copy_only=False)
        self._ids: list[str] = rows["id"].to_pylist()
        self._check_segments()

        motions = fields.field("motion")
        self._motions = np.full((len(fields), 3), np.nan, np.float32)
        is_known = motions.is_valid().to_numpy(zero_copy_only=False)
        sizes = motions.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        self._refuse(is_known & (sizes != 3), "a motion of other than three numbers")
        numbers = motions.flatten().to_numpy(zero_copy_only=False).reshape(-1, 3)
        self._motions[is_known] = numbers
        is_wrong = np.zeros(len(fields), bool)
        is_wrong[is_known] = ~np.isfinite(numbers).all(1)
        self._refuse(is_wrong, "a motion that is not finite; leave it out if unknown")
        is_frame = self._has("kind", "frame")
        self._refuse(is_known & ~self._has("kind", "action"), "a motion, which only actions have")
        for shard, file in enumerate(files):
            self._check_pngs(file, int(self._shard_starts[shard]), is_frame)
        frame_starts = np.concatenate([[0], np.cumsum(is_frame)])[starts]
        self._frame_starts: list[int] = frame_starts.tolist()
        self.lengths: np.ndarray = np.diff(frame_starts)
        self.episode_levels: np.ndarray = np.array(rows["level"].to_pylist())
        self.episode_behaviours: np.ndarray = np.array(rows["behaviour"].to_pylist())
        self.episode_seeds: np.ndarray = rows["seed"].to_numpy()
        self.levels: list[str] = sorted(set(self.episode_levels.tolist()))

    def _check_segments(self) -> None:
        """Refuses what no record can hold, and what training would silently take otherwise."""
        for name, known in (("kind", KINDS), ("role", ROLES), ("outcome", (*OUTCOMES, None))):
            words = self._words[name]
            for code, word in enumerate(words):
                if word in known:
                    continue
                places = np.flatnonzero(self._codes[name] == code)
                if len(places):
                    raise ValueError(
                        f"{self._named(int(places[0]))} has {name} {word!r}; use one of "
                        f"{', '.join(filter(None, known))}, and write the folder again"
                    )
        for kind, speakers in SPEAKERS.items():
            is_kind, can_speak = self._has("kind", kind), self._has("role", *speakers)
            what = f"kind {kind!r} and another role than {' or '.join(speakers)}"
            self._refuse(is_kind & ~can_speak, what)
        has = {name: ~self._has(name, None) for name in _STRING_FIELDS}
        is_text, is_action, is_frame = (self._has("kind", kind) for kind in KINDS)
        self._refuse(is_text & ~has["text"], "kind 'text' and no text")
        for name, is_owner in (
            ("text", is_text),
            ("action", is_action),
            ("target", is_action),
            ("caption", is_frame),
            ("outcome", is_frame),
        ):
            self._refuse(has[name] & ~is_owner, f"a field {name} that its kind does not have")
        wrong = np.flatnonzero(~(np.isfinite(self._weights) & (self._weights >= 0)))
        if len(wrong):
            raise ValueError(
                f"{self._named(int(wrong[0]))} has weight {self._weights[wrong[0]]}; give a finite "
                "number of at least 0, and write the folder again"
            )

    def _has(self, name: str, *words: str | None) -> np.ndarray:
        """Which segments hold one of the words in a field."""
        codes = [code for code, word in enumerate(self._words[name]) if word in words]
        return np.isin(self._codes[name], codes)

    def _refuse(self, is_wrong: np.ndarray, what: str) -> None:
        """Refuses the folder for the first segment that is wrong, if there is one."""
        if is_wrong.any():
            place = int(np.argmax(is_wrong))
            raise ValueError(f"{self._named(place)} has {what}; write the folder again")

    def _check_pngs(self, file: pq.ParquetFile, first: int, is_frame: np.ndarray) -> None:
        """Refuses a frame without its picture, and a picture that is no frame.

        The pictures themselves are read only where their number is wrong.

        Args:
            file: A shard.
            first: Number of its first episode in the folder.
            is_frame: Which segments of the folder are frames.
        """
        names = [file.schema.column(i).path for i in range(len(file.schema))]
        column = names.index(_FRAME_COLUMN)
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group)
            start, stop = self._starts[first], self._starts[first + found.num_rows]
            first += found.num_rows
            told = found.column(column).statistics
            wanted = is_frame[start:stop]
            if (
                told is not None
                and told.has_null_count
                and found.column(column).num_values - told.null_count == wanted.sum()
            ):
                continue
            rows = file.read_row_group(group, columns=[_FRAME_COLUMN])["segments"].to_pylist()
            held = [bool((one["frame"] or {}).get("bytes")) for row in rows for one in row]
            is_wrong = np.zeros(len(is_frame), bool)
            is_wrong[start:stop] = wanted & ~np.array(held, bool)
            self._refuse(is_wrong, "kind 'frame' and no picture")
            is_wrong[start:stop] = ~wanted & np.array(held, bool)
            self._refuse(is_wrong, "a picture, which only frames have")

    def _check_actions(self) -> None:
        """Refuses an action that the folder's own action space does not know."""
        path = self.folder / ACTIONS_FILE
        if not path.exists():
            return
        space = ActionSpace.from_config(path)
        for name in ("action", "target"):
            for code, word in enumerate(self._words[name][:ACTIONS_CHECKED]):
                try:
                    if word is not None:
                        space.encode(word)
                except ValueError as error:
                    place = int(np.flatnonzero(self._codes[name] == code)[0])
                    raise ValueError(
                        f"{self._named(place)} has {name} {word!r}, which is none of {path} "
                        f"({error}); write the folder again"
                    ) from error

    def _named(self, position: int) -> str:
        """A segment of the whole folder, for an error."""
        episode = bisect_right(self._starts, position) - 1
        place = position - self._starts[episode]
        return f"{self.folder}: segment {place} of episode {self._ids[episode]!r}"

    def _check_latents(self, latents: np.ndarray) -> None:
        """Refuses NaN and infinity, a few frames at a time."""
        for start in range(0, len(latents), LATENTS_CHECKED):
            part = latents[start : start + LATENTS_CHECKED]
            if part.dtype == np.float16:  # by its bits: numpy computes in half precision slowly
                is_wrong = (part.view(np.uint16) & 0x7C00) == 0x7C00
            else:
                is_wrong = ~np.isfinite(part)
            if is_wrong.any():
                frame = start + int(np.argwhere(is_wrong)[0, 0])
                episode = bisect_right(self._frame_starts, frame) - 1
                raise ValueError(
                    f"{self.folder / LATENTS_FILE} holds NaN or infinity at frame "
                    f"{frame - self._frame_starts[episode]} of episode {self._ids[episode]!r}; "
                    "check the codec, and rerun python -m data.prepare latents"
                )

    def _open_latents(self) -> np.ndarray | None:
        info = read_latents_info(self.folder)
        if info is None:
            return None
        try:
            latents = np.load(self.folder / LATENTS_FILE, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the latents of {self.folder} cannot be read ({error}); delete "
                f"{self.folder / LATENTS_INFO_FILE} and rerun python -m data.prepare latents"
            ) from error
        if list(latents.shape) != info["shape"] or len(latents) != self._frame_starts[-1]:
            raise ValueError(
                f"{self.folder / LATENTS_FILE} has shape {latents.shape}, the folder has "
                f"{self._frame_starts[-1]} frames; rerun python -m data.prepare latents"
            )
        if latents.dtype.kind != "f" or latents.ndim != 4:
            raise ValueError(
                f"{self.folder / LATENTS_FILE} holds {latents.dtype} of shape {latents.shape}, not "
                "floating point numbers (frames, channels, height, width); rerun python -m "
                "data.prepare latents"
            )
        return latents

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped latents, which a worker process maps again."""
        return {**self.__dict__, "latents": None, "_group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the latents again."""
        self.__dict__.update(state)
        self.latents = self._open_latents()

    def texts(self, *columns: str) -> set[str]:
        """All different words that are said, and captions.

        Args:
            *columns: `text` or `caption`; none is both.
        """
        chosen = columns or ("text", "caption")
        return {words for column in chosen for words in self._words[column] if words}

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._ids)

    @property
    def num_frames(self) -> int:
        """Number of frames of all episodes."""
        return self._frame_starts[-1]

    @property
    def has_captions(self) -> bool:
        """Whether any frame is described."""
        return len(self._words["caption"]) > 1  # besides None

    @property
    def speaks_world(self) -> bool:
        """Whether the world says anything, besides showing frames."""
        return bool((self._has("kind", "text") & self._has("role", "world")).any())

    def _index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return index % len(self)

    def __iter__(self) -> Iterator[Episode]:
        """Go through the episodes in order."""
        return (self[index] for index in range(len(self)))

    def _motion(self, position: int) -> Motion | None:
        turn, ahead, right = self._motions[position].tolist()
        return None if math.isnan(turn) else (turn, ahead, right)

    def _column(self, name: str, start: int, stop: int) -> list[str | None]:
        words = self._words[name]
        return [words[code] for code in self._codes[name][start:stop].tolist()]

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index`; its latents are a view of the mapped file."""
        index = self._index(index)
        start, stop = self._starts[index], self._starts[index + 1]
        kinds, roles, texts, actions, targets, captions, outcomes = (
            self._column(name, start, stop) for name in _STRING_FIELDS
        )
        weights = self._weights[start:stop].tolist()
        hindsight = self._hindsight[start:stop].tolist()
        task: str | None = None
        acts: list[int] = []
        frames: list[int] = []
        said: list[list[Segment]] = []
        told: list[str | None] = []
        words_of_world: list[str] = []
        for position, kind in enumerate(kinds):
            if kind == "frame":
                frames.append(position)
                said.append([])
                told.append(" ".join(words_of_world) or None)
                words_of_world = []
            elif kind == "text":
                words = texts[position] or ""
                if roles[position] == "world":
                    words_of_world.append(words)
                elif said:
                    said[-1].append(_words(roles[position], words, weights[position]))
                else:
                    task = words if task is None else f"{task} {words}"
            elif not hindsight[position]:
                acts.append(position)
        latents = self.latents
        if latents is not None:
            latents = latents[self._frame_starts[index] : self._frame_starts[index + 1]]
        return Episode(
            id=self._ids[index],
            level=str(self.episode_levels[index]),
            seed=int(self.episode_seeds[index]),
            behaviour=str(self.episode_behaviours[index]),
            task=task,
            actions=[actions[position] for position in acts],
            targets=[targets[position] for position in acts],
            action_weights=[weights[position] for position in acts],
            motions=[self._motion(start + position) for position in acts],
            said=said,
            told=told,
            outcomes=[outcomes[position] for position in frames],
            captions=[captions[position] for position in frames],
            latents=latents,
        )

    def sequence(self, index: int, *, pixels: bool = False) -> Sequence:
        """Return episode `index` as the library's Sequence, whatever its interleaving.

        Args:
            index: Which episode.
            pixels: Give every frame its pixels, decoded from PNG, instead of its latents.

        Raises:
            ValueError: Latents are asked for, and the folder has none.
        """
        index = self._index(index)
        if not pixels and self.latents is None:
            raise ValueError(
                f"{self.folder} has no latents; run data.prepare latents, or pixels=True"
            )
        frames = self.frames(index) if pixels else None
        first = self._frame_starts[index]
        start, stop = self._starts[index], self._starts[index + 1]
        kinds, roles, texts, actions, targets, _, outcomes = (
            self._column(name, start, stop) for name in _STRING_FIELDS
        )
        segments: list[Segment] = []
        shown = 0
        for position, kind in enumerate(kinds):
            weight = float(self._weights[start + position])
            if kind == "text":
                segments.append(_words(roles[position], texts[position] or "", weight))
            elif kind == "action":
                segments.append(
                    action_segment(
                        actions[position],
                        target=targets[position],
                        hindsight=bool(self._hindsight[start + position]),
                        weight=weight,
                        motion=self._motion(start + position),
                    )
                )
            else:
                outcome = outcomes[position]
                if frames is not None:
                    segments.append(frame_segment(frames[shown], outcome=outcome, weight=weight))
                elif self.latents is not None:
                    latents = np.asarray(self.latents[first + shown])
                    segments.append(frame_segment(latents=latents, outcome=outcome, weight=weight))
                shown += 1
        return Sequence(segments)

    def pngs(self, index: int) -> list[bytes]:
        """Return the PNG bytes of the frames of episode `index`; quick when read in order."""
        index = self._index(index)
        shard = int(np.searchsorted(self._shard_starts, index, side="right")) - 1
        group, row = divmod(index - int(self._shard_starts[shard]), ROWS_PER_GROUP)
        if self._group is None or self._group[0] != (shard, group):
            file = pq.ParquetFile(self._shards[shard])
            table = file.read_row_group(group, columns=[_FRAME_COLUMN])
            self._group = (shard, group), table["segments"].combine_chunks()
        segments = self._group[1][row].as_py()
        frames = (segment["frame"] for segment in segments)
        pngs = [frame["bytes"] for frame in frames if frame is not None and frame["bytes"]]
        if len(pngs) != self.lengths[index]:
            raise ValueError(
                f"{self._shards[shard]}: episode {self._ids[index]!r} has {len(pngs)} pictures for "
                f"{self.lengths[index]} frames; write the folder again"
            )
        return pngs

    def frames(self, index: int) -> list[np.ndarray]:
        """Decode the frames of episode `index`: uint8 (H, W, 3) each."""
        frames = []
        for number, png in enumerate(self.pngs(index)):
            try:
                frames.append(decode_png(png))
            except ValueError as error:
                raise ValueError(
                    f"{self.folder}: frame {number} of episode {self._ids[self._index(index)]!r} "
                    f"cannot be read ({error}); write the folder again"
                ) from error
        return frames


def _words(role: str | None, text: str, weight: float) -> Segment:
    """A TEXT; nobody learns to give tasks, or what only happens to be so."""
    if role == "task":
        return text_segment(text, "task", weight=0.0)
    if role == "world":
        return text_segment(text, "world", weight=0.0)
    return text_segment(text, "agent", weight=weight)
