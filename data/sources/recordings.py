"""Long recordings, an mp4 each with the actions beside it, cut into episodes.

Two episodes of one recording share the frame where they meet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.episode import EPISODES_FOLDER, EpisodeRecord, SegmentRecord
from data.shards import Shard


@dataclass(frozen=True, slots=True)
class Moment:
    """A frame of a recording, and what follows it.

    Attributes:
        png: The frame.
        action: Taken there, as a file holds it; None if nobody knows it.
        said: What task and agent say there, `(role, words)` each.
        outcome: How things stand.
    """

    png: bytes
    action: str | None
    said: tuple[tuple[str, str], ...] = ()
    outcome: str | None = "ongoing"


def found_videos(folder: Path) -> list[Path]:
    """All mp4 files of a folder, and below, in order.

    Raises:
        ValueError: If there is none.
    """
    videos = sorted(folder.rglob("*.mp4"))
    if not videos:
        raise ValueError(f"{folder} has no mp4; give the folder of the recordings")
    return videos


def name_of(video: Path, folder: Path) -> str:
    """Path of a video in its folder, without the ending."""
    return video.relative_to(folder).with_suffix("").as_posix()


def episodes_in(count: int, frames: int) -> int:
    """Into how many episodes of at most `frames` frames a recording of `count` is cut.

    Raises:
        ValueError: If an episode could hold no action.
    """
    if frames < 2:
        raise ValueError(f"frames={frames} must be at least 2: an action leads to a frame")
    return math.ceil((count - 1) / (frames - 1))


def recording_shards(
    out: Path, level: str, names: Sequence[str], counts: Sequence[int]
) -> list[Shard]:
    """A file for each recording, with all of its episodes."""
    return [
        Shard(out / EPISODES_FOLDER / f"{place:06d}-{Path(name).name}.parquet", level, place, count)
        for place, (name, count) in enumerate(zip(names, counts, strict=True))
    ]


def cut_episodes(
    name: str, source: str, task: str | None, moments: Sequence[Moment], frames: int
) -> list[EpisodeRecord]:
    """A recording as episodes of at most `frames` frames.

    Args:
        name: Of the recording.
        source: What kind it is.
        task: Words that open each episode; what the task says later opens those that follow.
        moments: Its frames, in order. What is done at the last one leads nowhere.
        frames: Most of one episode.
    """
    episodes = []
    for start in range(0, len(moments) - 1, frames - 1):
        part = moments[start : start + frames]
        segments = [_text("task", task)] if task else []
        for place, moment in enumerate(part):
            if place:
                action = part[place - 1].action
                segments.append(SegmentRecord(kind="action", role="agent", action=action))
            segments.append(
                SegmentRecord(kind="frame", role="world", frame=moment.png, outcome=moment.outcome)
            )
            is_shared = place == len(part) - 1 and start + frames < len(moments)
            if not is_shared:  # what is said there is said in the next episode
                segments += [_text(role, words) for role, words in moment.said]
                task = next((words for role, words in moment.said if role == "task"), task)
        episodes.append(
            EpisodeRecord(
                id=f"{name}/{start}",
                source=source,
                level=source,
                seed=-1,
                behaviour="recorded",
                segments=segments,
            )
        )
    return episodes


def _text(role: str, words: str) -> SegmentRecord:
    return SegmentRecord(kind="text", role=role, text=words, weight=float(role == "agent"))
