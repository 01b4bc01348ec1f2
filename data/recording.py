"""Record many episodes: shards in parallel, resumable, the same whatever the number of workers."""

import contextlib
import functools
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.babyai import BEHAVIOURS, EVALUATION_SEEDS, Recorder
from data.episode import (
    EPISODES_FOLDER,
    FORMAT_VERSION,
    INFO_FILE,
    EpisodeRecord,
    count_shard,
    write_shard,
)
from unified.files import write_json

EPISODES_PER_SHARD = 250
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
    out: Path, name: str, level: str, *, first_seed: int, episodes: int, size: int
) -> list[Shard]:
    """A run of consecutive seeds as shards of `size` episodes, in files that begin with `name`."""
    return [
        Shard(
            out / EPISODES_FOLDER / f"{name}-{start:06d}.parquet",
            level,
            first_seed + start,
            min(size, episodes - start),
        )
        for start in range(0, episodes, size)
    ]


def store(shard: Shard, episodes: list[EpisodeRecord]) -> tuple[Shard, int]:
    """Writes the episodes of a shard; returns it with its number of frames."""
    write_shard(shard.path, episodes)
    return shard, sum(episode.num_frames for episode in episodes)


@functools.cache
def _recorder(level: str) -> Recorder:
    return Recorder(level)


def _record_shard(shard: Shard) -> tuple[Shard, int]:
    """Record and write one shard; return it with its number of frames."""
    return store(shard, [_recorder(shard.level).record(seed) for seed in shard.seeds])


def _check_request(
    levels: list[str], *, episodes: int, seed: int, workers: int, evaluation: bool
) -> int:
    """Check the request; return the number of episodes per level."""
    if len(set(levels)) != len(levels):
        raise ValueError(f"levels {levels} repeat; name each level once")
    for level in levels:
        _recorder(level)
    if episodes < len(levels) or episodes % len(levels):
        raise ValueError(
            f"episodes {episodes} cannot be split over {len(levels)} levels; give a multiple"
        )
    if workers < 1:
        raise ValueError(f"workers {workers} must be at least 1")
    per_level = episodes // len(levels)
    if evaluation and seed < EVALUATION_SEEDS:
        raise ValueError(f"seed {seed} is for training; evaluate from seed {EVALUATION_SEEDS} on")
    if not evaluation and not 0 <= seed <= EVALUATION_SEEDS - per_level:
        raise ValueError(
            f"seeds {seed} to {seed + per_level - 1} leave the training seeds 0 to "
            f"{EVALUATION_SEEDS - 1}; choose a lower --seed, or --evaluation for held-out seeds"
        )
    return per_level


def _claim_folder(out: Path, request: dict[str, Any]) -> None:
    """Write the request into the folder, or check that the folder was begun with the same one."""
    path = out / REQUEST_FILE
    if path.exists():
        found = json.loads(path.read_text())
        if found != request:
            raise ValueError(
                f"{out} was begun with {found}, not {request}; "
                "rerun that command to resume, or choose another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds something else; choose an empty or new folder as --out")
    else:
        write_json(path, request)


def record_babyai(
    levels: list[str],
    *,
    episodes: int,
    out: Path,
    seed: int = 0,
    workers: int = 1,
    evaluation: bool = False,
) -> None:
    """Record BabyAI episodes into a data folder; a second call resumes, or finds it complete.

    Args:
        levels: Names such as "GoToRedBall".
        episodes: Number of episodes in all, a multiple of the number of levels.
        out: Data folder.
        seed: First environment seed of every level; episode i has seed + i.
        workers: Number of processes; the result does not depend on it.
        evaluation: Allow seeds from 1000000 on, and no others.

    Raises:
        ValueError: The request is not possible, or `out` was begun with another one.
    """
    per_level = _check_request(
        levels, episodes=episodes, seed=seed, workers=workers, evaluation=evaluation
    )
    request = {
        "source": "babyai",
        "format_version": FORMAT_VERSION,
        "levels": levels,
        "episodes": episodes,
        "seed": seed,
        "evaluation": evaluation,
        "behaviours": BEHAVIOURS,
    }
    shards = [
        shard
        for level in levels
        for shard in cut_shards(
            out, level, level, first_seed=seed, episodes=per_level, size=EPISODES_PER_SHARD
        )
    ]
    record_shards(out, request, shards, _record_shard, workers)


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
    _claim_folder(out, request)
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
