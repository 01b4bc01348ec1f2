"""A data folder is written shard by shard: in parallel, resumable, with the same result."""

import contextlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data.episode import EPISODES_FOLDER, INFO_FILE, EpisodeRecord, count_shard, write_shard
from data.frames import check_one_size, check_pictures, frame_size
from data.json_text import read_json
from data.outcomes import ends_text, ends_warning
from unified.files import is_part, write_json
from unified.media.action_space import ACTIONS_FILE, ActionSpace

if TYPE_CHECKING:  # waits for torch, which no recording worker needs
    from data.dataset import EpisodeDataset

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
        """Seeds of its episodes; their indices, where episodes have no seeds."""
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
    """Writes the episodes of a shard; returns it with its number of frames.

    Raises:
        ValueError: If a frame is no picture, or of another size; see `check_pictures`.
    """
    sizes: dict[tuple[int, int], str] = {}
    for episode in episodes:
        check_pictures(episode, sizes)
    write_shard(shard.path, episodes)
    return shard, sum(episode.num_frames for episode in episodes)


def record_shards(
    out: Path,
    request: dict[str, Any],
    shards: list[Shard],
    record: Callable[[Shard], tuple[Shard, int]],
    workers: int = 1,
    *,
    actions: ActionSpace | None = None,
) -> None:
    """Records the shards that are missing, then writes `action_space.json` and, last, `info.json`.

    What the episodes end with is counted and printed.

    Args:
        out: Data folder.
        request: What was asked for: a folder that was begun with another request is refused.
        shards: All of the folder.
        record: Writes a shard, and returns it with its number of frames; run in other processes.
        workers: Number of processes.
        actions: How the folder's actions are written; None if nobody acts.

    Raises:
        ValueError: If `out` was begun with another request, or holds something else, or frames
            differ in size.
    """
    claim_folder(out, request)
    episodes = sum(shard.episodes for shard in shards)
    missing = [shard for shard in shards if not shard.path.exists()]
    frames, sizes = 0, {}
    for shard in shards:
        if shard.path.exists():
            _check_shard_size(shard, sizes)
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
            _check_shard_size(shard, sizes)
            frames += shard_frames
            progress.update(shard.episodes)
            seconds = progress.format_dict["elapsed"]
            progress.set_postfix_str(f"{frames / max(seconds, 1e-9):.0f} frames/s")
    counts = [count_shard(shard.path) for shard in shards]
    ends = sum((count.ends for count in counts), Counter[str]())
    print(f"ends: {ends_text(ends)}")
    if (warning := ends_warning(ends)) is not None:
        print(f"warning: {warning}")
    if actions is not None:
        write_json(out / ACTIONS_FILE, actions.to_config())
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


def _check_shard_size(shard: Shard, sizes: dict[tuple[int, int], str]) -> None:
    """Refuses a shard whose frames have another size than those of the shards before."""
    size = frame_size(shard.path)
    if size is not None:
        check_one_size(*size, shard.path.name, sizes)


def claim_folder(out: Path, request: dict[str, Any]) -> None:
    """Writes the request into a folder, or checks that the folder was begun with the same one.

    What writers that were killed have left behind is removed: it is nothing that anybody reads.

    Raises:
        ValueError: If it was begun with another one, or holds something else.
    """
    path = out / REQUEST_FILE
    if path.exists():
        found = read_json(path, "delete the folder, or choose another --out")
        if found != request:
            raise ValueError(
                f"{out} was begun with {_differences(found, request)}; rerun that command to "
                "resume, or choose another --out"
            )
    elif out.exists() and any(not _is_begun(one) for one in out.iterdir()):
        raise ValueError(f"{out} holds something else; choose an empty or new folder as --out")
    else:
        write_json(path, request)
    sweep_parts(out)  # only in a folder that is ours


def _differences(found: dict[str, Any], request: dict[str, Any]) -> str:
    """In what a folder's request differs from another one, in words."""
    names = [name for name in {**found, **request} if found.get(name) != request.get(name)]
    return ", ".join(f"{name} {found.get(name)!r}, not {request.get(name)!r}" for name in names)


def _is_begun(path: Path) -> bool:
    """Whether it is a request that a writer was killed over, so that the folder is ours."""
    return is_part(path) and path.name.startswith(f".{REQUEST_FILE}.")


def sweep_parts(folder: Path) -> None:
    """Removes the parts in a folder, and below, whose writers are gone.

    A part carries its writer's process number; that of a process which still runs is left alone.
    """
    for part in [one for one in folder.rglob(".*.part") if one.is_file()]:
        writer = part.name.removesuffix(".part").rpartition(".")[2]
        if not writer.isdecimal() or int(writer) == os.getpid() or not _runs(int(writer)):
            part.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def action_space_of_folder(folder: Path, given: Path | None = None) -> ActionSpace:
    """How the actions of a data folder are written.

    Args:
        folder: A complete data folder.
        given: Action space (JSON) to take instead of the folder's own.

    Raises:
        ValueError: If there is none, or it is no action space.
    """
    own = folder / ACTIONS_FILE
    if given is None and not own.is_file():
        raise ValueError(
            f"{folder} has no {ACTIONS_FILE}, which says how its actions are written; rerun the "
            "data.prepare or data.record command that wrote it, or give --actions FILE"
        )
    return ActionSpace.from_config(given or own)


def export_request(
    target: str, dataset: "EpisodeDataset", actions: ActionSpace, **options: Any
) -> dict[str, Any]:
    """The request of an export: everything that its result depends on."""
    return {
        "export": target,
        "data": str(dataset.folder),
        "episodes": len(dataset),
        "frames": dataset.num_frames,
        "actions": actions.to_config(),
        **options,
    }
