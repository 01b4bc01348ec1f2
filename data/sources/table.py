"""Films with a table beside them: an mp4 each, and a CSV of the same name with one row a frame.

A row says when it was written (a time in seconds, or the number of its frame), what was done there,
and perhaps what was said. The action of a row leads to the frame of the next one.
"""

import csv
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.episode import FORMAT_VERSION, encode_png
from data.shards import Shard, record_shards, store
from data.sources.mouse import MouseRange
from data.sources.recordings import (
    Moment,
    cut_episodes,
    episodes_in,
    found_videos,
    name_of,
    recording_shards,
)
from data.sources.table_actions import TableActions, read_number
from data.sources.tasks import check_tasks, read_tasks, table_text
from data.sources.video import TOLERANCE, frames_of, is_next, rate_of
from unified.media.action_space import ActionSpace

TRUE, FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table say what.

    Attributes:
        time: When a row's frame is shown, in seconds from the film's beginning.
        index: Number of a row's frame in the film, from 0; instead of the time.
        actions: What is done.
        keys: Keys and buttons, held where there is a 1.
        mouse: Movement of the mouse, right and down.
        words: What the agent says there.
        task: What is to be done from there on.
        success: True where it is done.
    """

    time: str | None = None
    index: str | None = None
    actions: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    mouse: tuple[str, ...] = ()
    words: str | None = None
    task: str | None = None
    success: str | None = None

    def __post_init__(self) -> None:
        if (self.time is None) == (self.index is None):
            raise ValueError(
                "say what matches a row to its frame: --time COLUMN (seconds), or --index COLUMN "
                "(number of the frame, from 0)"
            )
        if bool(self.actions) == bool(self.keys or self.mouse):
            raise ValueError(
                "say which columns are actions: --actions COLUMN ..., or --keys COLUMN ... with "
                "--mouse RIGHT DOWN"
            )
        if len(self.mouse) not in (0, 2) or (self.mouse and not self.keys):
            raise ValueError(
                f"--mouse {' '.join(self.mouse)} needs two columns, right and down, beside --keys"
            )

    @property
    def names(self) -> list[str]:
        """All that a table must have."""
        one = [self.time, self.index, self.words, self.task, self.success]
        return [*filter(None, one), *self.actions, *self.keys, *self.mouse]


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        line: Its number in the file, from 1.
        place: Time in seconds, or number of the frame.
        cells: Text of each column.
    """

    line: int
    place: float
    cells: dict[str, str] = field(repr=False)


def read_rows(path: Path, columns: Columns, delimiter: str = ",") -> list[Row]:
    """The rows of a table.

    Raises:
        ValueError: If a column is missing, or a place is no number or does not rise; names file
            and line.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; every mp4 needs the CSV of its actions")
    text = table_text(path, "save it as UTF-8")
    rows: list[Row] = []
    try:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns.names if name not in names]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}; "
                "name others, or say --delimiter"
            )
        if len(set(names)) != len(names):
            raise ValueError(f"{path}: column names repeat ({', '.join(names)}); rename one")
        for cells in reader:
            if not any(cells):
                continue
            line = reader.line_num
            if len(cells) != len(names):
                raise ValueError(f"{path}:{line}: {len(cells)} cells, not {len(names)}; mend it")
            row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
            rows.append(Row(line, _place(path, line, row, columns), row))
            if len(rows) > 1 and rows[-1].place <= rows[-2].place:
                raise ValueError(
                    f"{path}:{line}: {columns.time or columns.index} is {rows[-1].place:g} after "
                    f"{rows[-2].place:g}; it has to rise, mend the line"
                )
    except csv.Error as error:
        raise ValueError(f"{path}: not a table ({error}); say --delimiter, or mend it") from error
    if len(rows) < 2:
        raise ValueError(f"{path} has {len(rows)} rows; a recording has at least two frames")
    return rows


def _place(path: Path, line: int, row: dict[str, str], columns: Columns) -> float:
    name = columns.time or columns.index or ""
    value = read_number(row[name])
    is_frame = row[name].isascii() and row[name].isdecimal()
    if value is None or (columns.index is not None and not is_frame):
        kind = "a number of seconds" if columns.time else "the number of a frame, from 0"
        raise ValueError(f"{path}:{line}: {name} is {row[name]!r}, not {kind}; mend the line")
    return value


@dataclass(frozen=True)
class Shown:
    """A frame of a film.

    Attributes:
        number: From 0.
        time: Seconds since the first frame.
        frame: `(H, W, 3)` uint8.
    """

    number: int
    time: float
    frame: np.ndarray


@dataclass
class Matching:
    """Finds the frame of each row by its time or its number, never by counting rows.

    Args:
        video: The film.
        table: Its table, for messages.
        rows: Of the table.
        is_timed: Whether rows say a time, else a number.
        allow_gaps: Whether a frame between two rows may have no row.
        size: Height and width of the frames; None leaves them as they are.
    """

    video: Path
    table: Path
    rows: Sequence[Row]
    is_timed: bool
    allow_gaps: bool = False
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        rate = rate_of(self.video)
        if rate is None:
            raise ValueError(f"{self.video} does not say how many frames a second it has; remux it")
        self.interval = 1 / rate
        self.pngs: list[bytes] = []
        self.taken = -1

    def frames(self) -> list[bytes]:
        """The frame of each row, as PNG.

        Raises:
            ValueError: If a row has no frame, or a frame between two rows no row; names the line.
        """
        before: Shown | None = None
        first = 0.0
        for number, (time, frame) in enumerate(frames_of(self.video, size=self.size)):
            first = time if before is None else first
            now = Shown(number, time - first, frame)
            if before is not None and not self.is_timed:
                self._check_step(before, now)
            while len(self.pngs) < len(self.rows):
                wanted = self.rows[len(self.pngs)].place
                if self._where(now) < wanted:
                    break
                is_nearer = before is not None and (
                    wanted - self._where(before) < self._where(now) - wanted
                )
                self._take(before if before is not None and is_nearer else now)
            before = now
            if len(self.pngs) == len(self.rows):
                break
        if before is not None and len(self.pngs) < len(self.rows):
            self._take(before)
        if len(self.pngs) < len(self.rows):
            row = self.rows[len(self.pngs)]
            raise ValueError(
                f"{self.table}:{row.line}: {self.video} ends before {row.place:g}; leave out the "
                "rows that have no frame"
            )
        return self.pngs

    def _where(self, shown: Shown) -> float:
        return shown.time if self.is_timed else float(shown.number)

    def _check_step(self, before: Shown, now: Shown) -> None:
        """Refuses a film whose frames cannot be numbered, as one of them is missing."""
        if not is_next(before.time, now.time, self.interval):
            step = now.time - before.time
            raise ValueError(
                f"{self.video}: frame {now.number} comes {step:.3f} s after the one before, not "
                f"{self.interval:.3f} s; a frame was lost, so that numbers cannot be trusted: "
                "match by --time"
            )

    def _take(self, shown: Shown) -> None:
        """The frame of the next row."""
        row = self.rows[len(self.pngs)]
        limit = TOLERANCE * self.interval if self.is_timed else 0.5
        if abs(self._where(shown) - row.place) > limit or shown.number == self.taken:
            what = f"{row.place:g} s" if self.is_timed else f"number {row.place:g}"
            near = f"the nearest is at {self._where(shown):g}"
            why = "it is another row's" if shown.number == self.taken else near
            raise ValueError(
                f"{self.table}:{row.line}: {self.video} has no frame at {what}: {why}; mend the "
                "table, or leave the row out"
            )
        if self.pngs and shown.number > self.taken + 1 and not self.allow_gaps:
            raise ValueError(
                f"{self.table}:{row.line}: no row for frame {self.taken + 1} of {self.video}, so "
                "the action before leads over several frames; add the rows, or say --allow-gaps"
            )
        self.pngs.append(encode_png(shown.frame))
        self.taken = shown.number


def _moments(
    rows: Sequence[Row],
    pngs: Sequence[bytes],
    columns: Columns,
    actions: Sequence[str | None],
    table: Path,
) -> list[Moment]:
    moments = []
    task = ""
    outcome: str | None
    for place, (row, png, action) in enumerate(zip(rows, pngs, actions, strict=True)):
        said = []
        told = row.cells[columns.task] if columns.task else ""
        if told and told != task:
            task = told
            if place:
                said.append(("task", told))
        if columns.words and row.cells[columns.words]:
            said.append(("agent", row.cells[columns.words]))
        outcome = "ongoing"
        if columns.success is not None:
            cell = row.cells[columns.success].lower()
            if cell not in (*TRUE, *FALSE):
                raise ValueError(
                    f"{table}:{row.line}: {columns.success} is {cell!r}; give 1, 0 or nothing"
                )
            outcome = "success" if cell in TRUE else "ongoing"
        elif place == len(rows) - 1:
            outcome = None
        moments.append(Moment(png, action, tuple(said), outcome))
    return moments


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    given = json.loads(options)
    folder = Path(given["folder"])
    video = found_videos(folder)[shard.first_seed]
    name, path = name_of(video, folder), video.with_suffix(".csv")
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in given["columns"].items()
    }
    columns = Columns(**told)
    rows = read_rows(path, columns, given["delimiter"])
    if _digest(path) != given["digests"][name]:
        raise ValueError(f"{path} has changed since the import began; begin anew in another --out")
    space = ActionSpace.from_config(given["space"])
    mouse = given["mouse_range"] and MouseRange(**given["mouse_range"])
    actions = TableActions(columns.actions, columns.keys, columns.mouse)
    written = [actions.written(path, row.line, row.cells, space, mouse) for row in rows]
    size = given["size"] and tuple(given["size"])
    is_timed = columns.time is not None
    pngs = Matching(video, path, rows, is_timed, given["allow_gaps"], size).frames()
    moments = _moments(rows, pngs, columns, written, path)
    task = (rows[0].cells[columns.task] if columns.task else "") or given["tasks"].get(name)
    return store(
        shard, cut_episodes(name, "table", task or given["task"], moments, given["frames"])
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def import_table(
    folder: Path,
    out: Path,
    *,
    time: str | None = None,
    index: str | None = None,
    actions: Sequence[str] = (),
    keys: Sequence[str] = (),
    mouse: Sequence[str] = (),
    action_names: Sequence[str] = (),
    mouse_range: tuple[float, float] | None = None,
    words: str | None = None,
    task_column: str | None = None,
    success: str | None = None,
    task: str | None = None,
    tasks: Path | None = None,
    size: tuple[int, int] | None = None,
    frames: int = 200,
    bins: int | None = None,
    delimiter: str = ",",
    allow_gaps: bool = False,
    workers: int = 1,
) -> None:
    """Writes mp4s with a CSV each, one row a frame, into a data folder; a second call resumes.

    Columns of actions are one column of names or integers, several columns of names (a choice
    each), or columns of numbers (a vector). An empty cell is an action that nobody knows.

    Args:
        folder: Searched for mp4 files, in folders below, too; each has a .csv of its name.
        out: Data folder to write.
        time: Column that says when a row's frame is shown, in seconds from the beginning.
        index: Column with the number of a row's frame, from 0; instead of `time`.
        actions: Columns of what is done.
        keys: Columns of keys and buttons, 1 where held; instead of `actions`.
        mouse: The two columns of the mouse's movement, right and down.
        action_names: Names of integer actions, from the least one on; or all names of a column of
            names, in the order that they shall have.
        mouse_range: Farthest movement right and down that is told; what is farther is clipped, and
            counted. None is what nearly all movements stay within.
        words: Column of what the agent says.
        task_column: Column of what is to be done; said again where it changes.
        success: Column that is 1 where the task is done; without it, the end is unknown.
        task: Words that open each episode.
        tasks: File with the words of each recording: CSV with the columns episode (its path without
            the ending) and task, or JSON.
        size: Height and width of the frames; None leaves them as they are.
        frames: Most of one episode; longer recordings are cut.
        bins: Of each number, 256 if not given; of each direction of the mouse, odd, 11.
        delimiter: Between the cells of a row.
        allow_gaps: Whether frames between two rows may have no row.
        workers: Number of processes.

    Raises:
        ValueError: If there is no recording, or one cannot be read; names file and line.
    """
    columns = Columns(
        time=time,
        index=index,
        actions=tuple(actions),
        keys=tuple(keys),
        mouse=tuple(mouse),
        words=words,
        task=task_column,
        success=success,
    )
    if len(delimiter) != 1:
        raise ValueError(f"delimiter {delimiter!r} must be one character, such as ',' or ';'")
    videos = found_videos(folder)
    names = [name_of(video, folder) for video in videos]
    told = read_tasks(tasks) if tasks is not None else {}
    check_tasks(told, names, tasks)
    tables = [video.with_suffix(".csv") for video in videos]
    rows = [read_rows(table, columns, delimiter) for table in tables]
    found = TableActions(columns.actions, columns.keys, columns.mouse)
    for table, part in zip(tables, rows, strict=True):
        found.take(table, [(row.line, row.cells) for row in part])
    space, reach = found.space(folder.name, action_names, mouse_range, bins)
    counts = [episodes_in(len(part), frames) for part in rows]
    total = sum(map(len, rows))
    print(
        f"{folder}: {len(videos)} recordings, {total} rows, matched by "
        f"{'time' if time else 'number'}\n{found.report(space, reach)}"
    )
    options: dict[str, Any] = {
        "folder": str(folder),
        "columns": asdict(columns),
        "delimiter": delimiter,
        "space": space.to_config(),
        "mouse_range": reach and asdict(reach),
        "task": task,
        "tasks": told,
        "size": size and list(size),
        "frames": frames,
        "allow_gaps": allow_gaps,
        "digests": {name: _digest(table) for name, table in zip(names, tables, strict=True)},
    }
    options = json.loads(json.dumps(options))
    request = {
        "source": "table",
        "format_version": FORMAT_VERSION,
        "levels": ["table"],
        "episodes": sum(counts),
        "reader": options,
    }
    shards = recording_shards(out, "table", names, counts)
    write = functools.partial(_import_shard, json.dumps(options))
    record_shards(out, request, shards, write, workers, actions=space)
