"""A data folder is written shard by shard: in parallel, resumable, with the same result."""

import contextlib
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data.episode import EPISODES_FOLDER, INFO_FILE, EpisodeRecord, count_shard, write_shard
from unified.files import is_part, write_json

if TYPE_CHECKING:  # both wait for torch, which no recording worker needs
    from data.dataset import EpisodeDataset
    from unified.media.action_space import ActionSpace

REQUEST_FILE = "request.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of consecutive environment seeds of one level, written as one file."""

    path: Path
    level: str
    first_seed: int
    episodes: int

    @property
    def seeds(self) -> range:
        """Of its episodes; their places, where episodes have no seeds."""
        return range(self.first_seed, self.first_seed + self.episodes)


def cut_shards(
    out: Path, name: str, level: str, *, first_seed: int, episodes: int, size: int, start: int = 0
) -> list[Shard]:
    """A run of consecutive seeds as shards of `size` episodes, in files that begin with `name`.

    Those before the episode `start` are left out.
    """
    return [
        Shard(
            out / EPISODES_FOLDER / f"{name}-{first:06d}.parquet",
            level,
            first_seed + first,
            min(size, episodes - first),
        )
        for first in range(start, episodes, size)
    ]


def store(shard: Shard, episodes: list[EpisodeRecord]) -> tuple[Shard, int]:
    """Writes the episodes of a shard; returns it with its number of frames."""
    write_shard(shard.path, episodes)
    return shard, sum(episode.num_frames for episode in episodes)


def record_shards(
    out: Path,
    request: dict[str, Any],
    shards: list[Shard],
    record: Callable[[Shard], tuple[Shard, int]],
    workers: int = 1,
) -> None:
    """Records the shards that are missing, then writes `info.json`.

    Args:
        out: Data folder.
        request: What was asked for: a folder that was begun with another request is refused.
        shards: All of the folder.
        record: Writes a shard, and returns it with its number of frames; run in other processes.
        workers: Number of processes.

    Raises:
        ValueError: If `out` was begun with another request, or holds something else.
    """
    claim_folder(out, request)
    episodes = sum(shard.episodes for shard in shards)
    missing = [shard for shard in shards if not shard.path.exists()]
    frames = 0
    with (
        contextlib.ExitStack() as stack,
        tqdm(total=episodes, unit="episode", desc=str(request["source"])) as progress,
    ):
        progress.update(episodes - sum(shard.episodes for shard in missing))
        recorded = map(record, missing)
        if workers > 1 and missing:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(workers))
            recorded = pool.imap_unordered(record, missing)
        for shard, shard_frames in recorded:
            frames += shard_frames
            progress.update(shard.episodes)
            seconds = progress.format_dict["elapsed"]
            progress.set_postfix_str(f"{frames / max(seconds, 1e-9):.0f} frames/s")
    counts = [count_shard(shard.path) for shard in shards]
    write_json(
        out / INFO_FILE,
        {
            **request,
            "frames": sum(count.frames for count in counts),
            "shards": [
                {
                    "file": f"{EPISODES_FOLDER}/{shard.path.name}",
                    "episodes": count.episodes,
                    "frames": count.frames,
                }
                for shard, count in zip(shards, counts, strict=True)
            ],
        },
    )


def claim_folder(out: Path, request: dict[str, Any]) -> None:
    """Writes the request into a folder, or checks that the folder was begun with the same one.

    Raises:
        ValueError: If it was begun with another one, or holds something else.
    """
    path = out / REQUEST_FILE
    if path.exists():
        found = json.loads(path.read_text())
        if found != request:
            raise ValueError(
                f"{out} was begun with {found}, not {request}; "
                "rerun that command to resume, or choose another --out"
            )
    elif out.exists() and not all(map(is_part, out.iterdir())):
        raise ValueError(f"{out} holds something else; choose an empty or new folder as --out")
    else:
        write_json(path, request)


def export_request(
    target: str, dataset: "EpisodeDataset", actions: "ActionSpace", **options: Any
) -> dict[str, Any]:
    """What an export was asked for: all that its result depends on."""
    return {
        "export": target,
        "data": str(dataset.folder),
        "episodes": len(dataset),
        "frames": dataset.num_frames,
        "actions": actions.to_config(),
        **options,
    }
