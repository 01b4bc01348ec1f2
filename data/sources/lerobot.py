"""LeRobot datasets, v2.1 and v3.0, read: Parquet with PNGs inside or mp4 beside.

A row of LeRobot is a frame and the action taken there, so T + 1 rows are T + 1 frames and T
actions: the action of an episode's last row leads to a frame that was not kept, and is left out.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.episode import (
    FORMAT_VERSION,
    EpisodeRecord,
    SegmentRecord,
    encode_png,
)
from data.frames import named_inside
from data.json_text import read_json, read_lines
from data.shards import Shard, cut_shards, record_shards, store
from data.sources.lerobot_tables import (
    Part,
    action_of,
    booleans,
    check_columns,
    integers,
    number_names,
    picture,
    read_episode,
    read_outcomes,
    read_table,
    vectors,
)
from data.sources.lerobot_words import (
    DEFAULT_STYLES,
    EVENTS,
    PERSISTENT,
    STYLES,
    TASK_AUG,
    count_styles,
    event_words,
    joined,
    persistent_words,
    read_words,
    task_words,
)
from data.sources.video import check_rate, frames_at, is_next, resized, side_by_side
from unified.media.action_space import ActionSpace
from unified.media.actions import ContinuousActions, NamedActions
from unified.media.numbers import is_whole

VERSIONS = ("v2.1", "v3.0")
CAMERA = "observation.images."
EPISODES_PER_SHARD = 50
MOST_CHOICES = 1000
"""Of one integer: more are numbers."""


class LeRobotReader:
    """The episodes of a LeRobot dataset.

    Args:
        folder: The one that holds `meta/info.json`.
        cameras: Names of those to take, side by side in this order; all if there is none.
        size: Height and width of a camera's frame; None leaves them as they are.
        fps: Frames a second to keep; must divide the dataset's. The actions between two kept
            frames become one chunk.
        styles: Which rows of the columns `language_persistent` and `language_events` are said, see
            `data.sources.lerobot_words`; with `task_aug`, tasks are told in other words, too.

    Raises:
        ValueError: If the folder is no such dataset, of another version, or lacks what it promises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cameras: Sequence[str] = (),
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        styles: Sequence[str] = DEFAULT_STYLES,
    ) -> None:
        self.folder, self.size, self.styles = folder, size, tuple(styles)
        unknown = [style for style in styles if style not in STYLES]
        if unknown:
            raise ValueError(f"style {unknown[0]!r} is unknown; use {', '.join(STYLES)}")
        fix = "give the folder of a LeRobot dataset, or copy it again"
        self.info = read_json(folder / "meta" / "info.json", fix)
        version = self.info.get("codebase_version")
        if version not in VERSIONS:
            raise ValueError(
                f"{folder} is a LeRobot dataset of version {version!r}; this code reads "
                f"{' and '.join(VERSIONS)}, convert it with lerobot's own script"
            )
        self._check_info()
        self.fps = float(self.info["fps"])
        self.features: dict[str, Any] = self.info["features"]
        kinds = ("video", "image")
        known = [key for key, feature in self.features.items() if feature["dtype"] in kinds]
        wanted = [c if c in known else CAMERA + c for c in cameras] if cameras else known
        missing = [camera for camera in wanted if camera not in known]
        if missing or not known:
            raise ValueError(
                f"{folder} has no camera {', '.join(missing) or 'at all'}; it has "
                f"{', '.join(known) or 'only numbers, and this model sees frames'}"
            )
        self.cameras = wanted
        if "action" not in self.features:
            raise ValueError(f"{folder} has no column 'action', only {', '.join(self.features)}")
        self.languages = [name for name in (PERSISTENT, EVENTS) if name in self.features]
        self.words = read_words(folder)
        self.outcomes = read_outcomes(folder)
        self.every = self._every(fps)
        self.tasks = self._tasks()
        self.parts = self._parts()
        self.actions = self._action_space()

    def _check_info(self) -> None:
        """Refuses an `info.json` that lacks what every dataset has."""
        features, fps = self.info.get("features"), self.info.get("fps")
        wrong = None
        if not isinstance(features, dict) or not all(
            isinstance(one, dict) and isinstance(one.get("dtype"), str) for one in features.values()
        ):
            wrong = "features is no table of columns with their dtype"
        elif not isinstance(self.info.get("unified", {}), dict):
            wrong = f"unified is {self.info['unified']!r}, not an object"
        elif isinstance(fps, bool) or not isinstance(fps, int | float) or not fps > 0:
            wrong = f"fps is {fps!r}, not a positive number"
        for name, kind in (("data_path", str), ("chunks_size", int), ("total_episodes", int)):
            if wrong is None and type(self.info.get(name)) is not kind:
                wrong = f"{name} is {self.info.get(name)!r}, not {kind.__name__}"
        if wrong is None and self.info["chunks_size"] < 1:
            wrong = f"chunks_size is {self.info['chunks_size']}, and a chunk holds episodes"
        films = [
            k for k, one in (features or {}).items() if wrong is None and one["dtype"] == "video"
        ]
        if films and not isinstance(self.info.get("video_path"), str):
            wrong = f"video_path is {self.info.get('video_path')!r}, and {films[0]} is a video"
        if wrong is not None:
            raise ValueError(
                f"{self.folder / 'meta' / 'info.json'}: {wrong}; copy the dataset again"
            )

    def _every(self, fps: float | None) -> int:
        own = self.fps
        if fps is None:
            return 1
        ratio = own / fps if fps > 0 else 0
        if abs(ratio - round(ratio)) > 1e-6 or ratio < 1:
            raise ValueError(f"fps={fps} does not divide the dataset's {own:g}; choose {own:g}/k")
        return round(ratio)

    def _tasks(self) -> dict[int, str]:
        if self.info["codebase_version"] == "v2.1":
            path = self.folder / "meta" / "tasks.jsonl"
            lines = read_lines(path)
            rows: list[Any] = [(line.get("task_index"), line.get("task")) for line in lines]
        else:
            path = self.folder / "meta" / "tasks.parquet"
            table = read_table(path, ["task_index"], is_whole=True)
            names = [name for name in table.column_names if name != "task_index"]
            words = table[names[0]].to_pylist() if names else [None] * table.num_rows
            rows = list(zip(integers(table, "task_index", path), words, strict=True))
        for number, row in enumerate(rows):
            if not (isinstance(row[0], int) and isinstance(row[1], str)):
                raise ValueError(f"{path}: row {number} is {row}, not a number and its task")
        repeated = [index for index, count in Counter(row[0] for row in rows).items() if count > 1]
        if repeated:
            raise ValueError(f"{path}: task_index {repeated[0]} is listed twice; mend the table")
        return dict(rows)

    def _parts(self) -> list[Part]:
        """Where the episodes lie: as many as promised, and each of them once."""
        parts = self._listed()
        where = self.folder / "meta" / "episodes"
        if len(parts) != self.info["total_episodes"]:
            raise ValueError(
                f"{where} lists {len(parts)} episodes, info.json says "
                f"{self.info['total_episodes']}; copy the dataset again"
            )
        parts.sort(key=lambda part: part.index)
        for before, part in pairwise(parts):
            if before.index == part.index:
                raise ValueError(f"{where} lists episode {part.index} twice; mend the table")
        return parts

    def _listed(self) -> list[Part]:
        if self.info["codebase_version"] == "v2.1":
            path = self.folder / "meta" / "episodes.jsonl"
            lines = read_lines(path)
            for number, line in enumerate(lines):
                if any(type(line.get(key)) is not int for key in ("episode_index", "length")):
                    raise ValueError(f"{path}: episode {number} lacks episode_index or length")
            return [self._old_part(x["episode_index"], x["length"]) for x in lines]
        parts = []
        for file in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
            for camera in self._filmed():
                where = f"videos/{camera}/"
                columns += [where + key for key in ("chunk_index", "file_index", "from_timestamp")]
            table = read_table(file, columns)
            for name in columns:
                if table[name].null_count:
                    raise ValueError(f"{file}: a row has no {name}; copy the dataset again")
            for row in table.to_pylist():
                data = self._place(
                    "data_path",
                    chunk_index=row["data/chunk_index"],
                    file_index=row["data/file_index"],
                )
                videos = {}
                for camera in self._filmed():
                    where = f"videos/{camera}/"
                    path = self._place(
                        "video_path",
                        video_key=camera,
                        chunk_index=row[where + "chunk_index"],
                        file_index=row[where + "file_index"],
                    )
                    videos[camera] = path, float(row[where + "from_timestamp"])
                index, length = int(row["episode_index"]), int(row["length"])
                parts.append(Part(index, data, length, videos))
        return parts

    def _old_part(self, index: int, length: int) -> Part:
        names = {"episode_chunk": index // self.info["chunks_size"], "episode_index": index}
        videos = {
            camera: (self._place("video_path", video_key=camera, **names), 0.0)
            for camera in self._filmed()
        }
        return Part(index, self._place("data_path", **names), length, videos)

    def _place(self, key: str, **names: str | int) -> Path:
        """A file of the dataset, where a template of `info.json` says."""
        template = self.info[key]
        try:
            return named_inside(self.folder, template.format(**names))
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self.folder / 'meta' / 'info.json'}: {key} {template!r} names no file of the "
                f"dataset ({error}); copy the dataset again"
            ) from error

    def _filmed(self) -> list[str]:
        return [c for c in self.cameras if self.features[c]["dtype"] == "video"]

    def _action_space(self) -> ActionSpace:
        """The stored action space, or one fitted to all actions; these are checked in any case."""
        name = self.folder.name
        numbers = []
        for file in dict.fromkeys(part.file for part in self.parts):
            values = vectors(read_table(file, ["action"])["action"], file)
            wrong = np.argwhere(~np.isfinite(values.astype(float)).all(1))
            if len(wrong):
                raise ValueError(
                    f"{file}: row {int(wrong[0, 0])} has action {values[wrong[0, 0]].tolist()}; "
                    "mend it, or leave the episode out"
                )
            numbers.append(values)
        widths = {values.shape[1] for values in numbers}
        if len(widths) != 1:
            raise ValueError(
                f"{self.folder}: actions have {sorted(widths)} numbers; mend the dataset"
            )
        values = np.concatenate(numbers)
        own = self.info.get("unified", {}).get("action_space")
        if own is not None:
            return self._chunked(ActionSpace.from_config(own), values.shape[1])
        if np.issubdtype(values.dtype, np.integer) and values.shape[1] == 1:
            if self.every > 1:
                raise ValueError(
                    f"{self.folder} has one of a set of actions a frame, which do not add up; "
                    "leave fps as it is"
                )
            least, most = int(values.min()), int(values.max())
            if most - least >= MOST_CHOICES:
                raise ValueError(
                    f"{self.folder}: actions are integers from {least} to {most}, which is no "
                    "choice of a few; store them as floats, and they get bins"
                )
            return NamedActions(name, [f"action{i}" for i in range(least, most + 1)], least)
        names = self.features["action"].get("names")
        names = names.get("motors") if isinstance(names, dict) else names
        if not isinstance(names, list) or len(names) != values.shape[1]:
            names = [f"x{i}" for i in range(values.shape[1])]
        dtype = values.dtype.name if is_whole(values.dtype) else "float32"
        return ContinuousActions.fit(name, names, values, chunk=self.every, dtype=dtype)

    def _chunked(self, space: ActionSpace, width: int) -> ActionSpace:
        """The action space that the dataset tells, of chunks where frames are left out."""
        check_columns(space)
        if len(number_names(space)) != width:
            raise ValueError(
                f"{self.folder}: actions have {width} numbers, and those of its action space "
                f"{len(number_names(space))}; mend the dataset"
            )
        if self.every == 1:
            return space
        if not isinstance(space, ContinuousActions) or space.chunk > 1:
            raise ValueError(
                f"{self.folder} has actions that do not add up to one; leave fps as it is"
            )
        return ActionSpace.from_config({**space.to_config(), "chunk": self.every})

    def report(self) -> str:
        """A report in a few lines of what is imported."""
        rows = sum(part.length for part in self.parts)
        taken = {"action", "task_index", "timestamp", "frame_index", "episode_index", "index"}
        taken |= {*self.cameras, "next.success", *self.languages}
        left = [key for key in self.features if key not in taken]
        space = f"{type(self.actions).__name__}, {self.actions.num_tokens} tokens"
        if isinstance(self.actions, ContinuousActions):
            worst = ", ".join(f"{x:.3g}" for x in self.actions.resolution)
            space += f"; numbers come back within {worst}"
        return (
            f"{self.folder}: LeRobot {self.info['codebase_version']}, {len(self.parts)} episodes, "
            f"{rows} frames at {self.info['fps']} a second, {len(self.tasks)} tasks\n"
            f"  cameras: {', '.join(self.cameras)}\n"
            f"  frames kept: one in {self.every}\n"
            f"  actions: {space}\n"
            f"  words: {self._words()}\n"
            f"  left out: {', '.join(left) or 'nothing'}"
        )

    def _words(self) -> str:
        """A report of the words that are imported, and of those that are left out."""
        count: Counter[str] = Counter()
        for file in dict.fromkeys(part.file for part in self.parts) if self.languages else ():
            table = read_table(file, [*self.languages, "frame_index"])
            if PERSISTENT in self.languages:
                first = table.filter(pc.field("frame_index") == 0)
                count += count_styles(first[PERSISTENT].to_pylist())
            if EVENTS in self.languages:
                count += count_styles(table[EVENTS].to_pylist())
        if EVENTS not in self.languages:
            count += count_styles(self.words.values())
        said = ", ".join(f"{style} ({count[style]})" for style in self.styles if count[style])
        others = ", ".join(f"{s} ({n})" for s, n in sorted(count.items()) if s not in self.styles)
        return f"tasks, {said or 'and nothing else'}" + (f"; left out: {others}" if others else "")

    def _said(self, part: Part, rows: pa.Table) -> dict[int, list[SegmentRecord]]:
        """The words after each frame that is kept."""
        cells = {name: rows[name].to_pylist() for name in self.languages}
        persistent = cells.get(PERSISTENT) or [None]  # the same in all rows of an episode
        try:
            lasting = persistent_words(persistent[0], self.styles, fps=self.fps, length=part.length)
        except ValueError as error:
            raise ValueError(f"{part.name}: {error}") from error
        said: dict[int, list[SegmentRecord]] = {}
        tasks = self._tasks_of(part, rows)
        given = tasks[0]
        for kept, here in self._rows_of(part):
            turns = [row for row in here if row and tasks[row] != tasks[row - 1]]
            turn = turns[-1] if tasks[here[-1]] != given else None  # who changes twice means one
            given = tasks[here[-1]]
            words = []
            for row in here:
                words += [_task(given)] if row == turn and given else []
                beside = self.words.get((part.index, row))
                words += event_words(
                    cells[EVENTS][row] if EVENTS in cells else beside,
                    self.styles,
                    cameras=self.cameras,
                    is_ordered="unified" in self.info,
                )
                words += lasting.get(row, [])
            if words:
                said[kept] = joined(words)
        return said

    def _rows_of(self, part: Part) -> Iterator[tuple[int, range]]:
        """The number of each frame that is kept, with the rows whose words are said after it."""
        last = (part.length - 1) // self.every
        for kept in range(last + 1):
            start = (kept - 1) * self.every + 1 if kept else 0
            yield kept, range(start, part.length if kept == last else kept * self.every + 1)

    def record(self, place: int) -> EpisodeRecord:
        """Episode number `place`, in order.

        Raises:
            ValueError: If rows, frames or videos are missing or broken; names the file.
        """
        part = self.parts[place]
        still = [c for c in self.cameras if self.features[c]["dtype"] == "image"]
        columns = ["action", "task_index", "frame_index"]
        columns += ["timestamp"] * bool(part.videos)
        others = ("timestamp", "next.success", *self.languages)
        columns += [name for name in others if name in self.features]
        rows = read_episode(part.file, [*columns, *still], part.index)
        if rows.num_rows != part.length:
            raise ValueError(
                f"{part.file} has {rows.num_rows} rows of episode {part.index}, its metadata says "
                f"{part.length}; copy the dataset again"
            )
        if integers(rows, "frame_index", part.name) != list(range(part.length)):
            raise ValueError(
                f"{part.file}: the frame_index of episode {part.index} does not count from 0 to "
                f"{part.length - 1}; rows are missing or doubled, copy the dataset again"
            )
        times = self._times(part, rows) if "timestamp" in columns else []
        views = [self._views(camera, part, rows, times) for camera in self.cameras]
        kept = range(0, part.length, self.every)
        frames = (
            side_by_side([view[i] for view in views], self.cameras, f"{part.name}, row {i}")
            for i in kept
        )
        actions = vectors(rows["action"], part.file)
        task = self._tasks_of(part, rows)[0]
        outcomes = self._outcomes(part, rows)
        said = self._said(part, rows)
        if PERSISTENT in self.languages and TASK_AUG in self.styles:
            task = task_words(task, rows[PERSISTENT][0].as_py(), part.index)
        segments = [_task(task)] if task else []
        for number, (row, frame) in enumerate(zip(kept, frames, strict=True)):
            if number:
                taken = actions[row - self.every : row]
                try:
                    action = self._written(taken)
                except ValueError as error:
                    raise ValueError(f"{part.name}, row {row - 1}: {error}") from error
                segments.append(SegmentRecord(kind="action", role="agent", action=action))
            png = encode_png(np.ascontiguousarray(frame))
            segments.append(
                SegmentRecord(kind="frame", role="world", frame=png, outcome=outcomes[number])
            )
            segments += said.get(number, [])
        return EpisodeRecord(
            id=f"{self.folder.name}/{part.index}",
            source="lerobot",
            level=self.folder.name,
            seed=-1,
            behaviour="recorded",
            segments=segments,
        )

    def _outcomes(self, part: Part, rows: pa.Table) -> list[str | None]:
        """How each frame that is kept stands.

        `next.success` of a row says where its action led to. That of the last rows led to frames
        that are not kept, so the last one that is kept has their success.
        """
        kept = list(self._rows_of(part))
        if "next.success" not in rows.column_names:
            return [*["ongoing"] * (len(kept) - 1), None]  # nobody says how it ended
        success = booleans(rows, "next.success", part.name)
        found: list[str | None] = []
        for number, here in kept:
            is_last = number == len(kept) - 1
            led_here = success[max(here.start - 1, 0) : here.stop if is_last else here.stop - 1]
            told = [
                self.outcomes[part.index, row] for row in here if (part.index, row) in self.outcomes
            ]
            if True in led_here or "success" in told:
                found.append("success")
            elif told:
                found.append("failure" if "failure" in told else None)
            else:
                found.append(None if None in led_here else "ongoing")
        return found

    def _tasks_of(self, part: Part, rows: pa.Table) -> list[str]:
        """What is to be done at each row."""
        found = []
        for row, index in enumerate(integers(rows, "task_index", part.name)):
            if index not in self.tasks:
                raise ValueError(
                    f"{part.name}, row {row} has task_index {index}, which "
                    f"meta/tasks does not list ({len(self.tasks)} tasks); mend the table"
                )
            found.append(self.tasks[index])
        return found

    def _times(self, part: Part, rows: pa.Table) -> list[float]:
        """When the rows of an episode were recorded, a frame apart, in seconds."""
        times = [math.nan if one is None else float(one) for one in rows["timestamp"].to_pylist()]
        for row, time in enumerate(times):
            if not math.isfinite(time) or (row and time <= times[row - 1]):
                raise ValueError(
                    f"{part.name}, row {row} has timestamp {time:g}; times must rise within an "
                    "episode, mend the column"
                )
            if row and not is_next(times[row - 1], time, 1 / self.fps):
                raise ValueError(
                    f"{part.name}, row {row} comes "
                    f"{time - times[row - 1]:.3f} s after the one before, not {1 / self.fps:.3f} "
                    "s; rows are missing or doubled, and actions would lead to the wrong frames: "
                    "mend the timestamps, or leave the episode out"
                )
        return times

    def _written(self, actions: np.ndarray) -> str:
        return action_of(self.actions, actions if self.every > 1 else actions[0])

    def _views(
        self, camera: str, part: Part, rows: pa.Table, times: Sequence[float]
    ) -> list[np.ndarray]:
        """The frames of one camera, `(H, W, 3)` uint8 each."""
        if camera in part.videos:
            file, begin = part.videos[camera]
            check_rate(file, self.fps, 0.1)
            shown = [begin + time for time in times]
            try:
                return frames_at(file, shown, interval=1 / self.fps, size=self.size)
            except ValueError as error:
                raise ValueError(f"{part.name}: {error}") from error
        views = []
        for row, cell in enumerate(rows[camera].to_pylist()):
            name = f"{part.name}, row {row}: {camera}"
            views.append(resized(picture(cell, part.file, self.folder, name), self.size, name))
        return views


def _task(text: str) -> SegmentRecord:
    return SegmentRecord(kind="text", role="task", text=text, weight=0.0)


@functools.cache
def _reader(options: str) -> LeRobotReader:
    values = json.loads(options)
    size = values["size"] and tuple(values["size"])
    folder = Path(values["folder"])
    given = {name: values[name] for name in ("cameras", "fps", "styles")}
    return LeRobotReader(folder, size=size, **given)


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    return store(shard, [_reader(options).record(place) for place in shard.seeds])


def import_lerobot(
    folder: Path,
    out: Path,
    *,
    cameras: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    styles: Sequence[str] = DEFAULT_STYLES,
    workers: int = 1,
) -> None:
    """Writes a LeRobot dataset into a data folder; a second call resumes.

    The action space goes to `action_space.json`.

    Args:
        folder: The one that holds `meta/info.json`.
        out: Data folder to write.
        cameras: Names of those to take, side by side in this order; all if there is none.
        size: Height and width of a camera's frame; None leaves them as they are.
        fps: Frames a second to keep, a divisor of the dataset's.
        styles: What is said of the language columns: also plan, memory, motion, vqa, trace, and
            task_aug (the task in other words).
        workers: Number of processes.

    Raises:
        ValueError: If the dataset cannot be read, or `out` was begun with something else.
    """
    options = json.dumps(
        {
            "folder": str(folder),
            "cameras": list(cameras),
            "size": size,
            "fps": fps,
            "styles": list(styles),
        }
    )
    _reader.cache_clear()
    reader = _reader(options)
    print(reader.report())
    count = len(reader.parts)
    shards = cut_shards(
        out, "episodes", folder.name, first_seed=0, episodes=count, size=EPISODES_PER_SHARD
    )
    request = {
        "source": "lerobot",
        "format_version": FORMAT_VERSION,
        "levels": [folder.name],
        "episodes": count,
        "reader": json.loads(options),
    }
    write = functools.partial(_import_shard, options)
    record_shards(out, request, shards, write, workers, actions=reader.actions)
