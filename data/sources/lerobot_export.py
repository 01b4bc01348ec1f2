"""Data folders as LeRobot v3.0 datasets, PNGs in Parquet; see `data.sources.lerobot`."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from data.dataset import EpisodeDataset
from data.shards import action_space_of_folder, claim_folder, export_request
from data.sources.lerobot_tables import (
    are_integers,
    check_columns,
    number_names,
    numbers_of,
    write_outcomes,
)
from data.sources.lerobot_words import EVENTS, EVENTS_TYPE, FEATURE, events_of, write_words
from unified.files import atomic_path, write_json
from unified.media.action_space import ActionSpace

CAMERA = "observation.images.main"
EPISODES_PER_FILE = 200
MAX_STAT_FRAMES = 500


def export_lerobot(
    data: Path,
    out: Path,
    *,
    fps: int = 10,
    actions: Path | None = None,
    language_columns: bool = False,
) -> None:
    """Writes a data folder as LeRobot v3.0, PNGs inside the Parquet files; a second call resumes.

    Frames, actions, tasks and outcomes are kept bit by bit. What LeRobot has no column for
    (captions, targets, motions) is left out. What is said after a frame goes to a file of its own,
    `meta/unified_words.parquet`, and what is no success but a failure or unknown to
    `meta/unified_outcomes.parquet`. LeRobot skips both.

    Args:
        data: A complete data folder.
        out: A new folder, or one that the same export began.
        fps: Frames a second, as LeRobot has to name some.
        actions: Action space (JSON); None reads the folder's `action_space.json`.
        language_columns: Write what is said as the column `language_events` instead. LeRobot knows
            it from 0.6 on; older versions cannot open such a dataset.

    Raises:
        ValueError: If `out` holds something else, there is no action space, an action is unknown,
            or an episode is no alternation of frames and actions; before anything is written.
    """
    dataset = EpisodeDataset(data)
    space = action_space_of_folder(data, actions)
    if isinstance(fps, bool) or not isinstance(fps, int) or fps < 1:
        raise ValueError(f"fps={fps!r} must be an integer of at least 1")
    check_columns(space)
    for index in range(len(dataset)):
        _numbers(dataset[index], int(dataset.lengths[index]), space)
    options = {"fps": fps, "language_columns": language_columns}
    claim_folder(out, export_request("lerobot", dataset, space, **options))
    is_spoken = any(any(episode.said) for episode in dataset)
    tasks: dict[str, int] = {}
    episodes: list[dict[str, Any]] = []
    statistics = _Statistics()
    total = 0
    shape: tuple[int, ...] | None = None
    starts = range(0, len(dataset), EPISODES_PER_FILE)
    with tqdm(total=len(dataset), unit="episode", desc="lerobot") as progress:
        for file_index, start in enumerate(starts):
            path = out / f"data/chunk-000/file-{file_index:03d}.parquet"
            with contextlib.ExitStack() as stack:
                draft = None if path.exists() else stack.enter_context(atomic_path(path))
                writer = None
                for index in range(start, min(start + EPISODES_PER_FILE, len(dataset))):
                    rows, task = _rows(dataset, index, space, fps)
                    number = tasks.setdefault(task, len(tasks))
                    count = len(rows["action"])
                    rows["task_index"] = [number] * count
                    rows["index"] = list(range(total, total + count))
                    if draft is not None:
                        has_words = is_spoken and language_columns
                        table = pa.table(rows, schema=_schema(rows["action"], has_words))
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
                if writer is not None:
                    writer.close()
    spoken = {EVENTS: FEATURE} if is_spoken and language_columns else {}
    if is_spoken and not language_columns:
        write_words(out, (episode.said for episode in dataset))
    write_outcomes(out, (episode.outcomes for episode in dataset))
    _write_meta(out, space, fps, tasks, episodes, total, statistics, shape or (0, 0, 3), spoken)


def _rows(
    dataset: EpisodeDataset, index: int, actions: ActionSpace, fps: int
) -> tuple[dict[str, Any], str]:
    """Columns of an episode, and its task."""
    episode, pngs = dataset[index], dataset.pngs(index)
    count = len(pngs)
    values: list[Any] = _numbers(episode, count, actions)
    # The last frame is followed by nothing.
    values.append(values[-1] if values else _legal(actions))
    if len(values[0]) == 1:  # a plain column
        values = [value for (value,) in values]
    outcomes = [*episode.outcomes[1:], episode.outcomes[-1]]
    rows = {
        CAMERA: [{"bytes": png, "path": None} for png in pngs],
        "action": values,
        "next.success": [outcome == "success" for outcome in outcomes],
        "next.done": [i >= count - 2 for i in range(count)],
        "timestamp": [i / fps for i in range(count)],
        "frame_index": list(range(count)),
        "episode_index": [index] * count,
        EVENTS: [events_of(said) for said in episode.said],
    }
    return rows, episode.task or ""


def _numbers(episode: Any, count: int, actions: ActionSpace) -> list[list[Any]]:
    """The numbers of each action of an episode of `count` frames."""
    if count != len(episode.actions) + 1:
        raise ValueError(
            f"episode {episode.id} has {count} frames and {len(episode.actions)} actions; "
            "LeRobot takes frames with one action between each two"
        )
    values = []
    for step, action in enumerate(episode.actions):
        try:
            values.append(numbers_of(actions, action))
        except ValueError as error:
            raise ValueError(f"episode {episode.id}, step {step}: {error}") from error
    return values


def _legal(actions: ActionSpace) -> list[Any]:
    """The numbers of some action: where an episode has none, its one row holds something."""
    first = actions.decode([actions.choices(place)[0] for place in range(actions.num_tokens)])
    return numbers_of(actions, first)


def _schema(actions: list[Any], is_spoken: bool) -> pa.Schema:
    first = actions[0]
    held = first[0] if isinstance(first, list) else first
    number = pa.int64() if isinstance(held, int) else pa.float64()
    column = pa.list_(number, len(first)) if isinstance(first, list) else number
    features = {CAMERA: {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(
        [
            (CAMERA, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("action", column),
            ("next.success", pa.bool_()),
            ("next.done", pa.bool_()),
            ("timestamp", pa.float32()),
            ("frame_index", pa.int64()),
            ("episode_index", pa.int64()),
            ("task_index", pa.int64()),
            ("index", pa.int64()),
            *([(EVENTS, EVENTS_TYPE)] if is_spoken else []),
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
        values = np.asarray(rows["action"], dtype=float)
        self.actions.append(values.reshape(len(values), -1))
        if len(self.frames) >= MAX_STAT_FRAMES:
            return None
        with Image.open(io.BytesIO(rows[CAMERA][0]["bytes"])) as image:
            frame = np.asarray(image.convert("RGB"))
        self.frames.append(frame)
        return frame.shape

    def content(self) -> dict[str, Any]:
        """The statistics in the layout of `meta/stats.json`."""
        pixels = np.stack(self.frames).reshape(-1, 3) / 255
        found = {}
        for name, values in (("action", np.concatenate(self.actions)), (CAMERA, pixels)):
            figures = {
                "min": values.min(0),
                "max": values.max(0),
                "mean": values.mean(0),
                "std": values.std(0),
            }
            shape = (-1, 1, 1) if name == CAMERA else (-1,)
            found[name] = {key: value.reshape(shape).tolist() for key, value in figures.items()}
            found[name]["count"] = [len(self.frames) if name == CAMERA else len(values)]
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
    spoken: dict[str, Any],
) -> None:
    """The files of `meta/`; `info.json` last, without which nothing is a dataset."""
    import pandas

    size = statistics.actions[0].shape[1]
    plain = {"shape": [1], "names": None}
    features = {
        CAMERA: {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]},
        "action": {
            "dtype": "int64" if are_integers(actions) else "float64",
            "shape": [size],
            "names": number_names(actions) if size > 1 else ["action"],
        },
        "next.success": {"dtype": "bool", **plain},
        "next.done": {"dtype": "bool", **plain},
        "timestamp": {"dtype": "float32", **plain},
        **{
            name: {"dtype": "int64", **plain}
            for name in ("frame_index", "episode_index", "task_index", "index")
        },
        **spoken,
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
