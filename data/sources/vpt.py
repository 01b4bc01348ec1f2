"""Keyboard and mouse as VPT records them (arXiv:2206.11795): an mp4, and a jsonl beside it.

Line t of the jsonl holds what was pressed and how the mouse moved at frame t, which leads to frame
t + 1. Long recordings are cut into episodes that share a frame where they meet.
"""

import functools
import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.episode import FORMAT_VERSION, EpisodeRecord, encode_png
from data.json_text import parsed
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
from data.sources.tasks import check_tasks, read_tasks
from data.sources.video import steady_frames
from unified.media.actions import KeyboardMouseActions

FPS = 20.0
ATTACK = "mouse.0"


@dataclass(frozen=True)
class Recording:
    """One mp4 with its jsonl.

    Attributes:
        video: The mp4.
        actions: One for each of its frames, as `KeyboardMouseActions` takes them.
    """

    video: Path
    actions: list[dict[str, Any]]


def read_recording(video: Path) -> Recording:
    """Reads the jsonl beside a video.

    Two known faults of such recordings are mended: an attack that was already pressed when
    recording began, and seems to be held until it is pressed anew, is not; and a change of the
    hotbar by the wheel, which is not recorded, counts as its key.

    Raises:
        ValueError: If it is missing, or a line is damaged; names file and line.
    """
    path = video.with_suffix(".jsonl")
    if not path.exists():
        raise ValueError(f"{path} is missing; every mp4 needs the jsonl of its actions")
    actions = []
    is_stuck, hotbar = True, None
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            content = parsed(line, "copy the recording again")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        try:
            mouse, keys = content["mouse"], content["keyboard"]["keys"]
            moved = [float(mouse["dx"]), float(mouse["dy"])]
            held = {key.removeprefix("key.keyboard.") for key in keys}
            held |= {f"mouse.{button}" for button in mouse["buttons"]}
            is_new = 0 in mouse.get("newButtons", [])
            chosen = None if content.get("hotbar") is None else int(content["hotbar"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number}: {type(error).__name__} {error}; a line needs mouse (dx, dy, "
                "buttons) and keyboard (keys)"
            ) from error
        if not all(map(math.isfinite, moved)):
            raise ValueError(f"{path}:{number}: the mouse moved by {moved}; mend the line")
        is_stuck = is_stuck and ATTACK in held and not (is_new and number > 1)
        if is_stuck:
            held.discard(ATTACK)
        if hotbar is not None and chosen is not None and chosen != hotbar:
            held.add(str(chosen + 1))
        hotbar = chosen
        actions.append({"keys": sorted(held), "mouse": moved})
    if len(actions) < 2:
        raise ValueError(f"{path} has {len(actions)} lines; a recording has at least two frames")
    return Recording(video, actions)


def episodes_of(
    recording: Recording,
    *,
    name: str,
    task: str | None,
    size: tuple[int, int] | None,
    frames: int,
    mouse: MouseRange,
) -> list[EpisodeRecord]:
    """Cuts a recording into episodes of at most `frames` frames.

    Raises:
        ValueError: If the video cannot be read, lacks a frame, or has another number of frames
            than there are actions.
    """
    count = len(recording.actions)
    shown = steady_frames(recording.video, fps=FPS, size=size)
    pngs = [encode_png(frame) for frame in itertools.islice(shown, count + 1)]
    if len(pngs) != count:
        more = "more than " if len(pngs) > count else ""
        raise ValueError(
            f"{recording.video} has {more}{min(len(pngs), count)} frames, its jsonl {count} lines; "
            "copy both again"
        )
    actions = [{**one, "mouse": mouse.clip(one["mouse"])} for one in recording.actions]
    moments = [Moment(png, json.dumps(one)) for png, one in zip(pngs, actions, strict=True)]
    return cut_episodes(name, "vpt", task, moments, frames)


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    given = json.loads(options)
    folder = Path(given["folder"])
    video = found_videos(folder)[shard.first_seed]
    name = name_of(video, folder)
    episodes = episodes_of(
        read_recording(video),
        name=name,
        task=given["tasks"].get(name) or given["task"],
        size=given["size"] and tuple(given["size"]),
        frames=given["frames"],
        mouse=MouseRange(**given["mouse"]),
    )
    return store(shard, episodes)


def import_vpt(
    folder: Path,
    out: Path,
    *,
    task: str | None = None,
    tasks: Path | None = None,
    size: tuple[int, int] | None = None,
    frames: int = 200,
    bins: int = 11,
    mouse: tuple[float, float] | None = None,
    workers: int = 1,
) -> None:
    """Writes all recordings of a folder into a data folder; a second call resumes.

    Args:
        folder: Searched for mp4 files, in folders below, too.
        out: Data folder. Its `action_space.json` has all keys that were ever pressed.
        task: Words that open each episode.
        tasks: File with the words of each recording: CSV with the columns episode (its path without
            the ending) and task, or JSON; goes before `task`.
        size: Height and width of the frames; None leaves them as they are.
        frames: Most of one episode.
        bins: Of each direction of the mouse, odd.
        mouse: Farthest movement right or left, and down or up, that is told; what is farther is
            clipped, and counted. None is what nearly all movements stay within.
        workers: Number of processes.

    Raises:
        ValueError: If there is no recording, or one cannot be read.
    """
    videos = found_videos(folder)
    names = [name_of(video, folder) for video in videos]
    told = read_tasks(tasks) if tasks is not None else {}
    check_tasks(told, names, tasks)
    recordings = [read_recording(video) for video in videos]
    counts = [episodes_in(len(recording.actions), frames) for recording in recordings]
    actions = [action for recording in recordings for action in recording.actions]
    keys = sorted({key for action in actions for key in action["keys"]})
    if not keys:
        raise ValueError(f"nothing is ever pressed in the recordings of {folder}; check the jsonl")
    reach = MouseRange.of([action["mouse"] for action in actions], mouse)
    space = KeyboardMouseActions("keyboard and mouse", keys, reach.farthest, bins)
    options = {
        "folder": str(folder),
        "task": task,
        "tasks": told,
        "size": size and list(size),
        "frames": frames,
        "mouse": json.loads(json.dumps(asdict(reach))),
    }
    shards = recording_shards(out, "vpt", names, counts)
    print(
        f"{folder}: {len(recordings)} recordings, {len(actions)} frames; keys: {', '.join(keys)}\n"
        f"  mouse: {reach.report(space)}"
    )
    request = {
        "source": "vpt",
        "format_version": FORMAT_VERSION,
        "levels": ["vpt"],
        "episodes": sum(counts),
        "reader": options,
    }
    write = functools.partial(_import_shard, json.dumps(options))
    record_shards(out, request, shards, write, workers, actions=space)
