"""LeRobot datasets as others publish them, small: what the importer is tested on."""

import json

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from data.episode import encode_png

FPS = 10
LENGTHS = (7, 5)
SHAPE = (32, 48, 3)


def picture(episode, step, camera):
    """A moving bar: whoever mixes up frames sees it."""
    frame = np.full(SHAPE, 30 + 60 * camera, np.uint8)
    frame[:, 4 * step : 4 * step + 8] = (200, 40 * episode, 90)
    return frame


def numbers(episode, length):
    rng = np.random.default_rng(episode)
    return rng.normal(size=(length, 3)).astype(np.float32)


def columns(episode, start):
    """Rows of an episode as LeRobot publishes them, without pictures."""
    length = LENGTHS[episode]
    return {
        "action": list(numbers(episode, length)),
        "observation.state": [[0.0, 1.0]] * length,
        "timestamp": np.arange(length, dtype=np.float32) / FPS,
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": start + np.arange(length),
        "task_index": np.full(length, episode),
    }


def info_of(version, cameras, dtype):
    features = {
        "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "grip"]},
        "observation.state": {"dtype": "float32", "shape": [2], "names": None},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")
        },
        **{
            camera: {"dtype": dtype, "shape": SHAPE, "names": ["height", "width", "channels"]}
            for camera in cameras
        },
    }
    return {
        "codebase_version": version,
        "fps": FPS,
        "features": features,
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": 2,
        "chunks_size": 1000,
    }


def write_video(path, frames, rate=FPS, times=None):
    """An mp4; frame i is shown at `times[i] / rate` seconds, one after the other if not given."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        frames = list(frames)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        stream.options = {"qp": "0", "g": "3"}
        for place, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts = place if times is None else times[place]
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def write_filmed(folder):
    """v3.0: two cameras, each with both episodes in one mp4."""
    cameras = ["observation.images.top", "observation.images.wrist"]
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    info = info_of("v3.0", cameras, "video")
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (folder / "meta/info.json").write_text(json.dumps(info))
    tasks = pandas.Index(["push it", "pull it"], name="task")
    pandas.DataFrame({"task_index": [0, 1]}, index=tasks).to_parquet(folder / "meta/tasks.parquet")
    rows = [columns(0, 0), columns(1, LENGTHS[0])]
    joined = {name: [x for row in rows for x in row[name]] for name in rows[0]}
    pq.write_table(pa.table(joined), folder / "data/chunk-000/file-000.parquet")
    episodes = []
    for index, length in enumerate(LENGTHS):
        start = sum(LENGTHS[:index])
        row = {"episode_index": index, "tasks": [tasks[index]], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        for camera in cameras:
            row |= {f"videos/{camera}/{key}": 0 for key in ("chunk_index", "file_index")}
            row[f"videos/{camera}/from_timestamp"] = start / FPS
            row[f"videos/{camera}/to_timestamp"] = (start + length) / FPS
        episodes.append(row)
    pq.write_table(
        pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet"
    )
    for number, camera in enumerate(cameras):
        frames = [picture(e, t, number) for e, length in enumerate(LENGTHS) for t in range(length)]
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", frames)
    return folder


def write_pictured(folder):
    """v2.1: one camera of PNGs, a file for each episode."""
    camera = "observation.images.top"
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    info = info_of("v2.1", [camera], "image")
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = None
    (folder / "meta/info.json").write_text(json.dumps(info))
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(("push it", "pull it"))]
    (folder / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    lines = []
    for index, length in enumerate(LENGTHS):
        rows = columns(index, sum(LENGTHS[:index]))
        rows[camera] = [
            {"bytes": encode_png(picture(index, t, 0)), "path": None} for t in range(length)
        ]
        path = folder / f"data/chunk-000/episode_{index:06d}.parquet"
        pq.write_table(pa.table(rows), path)
        lines.append(json.dumps({"episode_index": index, "tasks": [], "length": length}))
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines))
    return folder
