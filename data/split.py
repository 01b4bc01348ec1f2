"""Hold episodes out before training, so that there is something to evaluate on.

Which ones is a matter of each episode's own name: it does not depend on their order, and data that
grow keep what they held out.
"""

import functools
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data.dataset import read_info
from data.episode import EPISODES_FOLDER, read_shard
from data.shards import Shard, claim_folder, record_shards, store
from unified.media.action_space import ACTIONS_FILE

HELD_OUT_FOLDER = "held-out"
PARTS = {HELD_OUT_FOLDER: True, "": False}
"""Folder inside of the new one, and whether it holds the episodes that were held out."""


def is_held_out(episode: str, share: float) -> bool:
    """Whether an episode of this id is among the `share` that is held out."""
    digest = hashlib.sha256(episode.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_folder(data: Path, out: Path, *, held_out: float = 0.1) -> None:
    """Copies a data folder without the episodes that are held out, which go into `out/held-out`.

    Train on `out`, evaluate on `out/held-out`; both are complete data folders. A second call
    resumes.

    Args:
        data: A complete data folder.
        out: New folder.
        held_out: Share of the episodes that are held out, between 0 and 1.

    Raises:
        ValueError: If the folder is not complete, or a part would have no episodes.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must lie between 0 and 1; 0.1 is usual")
    info = read_info(data)
    ids = {
        entry["file"]: pq.ParquetFile(data / entry["file"]).read(columns=["id"])["id"].to_pylist()
        for entry in info["shards"]
    }
    kept = {name: value for name, value in info.items() if name not in ("frames", "shards")}
    plans: list[tuple[Path, dict[str, Any], list[Shard], bool]] = []
    for part, chosen in PARTS.items():
        folder = out / part
        counts = {
            file: sum(is_held_out(one, held_out) == chosen for one in names)
            for file, names in ids.items()
        }
        shards = [
            Shard(folder / EPISODES_FOLDER / Path(file).name, str(data / file), 0, count)
            for file, count in counts.items()
            if count
        ]
        total = sum(counts.values())
        if not total:
            raise ValueError(
                f"of {sum(map(len, ids.values()))} episodes a share of {held_out} holds out "
                f"{'none' if chosen else 'all'}; choose another --held-out"
            )
        split = {"of": str(data), "held_out": held_out, "is_held_out": chosen}
        plans.append((folder, {**kept, "episodes": total, "split": split}, shards, chosen))
    for folder, request, shards, chosen in reversed(plans):  # `out` claims itself while it is new
        claim_folder(folder, request)
        if (data / ACTIONS_FILE).exists():
            shutil.copyfile(data / ACTIONS_FILE, folder / ACTIONS_FILE)
        record_shards(folder, request, shards, functools.partial(_copy, held_out, chosen))


def _copy(share: float, chosen: bool, shard: Shard) -> tuple[Shard, int]:
    episodes = read_shard(Path(shard.level))
    return store(shard, [one for one in episodes if is_held_out(one.id, share) == chosen])
