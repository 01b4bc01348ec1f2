"""Real frames of a data folder, and the patches that they are made of."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from torch import Tensor
from tqdm import tqdm

from data.episode import decode_png
from unified.media.codec import join_patches, split_patches


def read_frames(folder: Path, count: int, rng: np.random.Generator) -> np.ndarray:
    """Read frames of randomly chosen row groups.

    Args:
        folder: Data folder with `episodes/*.parquet`.
        count: Number of frames wanted; fewer come back when the folder holds fewer.
        rng: Source of randomness.

    Returns:
        uint8 (frames, H, W, 3).
    """
    shards = [parquet.ParquetFile(path) for path in sorted((folder / "episodes").glob("*.parquet"))]
    groups = [(shard, index) for shard in shards for index in range(shard.num_row_groups)]
    if not groups:
        raise ValueError(
            f"No episodes/*.parquet under {folder}; record some with `python -m data.prepare`."
        )
    frames: list[np.ndarray] = []
    with tqdm(total=count, desc="reading frames", unit="frame") as progress:
        for position in rng.permutation(len(groups)):
            shard, index = groups[position]
            table = shard.read_row_group(index, columns=["segments.list.element.frame.bytes"])
            for segments in table.column("segments").to_pylist():
                images = [segment["frame"]["bytes"] for segment in segments if segment["frame"]]
                frames += [decode_png(image) for image in images if image]
            progress.update(min(len(frames), count) - progress.n)
            if len(frames) >= count:
                break
    if len({frame.shape for frame in frames}) != 1:
        raise ValueError(
            f"{folder} holds no frames, or frames of several sizes; train on frames of one size."
        )
    return np.stack(frames[:count])


def distinct_patches(
    pixels: np.ndarray, size: int, limit: int, rng: np.random.Generator
) -> np.ndarray:
    """Collect the distinct patches of some frames.

    Args:
        pixels: uint8 (frames, H, W, 3).
        size: Patch side in pixels.
        limit: Most patches to return; a random choice when there are more.
        rng: Source of randomness.

    Returns:
        uint8 (patches, size, size, 3), sorted.
    """
    patches = split_patches(torch.from_numpy(pixels).movedim(-1, 1), size).movedim(3, -1)
    rows = np.ascontiguousarray(patches.numpy()).reshape(-1, size * size * 3)
    unique = (
        np.unique(rows.view(f"V{rows.shape[1]}").ravel()).view(np.uint8).reshape(-1, rows.shape[1])
    )
    if len(unique) > limit:
        unique = unique[np.sort(rng.choice(len(unique), limit, replace=False))]
    return unique.reshape(-1, size, size, 3)


def minigrid_sprites() -> np.ndarray:
    """Every sprite that an agent's view in minigrid can hold, uint8 (sprites, 8, 8, 3)."""
    from minigrid.core.constants import OBJECT_TO_IDX

    from data.babyai.views import tile_table

    plain, with_agent = (
        table.reshape(len(OBJECT_TO_IDX), -1, *table.shape[1:]) for table in tile_table()
    )
    held = [OBJECT_TO_IDX[name] for name in ("empty", "ball", "box", "key")]
    sprites = np.concatenate(
        [plain.reshape(-1, *plain.shape[2:]), with_agent[held].reshape(-1, *plain.shape[2:])]
    )
    return np.unique(sprites, axis=0)


def collages(bank: Tensor, labels: Tensor) -> Tensor:
    """Make frames out of patches.

    Args:
        bank: float (patches, 3, size, size).
        labels: int64 (frames, rows, columns), indices into the bank.

    Returns:
        Frames (frames, 3, rows * size, columns * size).
    """
    return join_patches(bank[labels])


def are_tiles(pixels: np.ndarray, size: int) -> bool:
    """Whether frames are made of tiles: new frames show patches that others have shown.

    Of the distinct frames every fourth is held out. In a world of tiles most of those hold no patch
    that the others lack; in any other, a thing that moves by a pixel makes new ones.

    Args:
        pixels: uint8 (frames, H, W, 3).
        size: Side of a tile in pixels.
    """
    if pixels.shape[1] % size or pixels.shape[2] % size:
        return False
    some = pixels[:: math.ceil(len(pixels) / 2000)]
    frames = np.unique(some.reshape(len(some), -1), axis=0).reshape(-1, *pixels.shape[1:])
    frames = np.random.default_rng(0).permutation(frames)
    patches = split_patches(torch.from_numpy(frames).movedim(-1, 1), size)
    rows = np.ascontiguousarray(patches.flatten(3).numpy())
    keys = rows.reshape(-1, rows.shape[-1]).view(f"V{rows.shape[-1]}").reshape(len(frames), -1)
    is_held_out = np.arange(len(frames)) % 4 == 0
    known = np.unique(keys[~is_held_out])
    return bool(len(known)) and bool(np.isin(keys[is_held_out], known).all(1).mean() > 0.5)
