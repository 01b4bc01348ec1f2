"""LeRobot datasets, v2.1 and v3.0, read and (v3.0) written: Parquet, PNGs inside or mp4 beside.

A row of LeRobot is a frame and the action taken there, so T + 1 rows are T + 1 frames and T
actions: the action of an episode's last row leads to a frame that nobody kept, and is left out.
"""

import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from data.dataset import EpisodeDataset
from data.episode import (
    EPISODES_FOLDER,
    FORMAT_VERSION,
    EpisodeRecord,
    SegmentRecord,
    encode_png,
    write_shard,
)
from data.recording import Shard, record_shards
from data.video import frames_of, resized
from unified.actions import ActionSpace, ContinuousActions, NamedActions
from unified.files import atomic_path, write_json
from unified.processing import ACTIONS_FILE

VERSIONS = ("v2.1", "v3.0")
CAMERA = "observation.images."
OUR_CAMERA = CAMERA + "main"
EPISODES_PER_FILE = 200
EPISODES_PER_SHARD = 50
MAX_STAT_FRAMES = 500


@dataclass(frozen=True)
class Part:
    """Where an episode lies.

    Attributes:
        index: Its number.
        file: Parquet file that has its rows.
        length: Its number of rows.
        videos: For each camera with videos, the file and where in it the episode begins, seconds.
    """

    index: int
    file: Path
    length: int
    videos: dict[str, tuple[Path, float]]


class LeRobotReader:
    """The episodes of a LeRobot dataset.

    Args:
        folder: The one that holds `meta/info.json`.
        cameras: Names of those to take, side by side in this order; all if None.
        size: Height and width of a camera's frame; None leaves them as they are.
        fps: Frames a second to keep; must divide the dataset's. The actions between two kept
            frames become one chunk.

    Raises:
        ValueError: If the folder is no such dataset, of another version, or lacks what it promises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cameras: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
    ) -> None:
        self.folder, self.size = folder, size
        self.info = _read_json(folder / "meta" / "info.json")
        version = self.info.get("codebase_version")
        if version not in VERSIONS:
            raise ValueError(
                f"{folder} is a LeRobot dataset of version {version!r}; this code reads "
                f"{' and '.join(VERSIONS)}, convert it with lerobot's own script"
            )
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
        self.every = self._every(fps)
        self.tasks = self._tasks()
        self.parts = self._parts()
        self.actions = self._action_space()

    def _every(self, fps: float | None) -> int:
        own = float(self.info["fps"])
        if fps is None:
            return 1
        ratio = own / fps
        if fps <= 0 or abs(ratio - round(ratio)) > 1e-6 or ratio < 1:
            raise ValueError(f"fps={fps} does not divide the dataset's {own:g}; choose {own:g}/k")
        return round(ratio)

    def _tasks(self) -> dict[int, str]:
        if self.info["codebase_version"] == "v2.1":
            lines = _read_lines(self.folder / "meta" / "tasks.jsonl")
            return {int(line["task_index"]): line["task"] for line in lines}
        table = _read_parquet(self.folder / "meta" / "tasks.parquet", ["task_index"])
        names = [name for name in table.column_names if name != "task_index"]
        words = table[names[0]].to_pylist()
        return dict(zip(table["task_index"].to_pylist(), words, strict=True))

    def _parts(self) -> list[Part]:
        if self.info["codebase_version"] == "v2.1":
            lines = _read_lines(self.folder / "meta" / "episodes.jsonl")
            return [self._old_part(int(x["episode_index"]), int(x["length"])) for x in lines]
        parts = []
        for file in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
            for row in _read_parquet(file, columns).to_pylist():
                data = self.info["data_path"].format(
                    chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
                )
                videos = {}
                for camera in self._filmed():
                    where = f"videos/{camera}/"
                    path = self.info["video_path"].format(
                        video_key=camera,
                        chunk_index=row[where + "chunk_index"],
                        file_index=row[where + "file_index"],
                    )
                    videos[camera] = self.folder / path, float(row[where + "from_timestamp"])
                index, length = int(row["episode_index"]), int(row["length"])
                parts.append(Part(index, self.folder / data, length, videos))
        if len(parts) != self.info["total_episodes"]:
            raise ValueError(
                f"{self.folder}/meta/episodes lists {len(parts)} episodes, info.json says "
                f"{self.info['total_episodes']}; copy the dataset again"
            )
        return sorted(parts, key=lambda part: part.index)

    def _old_part(self, index: int, length: int) -> Part:
        names = {"episode_chunk": index // self.info["chunks_size"], "episode_index": index}
        videos = {
            camera: (self.folder / self.info["video_path"].format(video_key=camera, **names), 0.0)
            for camera in self._filmed()
        }
        return Part(index, self.folder / self.info["data_path"].format(**names), length, videos)

    def _filmed(self) -> list[str]:
        return [c for c in self.cameras if self.features[c]["dtype"] == "video"]

    def _action_space(self) -> ActionSpace:
        """As it was written, or fitted to all recorded actions; checked in either case."""
        name = self.folder.name
        numbers = []
        for file in dict.fromkeys(part.file for part in self.parts):
            values = _vectors(_read_parquet(file, ["action"])["action"])
            wrong = np.argwhere(~np.isfinite(values.astype(float)).all(1))
            if len(wrong):
                raise ValueError(
                    f"{file}: row {int(wrong[0, 0])} has action {values[wrong[0, 0]].tolist()}; "
                    "mend it, or leave the episode out"
                )
            numbers.append(values)
        values = np.concatenate(numbers)
        own = self.info.get("unified", {}).get("action_space")
        if own is not None:
            return ActionSpace.from_config(own)
        if np.issubdtype(values.dtype, np.integer) and values.shape[1] == 1:
            if self.every > 1:
                raise ValueError(
                    f"{self.folder} has one of a set of actions a frame, which do not add up; "
                    "leave fps as it is"
                )
            return NamedActions(name, [f"action{i}" for i in range(int(values.max()) + 1)])
        names = self.features["action"].get("names")
        names = names.get("motors") if isinstance(names, dict) else names
        if not isinstance(names, list) or len(names) != values.shape[1]:
            names = [f"x{i}" for i in range(values.shape[1])]
        return ContinuousActions.fit(name, names, values, chunk=self.every)

    def report(self) -> str:
        """What is taken, in a few lines."""
        rows = sum(part.length for part in self.parts)
        taken = {"action", "task_index", "timestamp", "frame_index", "episode_index", "index"}
        taken |= {*self.cameras, "next.success"}
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
            f"  left out: {', '.join(left) or 'nothing'}"
        )

    def record(self, place: int) -> EpisodeRecord:
        """Episode number `place`, in order.

        Raises:
            ValueError: If rows, frames or videos are missing or broken; names the file.
        """
        part = self.parts[place]
        still = [c for c in self.cameras if self.features[c]["dtype"] == "image"]
        columns = ["action", "task_index", "frame_index"]
        columns += ["next.success"] if "next.success" in self.features else []
        rows = _read_parquet(part.file, [*columns, *still], part.index)
        if rows.num_rows != part.length:
            raise ValueError(
                f"{part.file} has {rows.num_rows} rows of episode {part.index}, its metadata says "
                f"{part.length}; copy the dataset again"
            )
        views = [self._views(camera, part, rows) for camera in self.cameras]
        kept = range(0, part.length, self.every)
        frames = (
            np.concatenate([view[i] for view in views], axis=1) if len(views) > 1 else views[0][i]
            for i in kept
        )
        actions = _vectors(rows["action"])
        task = self.tasks[rows["task_index"][0].as_py()]
        success = rows["next.success"].to_pylist() if "next.success" in columns else None
        segments = [SegmentRecord(kind="text", role="task", text=task, weight=0.0)] if task else []
        for number, (row, frame) in enumerate(zip(kept, frames, strict=True)):
            if number:
                action = self._written(actions[row - self.every : row])
                segments.append(SegmentRecord(kind="action", role="agent", action=action))
            is_last = row + self.every >= part.length
            outcome = "ongoing"
            if success is not None and row and _is_true(success[row - 1]):
                outcome = "success"
            elif success is None and is_last:
                outcome = None  # nobody says how it ended
            png = encode_png(np.ascontiguousarray(frame))
            segments.append(SegmentRecord(kind="frame", role="world", frame=png, outcome=outcome))
        return EpisodeRecord(
            id=f"{self.folder.name}/{part.index}",
            source="lerobot",
            level=self.folder.name,
            seed=-1,
            behaviour="recorded",
            segments=segments,
        )

    def _written(self, actions: np.ndarray) -> str:
        if isinstance(self.actions, NamedActions):
            return self.actions.decode(self.actions.encode(int(actions[0, 0])))
        return json.dumps(actions.tolist() if self.every > 1 else actions[0].tolist())

    def _views(self, camera: str, part: Part, rows: pa.Table) -> list[np.ndarray]:
        """The frames of one camera, `(H, W, 3)` uint8 each."""
        if camera in part.videos:
            file, begin = part.videos[camera]
            fps = float(self.info["fps"])
            return _filmed_frames(file, begin, part.length, fps, self.size)
        cells = rows[camera].to_pylist()
        return [resized(_picture(cell, part.file, camera), self.size) for cell in cells]


def _filmed_frames(
    file: Path, begin: float, count: int, fps: float, size: tuple[int, int] | None
) -> list[np.ndarray]:
    """`count` frames of a video from `begin` seconds on."""
    frames = list(islice(frames_of(file, fps=fps, begin=begin, size=size), count))
    if len(frames) < count:
        raise ValueError(
            f"{file} ends after {len(frames)} of {count} frames of an episode; it was cut off, "
            "copy it again"
        )
    return frames


def _picture(cell: Any, file: Path, camera: str) -> np.ndarray:
    try:
        source = io.BytesIO(cell["bytes"]) if cell["bytes"] else file.parent / cell["path"]
        with Image.open(source) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: a picture of {camera} cannot be read ({error})") from error


def _is_true(value: Any) -> bool:
    return bool(value[0] if isinstance(value, list) else value)


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, or of lists of equal length, as `(N, D)`."""
    values = np.array(column.to_pylist())
    if values.dtype == object:
        raise ValueError("actions differ in length; one dataset holds one action space")
    return values.reshape(len(values), -1)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the folder of a LeRobot dataset")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); copy the dataset again") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise ValueError(f"{path} does not exist; copy the dataset again")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _read_parquet(path: Path, columns: list[str], episode: int | None = None) -> pa.Table:
    """Columns of a file (all others too, if it is one of metadata), perhaps of one episode only."""
    if not path.exists():
        raise ValueError(f"{path} is missing; copy the dataset again")
    try:
        names = pq.read_schema(path).names
        lacking = [name for name in columns if name not in names]
        if lacking:
            raise ValueError(f"{path} has no column {', '.join(lacking)}, only {', '.join(names)}")
        if episode is not None:
            filters = pc.field("episode_index") == episode
            table = pq.read_table(path, columns=[*columns, "episode_index"], filters=filters)
            return table.sort_by("frame_index")
        is_data = columns == ["action"]
        return pq.read_table(path, columns=columns if is_data else None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy the dataset again") from error


# Into a data folder


@functools.cache
def _reader(options: str) -> LeRobotReader:
    values = json.loads(options)
    size = values["size"] and tuple(values["size"])
    folder = Path(values["folder"])
    return LeRobotReader(folder, cameras=values["cameras"], size=size, fps=values["fps"])


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    reader = _reader(options)
    places = range(shard.first_seed, shard.first_seed + shard.episodes)
    episodes = [reader.record(place) for place in places]
    write_shard(shard.path, episodes)
    return shard, sum(episode.num_frames for episode in episodes)


def import_lerobot(
    folder: Path,
    out: Path,
    *,
    cameras: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    workers: int = 1,
) -> None:
    """Writes a LeRobot dataset into a data folder; a second call resumes.

    Arguments as in `LeRobotReader`; the action space goes to `action_space.json`.

    Raises:
        ValueError: If the dataset cannot be read, or `out` was begun with something else.
    """
    options = json.dumps(
        {
            "folder": str(folder),
            "cameras": list(cameras) if cameras else None,
            "size": size,
            "fps": fps,
        }
    )
    _reader.cache_clear()
    reader = _reader(options)
    print(reader.report())
    count = len(reader.parts)
    shards = [
        Shard(
            out / EPISODES_FOLDER / f"episodes-{start:06d}.parquet",
            folder.name,
            start,
            min(EPISODES_PER_SHARD, count - start),
        )
        for start in range(0, count, EPISODES_PER_SHARD)
    ]
    request = {
        "source": "lerobot",
        "format_version": FORMAT_VERSION,
        "levels": [folder.name],
        "episodes": count,
        "reader": json.loads(options),
    }
    write = functools.partial(_import_shard, options)
    record_shards(out, request, shards, write, workers)
    write_json(out / ACTIONS_FILE, reader.actions.to_config())


# And out of it


def export_lerobot(
    data: Path, out: Path, *, fps: int = 10, actions: ActionSpace | None = None
) -> None:
    """Writes a data folder as a LeRobot v3.0 dataset, its frames as PNGs inside the Parquet files.

    Frames, actions, tasks and successes are kept bit by bit. What LeRobot has no column for
    (thoughts, captions, targets, motions) is left out.

    Args:
        data: A complete data folder.
        out: A new or empty folder.
        fps: Frames a second, as LeRobot has to name some.
        actions: The space of named actions; None reads the folder's `action_space.json`.

    Raises:
        ValueError: If `out` is not empty, there is no action space, an action is unknown, or an
            episode is no alternation of frames and actions.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose an empty or new folder")
    if actions is None:
        actions = ActionSpace.from_config(data / ACTIONS_FILE)
    dataset = EpisodeDataset(data)
    tasks: dict[str, int] = {}
    episodes: list[dict[str, Any]] = []
    statistics = _Statistics()
    total = 0
    shape: tuple[int, ...] | None = None
    starts = range(0, len(dataset), EPISODES_PER_FILE)
    with tqdm(total=len(dataset), unit="episode", desc="lerobot") as progress:
        for file_index, start in enumerate(starts):
            path = out / f"data/chunk-000/file-{file_index:03d}.parquet"
            with atomic_path(path) as draft:
                writer = None
                for index in range(start, min(start + EPISODES_PER_FILE, len(dataset))):
                    rows, task = _rows(dataset, index, actions, fps)
                    number = tasks.setdefault(task, len(tasks))
                    count = len(rows["action"])
                    rows["task_index"] = [number] * count
                    rows["index"] = list(range(total, total + count))
                    table = pa.table(rows, schema=_schema(rows["action"]))
                    writer = writer or pq.ParquetWriter(draft, table.schema)
                    writer.write_table(table)  # a row group for each episode
                    shape = statistics.add(rows) or shape
                    episodes.append(
                        {
                            "episode_index": index,
                            "tasks": [task],
                            "length": count,
                            "dataset_from_index": total,
                            "dataset_to_index": total + count,
                            "data/chunk_index": 0,
                            "data/file_index": file_index,
                            "meta/episodes/chunk_index": 0,
                            "meta/episodes/file_index": 0,
                        }
                    )
                    total += count
                    progress.update()
                assert writer is not None
                writer.close()
    _write_meta(out, actions, fps, tasks, episodes, total, statistics, shape or (0, 0, 3))


def _rows(
    dataset: EpisodeDataset, index: int, actions: ActionSpace, fps: int
) -> tuple[dict[str, Any], str]:
    """Columns of an episode, and its task."""
    episode, pngs = dataset[index], dataset.pngs(index)
    if len(pngs) != len(episode.actions) + 1:
        raise ValueError(
            f"episode {episode.id} has {len(pngs)} frames and {len(episode.actions)} actions; "
            "LeRobot takes frames with one action between each two"
        )
    values = []
    for step, action in enumerate(episode.actions):
        try:
            tokens = actions.encode(action)
        except ValueError as error:
            raise ValueError(f"episode {episode.id}, step {step}: {error}") from error
        if isinstance(actions, NamedActions):
            values.append([actions.names.index(actions.decode(tokens))])
        else:
            values.append(np.asarray(json.loads(str(action)), dtype=float).ravel().tolist())
    filler = values[-1] if values else [0] * actions.num_tokens
    values.append(filler)  # of the last frame, which is followed by nothing
    count = len(pngs)
    outcomes = [*episode.outcomes[1:], episode.outcomes[-1]]
    rows = {
        OUR_CAMERA: [{"bytes": png, "path": None} for png in pngs],
        "action": values,
        "next.success": [outcome == "success" for outcome in outcomes],
        "next.done": [i >= count - 2 for i in range(count)],
        "timestamp": [i / fps for i in range(count)],
        "frame_index": list(range(count)),
        "episode_index": [index] * count,
    }
    return rows, episode.task or ""


def _schema(actions: list[list[float]]) -> pa.Schema:
    number = pa.int64() if isinstance(actions[0][0], int) else pa.float64()
    features = {OUR_CAMERA: {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(
        [
            (OUR_CAMERA, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("action", pa.list_(number, len(actions[0]))),
            ("next.success", pa.bool_()),
            ("next.done", pa.bool_()),
            ("timestamp", pa.float32()),
            ("frame_index", pa.int64()),
            ("episode_index", pa.int64()),
            ("task_index", pa.int64()),
            ("index", pa.int64()),
        ],
        metadata=metadata,
    )


class _Statistics:
    """Mean, deviation, least and greatest of actions and of some frames' channels."""

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []
        self.frames: list[np.ndarray] = []

    def add(self, rows: dict[str, Any]) -> tuple[int, ...] | None:
        """Takes an episode; returns the shape of its frames if it looked at one."""
        self.actions.append(np.asarray(rows["action"], dtype=float))
        if len(self.frames) >= MAX_STAT_FRAMES:
            return None
        with Image.open(io.BytesIO(rows[OUR_CAMERA][0]["bytes"])) as image:
            frame = np.asarray(image.convert("RGB"))
        self.frames.append(frame)
        return frame.shape

    def content(self) -> dict[str, Any]:
        """As `meta/stats.json` has it."""
        pixels = np.stack(self.frames).reshape(-1, 3) / 255
        found = {}
        for name, values in (("action", np.concatenate(self.actions)), (OUR_CAMERA, pixels)):
            figures = {
                "min": values.min(0),
                "max": values.max(0),
                "mean": values.mean(0),
                "std": values.std(0),
            }
            shape = (-1, 1, 1) if name == OUR_CAMERA else (-1,)
            found[name] = {key: value.reshape(shape).tolist() for key, value in figures.items()}
            found[name]["count"] = [len(self.frames) if name == OUR_CAMERA else len(values)]
        return found


def _write_meta(
    out: Path,
    actions: ActionSpace,
    fps: int,
    tasks: dict[str, int],
    episodes: list[dict[str, Any]],
    total: int,
    statistics: _Statistics,
    shape: tuple[int, ...],
) -> None:
    """The files of `meta/`; `info.json` last, without which nothing is a dataset."""
    import pandas

    size = statistics.actions[0].shape[1]
    is_named = isinstance(actions, NamedActions)
    plain = {"shape": [1], "names": None}
    features = {
        OUR_CAMERA: {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]},
        "action": {
            "dtype": "int64" if is_named else "float64",
            "shape": [size],
            "names": list(getattr(actions, "dimensions", ["action"])) if size > 1 else ["action"],
        },
        "next.success": {"dtype": "bool", **plain},
        "next.done": {"dtype": "bool", **plain},
        "timestamp": {"dtype": "float32", **plain},
        **{
            name: {"dtype": "int64", **plain}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
    }
    meta = out / "meta"
    with atomic_path(meta / "tasks.parquet") as draft:
        index = pandas.Index(list(tasks), name="task")
        pandas.DataFrame({"task_index": list(tasks.values())}, index=index).to_parquet(draft)
    with atomic_path(meta / "episodes/chunk-000/file-000.parquet") as draft:
        pq.write_table(pa.Table.from_pylist(episodes), draft)
    write_json(meta / "stats.json", statistics.content())
    write_json(
        meta / "info.json",
        {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(episodes),
            "total_frames": total,
            "total_tasks": len(tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{len(episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None,
            "features": features,
            "unified": {"action_space": actions.to_config()},
        },
    )
