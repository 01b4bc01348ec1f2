"""Keyboard and mouse as VPT records them (arXiv:2206.11795): an mp4, and a jsonl beside it.

Line t of the jsonl holds what was pressed and how the mouse moved at frame t, which leads to frame
t + 1. Long recordings are cut into episodes that share a frame where they meet.
"""

import functools
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.episode import (
    EPISODES_FOLDER,
    FORMAT_VERSION,
    EpisodeRecord,
    SegmentRecord,
    encode_png,
)
from data.shards import Shard, record_shards, store
from data.sources.video import frames_of
from unified.files import write_json
from unified.media.action_space import ACTIONS_FILE
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

    @property
    def name(self) -> str:
        """Without folder and ending."""
        return self.video.stem


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
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            content = json.loads(line)
            mouse, keys = content["mouse"], content["keyboard"]["keys"]
            moved = [float(mouse["dx"]), float(mouse["dy"])]
            held = {key.removeprefix("key.keyboard.") for key in keys}
            held |= {f"mouse.{button}" for button in mouse["buttons"]}
            is_new = 0 in mouse.get("newButtons", [])
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
        chosen = content.get("hotbar")
        if hotbar is not None and chosen is not None and chosen != hotbar:
            held.add(str(chosen + 1))
        hotbar = chosen
        actions.append({"keys": sorted(held), "mouse": moved})
    if len(actions) < 2:
        raise ValueError(f"{path} has {len(actions)} lines; a recording has at least two frames")
    return Recording(video, actions)


def episodes_of(
    recording: Recording, *, task: str | None, size: tuple[int, int] | None, frames: int
) -> list[EpisodeRecord]:
    """Cuts a recording into episodes of at most `frames` frames.

    Raises:
        ValueError: If the video cannot be read, or has another number of frames than there are
            actions.
    """
    count = len(recording.actions)
    shown = frames_of(recording.video, fps=FPS, size=size)
    pngs = [encode_png(frame) for frame in itertools.islice(shown, count + 1)]
    if len(pngs) != count:
        more = "more than " if len(pngs) > count else ""
        raise ValueError(
            f"{recording.video} has {more}{min(len(pngs), count)} frames, its jsonl {count} lines; "
            "copy both again"
        )
    episodes = []
    for start in range(0, count - 1, frames - 1):
        stop = min(start + frames, count)
        segments = [SegmentRecord(kind="text", role="task", text=task, weight=0.0)] if task else []
        for place in range(start, stop):
            if place > start:
                action = json.dumps(recording.actions[place - 1])
                segments.append(SegmentRecord(kind="action", role="agent", action=action))
            segments.append(
                SegmentRecord(kind="frame", role="world", frame=pngs[place], outcome="ongoing")
            )
        episodes.append(
            EpisodeRecord(
                id=f"{recording.name}/{start}",
                source="vpt",
                level="vpt",
                seed=-1,
                behaviour="recorded",
                segments=segments,
            )
        )
    return episodes


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    given = json.loads(options)
    videos = sorted(Path(given["folder"]).rglob("*.mp4"))
    episodes = episodes_of(
        read_recording(videos[shard.first_seed]),
        task=given["task"],
        size=given["size"] and tuple(given["size"]),
        frames=given["frames"],
    )
    return store(shard, episodes)


def import_vpt(
    folder: Path,
    out: Path,
    *,
    task: str | None = None,
    size: tuple[int, int] | None = None,
    frames: int = 200,
    bins: int = 11,
    workers: int = 1,
) -> None:
    """Writes all recordings of a folder into a data folder; a second call resumes.

    Args:
        folder: Searched for mp4 files, in folders below, too.
        out: Data folder. Its `action_space.json` has all keys that were ever pressed.
        task: Words that open each episode.
        size: Height and width of the frames; None leaves them as they are.
        frames: Most of one episode.
        bins: Of each direction of the mouse, odd.
        workers: Number of processes.

    Raises:
        ValueError: If there is no recording, or one cannot be read.
    """
    if frames < 2:
        raise ValueError(f"frames={frames} must be at least 2: an action leads to a frame")
    videos = sorted(folder.rglob("*.mp4"))
    if not videos:
        raise ValueError(f"{folder} has no mp4; give the folder of the recordings")
    recordings = [read_recording(video) for video in videos]
    actions = [action for recording in recordings for action in recording.actions]
    keys = sorted({key for action in actions for key in action["keys"]})
    if not keys:
        raise ValueError(f"nothing is ever pressed in the recordings of {folder}; check the jsonl")
    farthest = max(abs(x) for action in actions for x in action["mouse"])
    space = KeyboardMouseActions("keyboard and mouse", keys, max(farthest, 1.0), bins)
    options = {"folder": str(folder), "task": task, "size": size, "frames": frames}
    counts = [math.ceil((len(r.actions) - 1) / (frames - 1)) for r in recordings]
    shards = [
        Shard(out / EPISODES_FOLDER / f"{i:06d}-{recording.name}.parquet", "vpt", i, count)
        for i, (recording, count) in enumerate(zip(recordings, counts, strict=True))
    ]
    print(
        f"{folder}: {len(recordings)} recordings, {len(actions)} frames; keys: {', '.join(keys)}; "
        f"the mouse within {space.resolution:.3g} of {space.mouse:g}"
    )
    request = {
        "source": "vpt",
        "format_version": FORMAT_VERSION,
        "levels": ["vpt"],
        "episodes": sum(counts),
        "reader": options,
    }
    write = functools.partial(_import_shard, json.dumps(options))
    record_shards(out, request, shards, write, workers)
    write_json(out / ACTIONS_FILE, space.to_config())
