"""What a frame codec loses, as figures and as a picture."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from train.patches import collages
from unified.media.codec import (
    FrameCodec,
    frames_to_pixels,
    pixels_to_frames,
    split_patches,
)

DIFFERS = 0.2
"""How far a pixel is from the mean frame, in a range of 2, to count as different from it."""
PSNR, MEAN_PSNR = "real PSNR", "real PSNR of the mean frame"
RARE_PSNR = "PSNR where frames differ from their mean"
SHEET_FRAMES = 8


@torch.no_grad()
def evaluate(codec: FrameCodec, held_out: Tensor) -> dict[str, float]:
    """Measure what frames lose: the floor of every model that draws with this codec.

    Most of a frame is what all frames have in common. So the same is measured where they differ
    from their mean: a figure of a few pixels is lost there, and nowhere else.

    Args:
        codec: Codec to measure.
        held_out: float (n, 3, H, W), real frames not trained on.

    Returns:
        PSNR in dB, SSIM, and of the mean frame the PSNR, which a codec has to beat; times in ms.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    start = _now(codec)
    latents = codec.encode(held_out)
    middle = _now(codec)
    decoded = codec.decode(latents).to(held_out.device)
    end = _now(codec)
    pixels, shown = frames_to_pixels(held_out), frames_to_pixels(decoded)
    mean = frames_to_pixels(held_out.mean(0, keepdim=True)).expand_as(pixels)
    similarity: Any = ssim(pixels_to_frames(shown), held_out, data_range=2.0)
    is_rare = (deviation(held_out, held_out.mean(0)) > DIFFERS)[:, 0]
    rare = {"share of pixels that differ": is_rare.float().mean().item()}
    if is_rare.any():
        rare[RARE_PSNR] = _psnr(shown[is_rare], pixels[is_rare])
        rare[f"{RARE_PSNR}, of the mean frame"] = _psnr(mean[is_rare], pixels[is_rare])
    return {
        PSNR: _psnr(shown, pixels),
        MEAN_PSNR: _psnr(mean, pixels),
        **rare,
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


def deviation(frames: Tensor, mean: Tensor) -> Tensor:
    """How far each pixel is from the mean frame, in its worst colour: (n, 1, H, W)."""
    return (frames - mean).abs().amax(1, keepdim=True)


def warnings_of(figures: dict[str, float]) -> list[str]:
    """What is wrong with a codec, in words; empty if nothing is."""
    found = []
    if figures[PSNR] <= figures[MEAN_PSNR]:
        found.append(
            f"frames come back worse ({figures[PSNR]:.1f} dB) than if each were replaced by their "
            f"mean ({figures[MEAN_PSNR]:.1f} dB): nothing that this codec draws says what happens; "
            "train longer (--steps), or on more frames"
        )
    elif figures.get(RARE_PSNR, math.inf) <= figures.get(f"{RARE_PSNR}, of the mean frame", 0.0):
        found.append(
            "where frames differ from their mean, they come back no better than the mean: what "
            "moves is lost; train longer (--steps), or weigh it more (--rare)"
        )
    return found


@torch.no_grad()
def sheet(codec: FrameCodec, frames: Tensor) -> Image.Image:
    """Frames, what the codec makes of them, and the difference: three rows.

    They are evenly spaced among the frames, beside the one that loses most.

    Args:
        codec: Trained codec.
        frames: float (n, 3, H, W).
    """
    shown = codec.decode(codec.encode(frames)).to(frames.device)
    worst = int((shown - frames).square().flatten(1).mean(1).argmax())
    count = min(SHEET_FRAMES - 1, len(frames))
    chosen = [*sorted({i * len(frames) // count for i in range(count)}), worst]
    real, coded = frames_to_pixels(frames[chosen]), frames_to_pixels(shown[chosen])
    lost = (real.int() - coded.int()).abs().clamp(max=255).to(torch.uint8)
    height, width = real.shape[1:3]
    scale = max(1, 96 // max(height, width))
    gap, margin = 4, 64
    size = (margin + len(chosen) * (width * scale + gap), 3 * (height * scale + gap) + 16)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for row, (name, pictures) in enumerate((("real", real), ("coded", coded), ("lost", lost))):
        top = 16 + row * (height * scale + gap)
        pen.text((4, top + 4), name, fill="black")
        for column, picture in enumerate(pictures.numpy()):
            tile = Image.fromarray(np.ascontiguousarray(picture))
            tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            canvas.paste(tile, (margin + column * (width * scale + gap), top))
    pen.text((margin + (len(chosen) - 1) * (width * scale + gap), 2), "worst", fill="black")
    return canvas


def save_sheet(codec: FrameCodec, frames: Tensor, path: Path) -> None:
    """Writes `sheet` as a PNG."""
    sheet(codec, frames).save(path, format="PNG")


def _now(codec: FrameCodec) -> float:
    if codec.device.type == "cuda":
        torch.cuda.synchronize(codec.device)
    return time.perf_counter()


def _psnr(frames: Tensor, truth: Tensor) -> float:
    error = (frames.float() - truth.float()).square().mean().item()
    return 10 * math.log10(255**2 / max(error, 1e-10))


def _bit_equal(frames: Tensor, truth: Tensor, size: int) -> float:
    same = split_patches((frames == truth).movedim(-1, 1).float(), size)
    return (same.flatten(3).amin(3) == 1).float().mean().item()
