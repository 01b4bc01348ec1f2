"""Several data folders as one, so that a model learns several embodiments at once.

The task of each episode begins with the name of its embodiment. Only that tells the model which
actions to take.
"""

import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.dataset import read_info
from data.episode import (
    EPISODES_FOLDER,
    FORMAT_VERSION,
    EpisodeRecord,
    SegmentRecord,
    decode_png,
    encode_png,
    read_shard,
)
from data.frames import frame_size
from data.shards import Shard, action_space_of_folder, record_shards, store
from data.sources.video import resized
from unified.media.action_space import ActionSpace
from unified.media.actions import NamedActions
from unified.media.embodiments import EmbodiedActions


def join_folders(
    data: list[Path], names: list[str], out: Path, *, size: tuple[int, int] | None = None
) -> None:
    """Writes the episodes of several folders into one; a second call resumes.

    Args:
        data: Complete data folders with an `action_space.json` each.
        names: Names of their embodiments; the same name twice is one embodiment in two folders.
        out: Data folder to write.
        size: Height and width of all frames; None wants them to be equal.

    Raises:
        ValueError: If there are not as many names as folders, a folder lacks its action space, or
            frames differ in size.
    """
    if len(names) != len(data):
        raise ValueError(f"{len(names)} names for {len(data)} folders; give one for each")
    spaces: dict[str, ActionSpace] = {}
    for name, folder in zip(names, data, strict=True):
        space = action_space_of_folder(folder)
        known = spaces.setdefault(name, space)
        if known.to_config() != space.to_config():
            raise ValueError(
                f"{folder} has other actions than the folder before it that is named {name!r}; "
                "name it differently"
            )
    joined = EmbodiedActions("+".join(spaces), spaces)
    shards: list[Shard] = []
    sources: dict[str, tuple[str, Path, bool, int]] = {}
    shapes: dict[Path, tuple[int, int]] = {}
    for number, (name, folder) in enumerate(zip(names, data, strict=True)):
        again = names[:number].count(name)
        info = read_info(folder)
        for entry in info["shards"]:
            path = out / EPISODES_FOLDER / f"{number:02d}-{name}-{Path(entry['file']).name}"
            shards.append(Shard(path, name, 0, entry["episodes"]))
            is_named = isinstance(spaces[name], NamedActions)
            sources[path.name] = (name, folder / entry["file"], is_named, again)
        shape = size or frame_size(folder / info["shards"][0]["file"])
        if shape is not None:
            shapes[folder] = shape
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{folder}: {h} x {w}" for folder, (h, w) in shapes.items())
        raise ValueError(f"frames differ in size ({found}); give --size HEIGHT WIDTH")
    request: dict[str, Any] = {
        "source": "join",
        "format_version": FORMAT_VERSION,
        "folders": [str(folder) for folder in data],
        "names": names,
        "size": size and list(size),
        "episodes": sum(shard.episodes for shard in shards),
    }
    write = functools.partial(_join_shard, sources, size)
    record_shards(out, request, shards, write, actions=joined)


def _join_shard(
    sources: dict[str, tuple[str, Path, bool, int]], size: tuple[int, int] | None, shard: Shard
) -> tuple[Shard, int]:
    name, path, is_named, again = sources[shard.path.name]
    episodes = [embodied(one, name, size, is_named) for one in read_shard(path)]
    if again:  # two folders may call their episodes alike
        episodes = [replace(one, id=f"{one.id}#{again + 1}") for one in episodes]
    return store(shard, episodes)


def embodied(
    episode: EpisodeRecord, name: str, size: tuple[int, int] | None, is_named: bool
) -> EpisodeRecord:
    """An episode whose opening task and actions name their embodiment.

    Args:
        episode: The recorded episode.
        name: Name of the embodiment.
        size: Height and width of its frames; None leaves them as they are.
        is_named: Whether actions are names; otherwise they are JSON.
    """

    def wrapped(action: str | None) -> str | None:
        if action is None:
            return None
        return json.dumps({name: action if is_named else json.loads(action)})

    segments = []
    for segment in episode.segments:
        if segment.frame is not None and size is not None:
            frame = encode_png(resized(decode_png(segment.frame), size, f"a frame of {episode.id}"))
            segments.append(replace(segment, frame=frame))
        else:
            action, target = wrapped(segment.action), wrapped(segment.target)
            segments.append(replace(segment, action=action, target=target))
    opening = itertools.takewhile(lambda one: one.kind == "text", segments)
    tasks = [place for place, segment in enumerate(opening) if segment.role == "task"]
    if tasks:
        task = segments[tasks[0]]
        segments[tasks[0]] = replace(task, text=f"{name}: {task.text}")
    else:
        segments.insert(0, SegmentRecord(kind="text", role="task", text=name, weight=0.0))
    return replace(episode, id=f"{name}/{episode.id}", segments=segments)
