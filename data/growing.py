"""A folder of recorded episodes grows: who asks for more gets those that are missing."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.episode import INFO_FILE, LATENTS_INFO_FILE
from data.json_text import read_json
from data.shards import REQUEST_FILE, Shard, cut_shards
from unified.files import write_json

EARLIER = "earlier"
"""Key of a request: how many episodes the folder held, each time before it grew."""


def grow(out: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The request as it stands in the folder, which may have been begun with fewer episodes.

    A folder that grows is not complete until the new episodes are there; its latents go, since they
    are those of fewer frames.

    Args:
        out: Data folder, perhaps none yet.
        request: What is asked for; "episodes" of it may be more than the folder holds.
    """
    path = out / REQUEST_FILE
    if not path.exists():
        return request
    found = read_json(path, "delete the folder, or choose another --out")
    earlier = found.get(EARLIER, [])
    if not _is_alike(found, request):
        return request  # whoever claims the folder refuses it
    if found["episodes"] < request["episodes"]:
        earlier = [*earlier, found["episodes"]]
        request = {**request, EARLIER: earlier}
        for name in (INFO_FILE, LATENTS_INFO_FILE):
            (out / name).unlink(missing_ok=True)
        write_json(path, request)
    elif found["episodes"] == request["episodes"] and earlier:
        request = {**request, EARLIER: earlier}
    return request


def _is_alike(found: dict[str, Any], request: dict[str, Any]) -> bool:
    ours = {name: value for name, value in request.items() if name != "episodes"}
    theirs = {n: value for n, value in found.items() if n not in ("episodes", EARLIER)}
    return json.loads(json.dumps(ours)) == theirs and "episodes" in found


def grown_shards(
    out: Path, name: str, level: str, *, first_seed: int, counts: list[int], size: int
) -> list[Shard]:
    """`cut_shards` for a folder that grew: shards that are there keep their files.

    Args:
        out: Data folder.
        name: Of the files.
        level: Of the episodes.
        first_seed: Of the first episode.
        counts: Episodes that the folder held each time, the last those it shall hold.
        size: Episodes of a shard.
    """
    shards = []
    for start, stop in pairwise([0, *counts]):
        shards += cut_shards(
            out, name, level, first_seed=first_seed, episodes=stop, size=size, start=start
        )
    return shards
