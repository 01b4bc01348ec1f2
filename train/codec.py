"""Train a frame codec: `python -m train.codec --data DIR --out DIR`.

Training frames are real ones, and collages of the distinct patches seen in the data (and of all of
minigrid's sprites), drawn uniformly: three tiles fill nine tenths of a BabyAI frame, and the rare
ones must be exact too. Frames that are not made of tiles are learned alone:

python -m train.codec --data DIR --config tokenizers_cfg/codec/scene.json --batch 0 --out DIR
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from data.episode import decode_png
from unified.command import command
from unified.files import write_json
from unified.media.codec import (
    FrameCodec,
    frames_to_pixels,
    join_patches,
    pixels_to_frames,
    split_patches,
)

FIGURES_FILE = "figures.json"
CONFIG = Path(__file__).resolve().parent.parent / "tokenizers_cfg" / "codec" / "babyai.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `python -m train.codec` can be told."""

    data: Path
    """Folder of recorded episodes (data.prepare)."""
    out: Path
    """Folder that receives the codec."""
    config: Path = CONFIG
    """Codec architecture."""
    init: Path | None = None
    """Codec to train further, instead of one of that architecture with random weights."""
    steps: int = 4000
    """Optimiser steps."""
    seed: int = 0
    """Seed of the weights and of the sampling."""
    batch: int = 6
    """Collages per step; 0 for frames that are not made of tiles."""
    real_batch: int = 24
    """Real frames per step: all shape the latents' statistics, a sixth is decoded too, and all are
    where there are no collages."""
    learning_rate: float = 4e-3
    """Peak learning rate, reached after 5 % of the steps, then decayed to zero as a cosine."""
    noise: float = 0.6
    """Largest standard deviation of the noise added to latents in training."""
    margin: float = 3.5
    """Distance that the latents of different patches are pushed to."""
    bound: float = 2.2
    """Magnitude above which latents are pulled back."""
    consistency: float = 1.0
    """Weight of the loss that asks for permuted latents when patches move (whole-frame codecs)."""
    frames: int = 8000
    """Number of real frames to read, a tenth of them held out."""
    patch: int = 8
    """Side in pixels of the patches that collages are made of."""
    sprites: bool = True
    """Add every minigrid sprite to the patches."""
    max_patches: int = 4096
    """Upper limit of distinct patches kept."""
    bf16: bool = False
    """Train in bfloat16 (autocast), which some processors do twice as fast."""
    threads: int = 2
    """CPU threads."""


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


def separation_loss(latents: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Push the latents of different patches apart.

    Args:
        latents: (m, c), one row per patch.
        labels: (m,), which patch each row is.
        margin: Euclidean distance beyond which there is no push.
    """
    distances = torch.cdist(latents, latents, compute_mode="donot_use_mm_for_euclid_dist")
    different = labels[:, None] != labels[None, :]
    close = (margin - distances[different]).clamp(min=0)
    return close.square().sum() / max(labels.shape[0], 1)


def codec_loss(
    codec: FrameCodec,
    bank: Tensor,
    labels: Tensor,
    real: Tensor,
    options: Options,
    generator: torch.Generator,
    noise_scale: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step: reconstruction from noisy latents, and the shape of the latent space.

    Args:
        codec: Codec in training; its normalisation is not used.
        bank: float (patches, 3, size, size).
        labels: int64 (frames, rows, columns) of the collages, which may be none.
        real: Real frames (n, 3, H, W), of the collages' size.
        options: Weights and limits.
        generator: Source of the noise and of the permutation.
        noise_scale: Share of the full noise, in [0, 1].

    Returns:
        The loss, and its parts as numbers.
    """
    made = collages(bank, labels)
    frames = torch.cat([made, real])
    latents = codec.encode_raw(frames)
    decoded = made.shape[0] + (max(1, real.shape[0] // 6) if len(made) else real.shape[0])
    level = (1.5 * torch.rand(decoded, 1, 1, 1, generator=generator) - 0.5).clamp(
        min=0
    )  # a third clean
    sigma = level * options.noise * noise_scale
    noise = torch.randn(latents[:decoded].shape, generator=generator)
    latents = latents.float()
    error = codec.decode_raw(latents[:decoded] + sigma * noise).float() - frames[:decoded]
    reconstruction = error.abs().mean() + 4 * error.square().mean()

    of_made, of_real = latents[: made.shape[0]], latents[made.shape[0] :]
    spread = of_real.transpose(0, 1).flatten(1)
    unit = spread.mean(1).square().mean() + (spread.std(1) + 1e-4).log().square().mean()
    far = (latents.abs() - options.bound).clamp(min=0).square().mean()
    parts = {"rec": reconstruction.item(), "unit": unit.item()}
    loss = reconstruction + 0.1 * unit + 2.0 * far
    if not len(made):
        return loss, parts
    cells = codec.downsample_factor
    stride = bank.shape[-1] // cells
    per_patch = split_patches(of_made, stride).flatten(3).flatten(0, 2)
    apart = separation_loss(per_patch, labels.flatten(), options.margin * stride)
    loss = loss + 0.02 * apart
    parts["apart"] = apart.item()
    if codec.patch_size is None and options.consistency:
        order = torch.randperm(labels[0].numel(), generator=generator)
        moved = codec.encode_raw(collages(bank, labels.flatten(1)[:, order].view_as(labels)))
        patches = split_patches(of_made, stride)
        expected = patches.flatten(1, 2)[:, order].view_as(patches)
        consistency = (moved - join_patches(expected)).square().mean()
        loss = loss + options.consistency * consistency
        parts["move"] = consistency.item()
    return loss, parts


def train(codec: FrameCodec, bank: Tensor, real: Tensor, options: Options) -> None:
    """Train the autoencoder in place, then measure its normalisation on the real frames.

    Args:
        codec: Codec to train.
        bank: float (patches, 3, size, size), distinct patches.
        real: float (n, 3, H, W), real training frames.
        options: Steps, weights, seed.
    """
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    warmup = max(1, options.steps // 20)

    def factor(step: int) -> float:
        progress = max(0.0, (step - warmup) / max(1, options.steps - warmup))
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    grid = tuple(side // bank.shape[-1] for side in real.shape[-2:])
    # Convolutions on CPUs like it.
    torch.nn.Module.to(codec.train(), memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    progress = tqdm(range(options.steps), desc="codec", unit="step", mininterval=1.0)
    for step in progress:
        labels = torch.randint(max(1, len(bank)), (options.batch, *grid), generator=generator)
        chosen = torch.randint(len(real), (options.real_batch,), generator=generator)
        scale = min(1.0, 3 * step / options.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss, parts = codec_loss(codec, bank, labels, real[chosen], options, generator, scale)
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"The loss is {loss.item()} at step {step}; lower --learning-rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix({name: f"{value:.4f}" for name, value in parts.items()})
    torch.nn.Module.to(codec.eval(), memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    normalise(codec, real)


@torch.no_grad()
def normalise(codec: FrameCodec, real: Tensor) -> None:
    """Store the mean and standard deviation that the latents of real frames have, per channel.

    Args:
        codec: Trained codec.
        real: float (n, 3, H, W).
    """
    latents = torch.cat([codec.encode_raw(part) for part in real[:512].split(64)])
    values = latents.transpose(0, 1).flatten(1)
    codec.mean.copy_(values.mean(1))
    codec.std.copy_(values.std(1).clamp(min=1e-6))


@torch.no_grad()
def evaluate(codec: FrameCodec, held_out: Tensor) -> dict[str, float]:
    """Measure what frames lose: the floor of every model that draws with this codec.

    Args:
        codec: Codec to measure.
        held_out: float (n, 3, H, W), real frames not trained on.

    Returns:
        PSNR in dB, SSIM, and of the mean frame the PSNR, which a codec has to beat; times in ms.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    start = time.perf_counter()
    latents = codec.encode(held_out)
    middle = time.perf_counter()
    decoded = codec.decode(latents)
    end = time.perf_counter()
    pixels, shown = frames_to_pixels(held_out), frames_to_pixels(decoded)
    mean = frames_to_pixels(held_out.mean(0, keepdim=True)).expand_as(pixels)
    similarity: Any = ssim(pixels_to_frames(shown), held_out, data_range=2.0)
    return {
        "real PSNR": _psnr(shown, pixels),
        "real PSNR of the mean frame": _psnr(mean, pixels),
        "real SSIM": similarity.item(),
        "largest |latent|": latents.abs().max().item(),
        "std of real latents": latents.std().item(),
        "encode ms/frame": 1e3 * (middle - start) / len(held_out),
        "decode ms/frame": 1e3 * (end - middle) / len(held_out),
    }


@torch.no_grad()
def evaluate_tiles(
    codec: FrameCodec, bank: Tensor, held_out: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Measure a codec of frames that are made of tiles.

    Args:
        codec: Codec to measure.
        bank: float (patches, 3, size, size), distinct patches.
        held_out: float (n, 3, H, W), real frames not trained on.
        generator: Source of collages and noise.

    Returns:
        Shares in [0, 1], PSNR in dB, distances in units of a latent channel's standard deviation.
    """
    size = bank.shape[-1]
    grid = tuple(side // size for side in held_out.shape[-2:])
    copies = max(1, math.ceil(32 * len(bank) / math.prod(grid)))
    count = copies * math.prod(grid)
    order = torch.stack(
        [torch.randperm(len(bank), generator=generator) for _ in range(count // len(bank) + 1)]
    )
    labels = order.flatten()[:count].view(copies, *grid)
    made = collages(bank, labels)

    def nearest(frames: Tensor) -> Tensor:
        rounded = pixels_to_frames(frames_to_pixels(frames))
        return torch.cdist(
            split_patches(rounded, size).flatten(3).flatten(0, 2), bank.flatten(1)
        ).argmin(1)

    decoded = codec.decode(codec.encode(held_out))
    pixels = frames_to_pixels(held_out)
    result = {
        "real tiles exact": (nearest(decoded) == nearest(held_out)).float().mean().item(),
        "real tiles bit-equal": _bit_equal(frames_to_pixels(decoded), pixels, size),
    }
    codes = codec.encode(made)
    rebuilt = codec.decode(codes)
    result["balanced tiles exact"] = (nearest(rebuilt) == labels.flatten()).float().mean().item()
    result["balanced PSNR"] = _psnr(frames_to_pixels(rebuilt), frames_to_pixels(made))
    result["largest |latent|"] = codes.abs().max().item()
    for sigma in (0.1, 0.3, 0.5):
        noisy = codes + sigma * torch.randn(codes.shape, generator=generator)
        share = (nearest(codec.decode(noisy)) == labels.flatten()).float().mean().item()
        result[f"balanced tiles exact, noise {sigma}"] = share
    stride = size // codec.downsample_factor
    vectors = split_patches(codes, stride).flatten(3).flatten(0, 2)
    means = torch.zeros(len(bank), vectors.shape[1]).index_add_(0, labels.flatten(), vectors)
    means /= labels.flatten().bincount(minlength=len(bank))[:, None]
    leak = (vectors - means[labels.flatten()]).square().mean().sqrt()
    distances = torch.cdist(means, means) + torch.eye(len(bank)) * 1e9
    return result | {
        "leak (std over contexts / total std)": (
            leak / vectors.std(0).square().mean().sqrt()
        ).item(),
        "least distance of two tiles": distances.min().item(),
    }


def _psnr(frames: Tensor, truth: Tensor) -> float:
    error = (frames.float() - truth.float()).square().mean().item()
    return 10 * math.log10(255**2 / max(error, 1e-10))


def _bit_equal(frames: Tensor, truth: Tensor, size: int) -> float:
    same = split_patches((frames == truth).movedim(-1, 1).float(), size)
    return (same.flatten(3).amin(3) == 1).float().mean().item()


def main(options: Options) -> None:
    """Train a codec, save it, and print its figures."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    pixels = read_frames(options.data, options.frames, rng)
    if pixels.shape[1] % options.patch or pixels.shape[2] % options.patch:
        raise ValueError(
            f"Frames of {pixels.shape[1:3]} do not divide into patches of {options.patch}; set "
            "--patch."
        )
    frames = pixels_to_frames(pixels)
    bank = torch.zeros(0, 3, options.patch, options.patch)
    if options.batch:
        patches = distinct_patches(pixels, options.patch, options.max_patches, rng)
        print(f"{len(pixels)} frames, {len(patches)} distinct patches in them")
        if options.sprites and options.patch == 8:
            patches = np.unique(np.concatenate([patches, minigrid_sprites()]), axis=0)
        bank = pixels_to_frames(patches)
    if options.init is None:
        codec = FrameCodec.from_config(options.config)
    else:
        codec = FrameCodec.from_pretrained(options.init).requires_grad_(True)
    held_out = max(1, len(frames) // 10)
    train(codec, bank, frames[held_out:], options)
    codec.save_pretrained(options.out)
    codec = FrameCodec.from_pretrained(options.out)
    figures = evaluate(codec, frames[:held_out])
    if options.batch:
        generator = torch.Generator().manual_seed(options.seed + 1)
        figures |= evaluate_tiles(codec, bank, frames[:held_out], generator)
    for name, value in figures.items():
        print(f"{name:40s} {value:.6g}")
    write_json(options.out / FIGURES_FILE, figures)
    print(f"saved {options.out}, fingerprint {codec.fingerprint}")


if __name__ == "__main__":
    with command("train.codec"):
        main(tyro.cli(Options))
