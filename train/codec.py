"""Train a frame codec: `python -m train.codec --data DIR --out DIR`.

Training frames are real ones, and collages of the distinct patches seen in the data (and of all of
minigrid's sprites), drawn uniformly: three tiles fill nine tenths of a BabyAI frame, and the rare
ones must be exact too. Frames that are not made of tiles, as the data show, are learned alone, by
another architecture; there pixels weigh more where frames differ from their mean.

The folder gets the codec, its figures and a sheet of real and coded frames. A run that was cut off
goes on with `--resume`, to the very codec that it would have become.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from train.codec_figures import deviation, evaluate, evaluate_tiles, save_sheet, warnings_of
from train.patches import are_tiles, collages, distinct_patches, minigrid_sprites, read_frames
from unified.bf16 import warn_of_emulated_bf16
from unified.command import chosen_device, command
from unified.files import atomic_files, atomic_folder, write_json
from unified.media.codec import FrameCodec, join_patches, pixels_to_frames, split_patches
from unified.model.collator import generator_of

FIGURES_FILE = "figures.json"
SHEET_FILE = "sheet.png"
TRAINING_FOLDER = "training"
"""Holds what a run needs to go on, until the codec is there."""
STATE_FILE, STATE_INFO_FILE = "state.safetensors", "state.json"
CONFIGS = Path(__file__).resolve().parent.parent / "tokenizers_cfg" / "codec"
CONFIG = CONFIGS / "babyai.json"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What frames of a kind are trained with, where nothing else is said."""

    config: Path
    batch: int
    learning_rate: float
    noise: float
    rare: float


TILES = Kind(config=CONFIG, batch=6, learning_rate=4e-3, noise=0.6, rare=0.0)
SCENES = Kind(config=CONFIGS / "scene.json", batch=0, learning_rate=1.5e-3, noise=0.3, rare=4.0)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `python -m train.codec`."""

    data: Path
    """Folder of recorded episodes (data.prepare)."""
    out: Path
    """Folder that receives the codec."""
    config: Path | None = None
    """Codec architecture; by the frames if not given: `babyai.json` for tiles, else `scene.json`,
    both in `tokenizers_cfg/codec`."""
    init: Path | None = None
    """Codec to train further, instead of one of that architecture with random weights."""
    steps: int = 4000
    """Optimiser steps."""
    seed: int = 0
    """Seed of the weights and of the sampling."""
    batch: int | None = None
    """Collages per step; 0 for frames that are not made of tiles. By the frames if not given: 6
    or 0."""
    real_batch: int = 24
    """Real frames per step: all shape the latents' statistics, a sixth is decoded too, and all are
    where there are no collages."""
    learning_rate: float | None = None
    """Peak learning rate, reached after 5 % of the steps, then decayed to zero as a cosine; 0.004
    for tiles and 0.0015 for other frames if not given."""
    noise: float | None = None
    """Largest standard deviation of the noise added to latents in training; 0.6 for tiles and 0.3
    for other frames if not given."""
    rare: float | None = None
    """How much more a pixel weighs where a frame differs from the mean frame as much as it does on
    average: what is small and moves would be lost among what never changes. 0 for tiles and 4 for
    other frames if not given."""
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
    device: str | None = None
    """`cpu` or `cuda`; CUDA where there is one if not given."""
    resume: bool = False
    """Go on from what a run that was cut off has saved in `out`."""
    save_seconds: int = 60
    """Time between savings."""

    def filled(self, pixels: np.ndarray) -> Options:
        """The options with those that were left out: they depend on what the frames are."""
        is_tiles = are_tiles(pixels, self.patch) if self.batch is None else self.batch > 0
        kind = TILES if is_tiles else SCENES
        if self.batch is None:
            what = "are made of tiles" if is_tiles else "are not made of tiles"
            print(f"the frames {what}: {(self.config or kind.config).name}, --batch {kind.batch}")
        left_out = {n: value for n, value in vars(kind).items() if getattr(self, n) is None}
        return replace(self, **left_out)


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
    mean: Tensor,
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
        mean: The mean frame (3, H, W) of all real ones.
        options: Weights and limits.
        generator: Source of the noise and of the permutation.
        noise_scale: Share of the full noise, in [0, 1].

    Returns:
        The loss, and its parts as numbers.
    """
    collage = collages(bank, labels)
    frames = torch.cat([collage, real])
    latents = codec.encode_raw(frames)
    decoded = collage.shape[0] + (max(1, real.shape[0] // 6) if len(collage) else real.shape[0])
    level = 1.5 * torch.rand(decoded, 1, 1, 1, generator=generator) - 0.5
    assert options.noise is not None
    sigma = level.clamp(min=0) * options.noise * noise_scale  # a third clean
    noise = (sigma * torch.randn(latents[:decoded].shape, generator=generator)).to(latents.device)
    latents = latents.float()
    error = codec.decode_raw(latents[:decoded] + noise).float() - frames[:decoded]
    error_by_pixel = error.abs() + 4 * error.square()
    weights = rare_weights(frames[:decoded], mean, options.rare or 0.0)
    reconstruction = (weights * error_by_pixel).mean()

    of_collage, of_real = latents[: collage.shape[0]], latents[collage.shape[0] :]
    spread = of_real.transpose(0, 1).flatten(1)
    unit = spread.mean(1).square().mean() + (spread.std(1) + 1e-4).log().square().mean()
    far = (latents.abs() - options.bound).clamp(min=0).square().mean()
    parts = {"rec": reconstruction.item(), "unit": unit.item()}
    loss = reconstruction + 0.1 * unit + 2.0 * far
    if not len(collage):
        return loss, parts
    cells = codec.downsample_factor
    stride = bank.shape[-1] // cells
    per_patch = split_patches(of_collage, stride).flatten(3).flatten(0, 2)
    apart = separation_loss(per_patch, labels.flatten(), options.margin * stride)
    loss = loss + 0.02 * apart
    parts["apart"] = apart.item()
    if codec.patch_size is None and options.consistency:
        order = torch.randperm(labels[0].numel(), generator=generator).to(labels.device)
        moved = codec.encode_raw(collages(bank, labels.flatten(1)[:, order].view_as(labels)))
        patches = split_patches(of_collage, stride)
        expected = patches.flatten(1, 2)[:, order].view_as(patches)
        consistency = (moved - join_patches(expected)).square().mean()
        loss = loss + options.consistency * consistency
        parts["move"] = consistency.item()
    return loss, parts


def rare_weights(frames: Tensor, mean: Tensor, rare: float) -> Tensor:
    """Weight of each pixel in the reconstruction, 1 on average: (n, 1, H, W).

    Args:
        frames: (n, 3, H, W).
        mean: The mean frame (3, H, W).
        rare: How much a pixel weighs that deviates as much as pixels do on average, beside 1 for
            one that does not; 0 weighs all alike.
    """
    differs = deviation(frames, mean)
    weights = 1 + rare * differs / differs.mean().clamp(min=1e-6)
    return weights / weights.mean()


def learning_rate(step: int, options: Options) -> float:
    """Of a step: a twentieth of the run up to the peak, then down to zero as a cosine."""
    assert options.learning_rate is not None
    warmup = max(1, options.steps // 20)
    progress = max(0.0, (step - warmup) / max(1, options.steps - warmup))
    factor = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
    return options.learning_rate * factor


def train(
    codec: FrameCodec,
    bank: Tensor,
    real: Tensor,
    options: Options,
    saved: SavedRun | None = None,
) -> None:
    """Train the autoencoder in place, then measure its normalisation on the real frames.

    What a step draws is a function of (seed, step).

    Args:
        codec: Codec to train, on the device to train on.
        bank: float (patches, 3, size, size), distinct patches.
        real: float (n, 3, H, W), real training frames.
        options: Steps, weights, seed; none left out.
        saved: Where the run is saved, and goes on from; None keeps it in memory alone.
    """
    device = codec.device
    assert options.learning_rate is not None
    assert options.batch is not None
    optimizer = torch.optim.AdamW(codec.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    grid = tuple(side // bank.shape[-1] for side in real.shape[-2:])
    mean, bank = real.mean(0).to(device), bank.to(device)
    # Convolutions on CPUs like it.
    torch.nn.Module.to(codec.train(), memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    first = saved.load(codec, optimizer) if saved is not None else 0
    progress = tqdm(range(first, options.steps), "codec", options.steps, initial=first, unit="step")
    for step in progress:
        generator = generator_of(options.seed, step)
        labels = torch.randint(max(1, len(bank)), (options.batch, *grid), generator=generator)
        chosen = torch.randint(len(real), (options.real_batch,), generator=generator)
        frames = real[chosen].to(device)
        scale = min(1.0, 3 * step / options.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            loss, parts = codec_loss(
                codec, bank, labels.to(device), frames, mean, options, generator, scale
            )
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"The loss is {loss.item()} at step {step}; lower --learning-rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        if saved is not None and saved.is_time():
            saved.save(codec, optimizer, step + 1)
        if step % 20 == 0:
            progress.set_postfix({name: f"{value:.4f}" for name, value in parts.items()})
    torch.nn.Module.to(codec.eval(), memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    normalise(codec, real)


class SavedRun:
    """A run that can go on: weights and the optimiser's moments, in `out/training`.

    What is drawn and the learning rate are functions of the step, so that nothing else is kept.
    """

    def __init__(self, options: Options, frames: np.ndarray):
        """Looks for what was saved.

        Args:
            options: None left out.
            frames: That are trained on.

        Raises:
            ValueError: If there is a saved run, and nobody asked to go on; or it was another.
        """
        self.folder = options.out / TRAINING_FOLDER
        self.seconds = options.save_seconds
        self.last = time.monotonic()
        # Which device, how many threads: they may change, as the machine may.
        free = {"out", "threads", "device", "resume", "save_seconds", "data"}
        asked = {name: value for name, value in asdict(options).items() if name not in free}
        self.request = json.loads(json.dumps(asked, default=str))
        self.request["frames"] = hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()
        self.step = 0
        path = self.folder / STATE_INFO_FILE
        if not path.exists():
            return
        found = json.loads(path.read_text())
        if not options.resume:
            raise ValueError(
                f"{options.out} holds a run that was cut off at step {found['step']}; add --resume "
                "to go on, or choose another --out"
            )
        if found["request"] != self.request:
            names = [n for n, value in self.request.items() if found["request"].get(n) != value]
            raise ValueError(
                f"the run in {options.out} was begun with other {', '.join(names)}; repeat what "
                "was asked then, or choose another --out"
            )
        self.step = found["step"]

    def is_time(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, codec: FrameCodec, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Writes the state after so many steps, in place of the last one."""
        tensors = {f"codec.{n}": t.contiguous() for n, t in codec.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{n}": t.contiguous() for n, t in state.items()}
        with atomic_folder(self.folder) as draft:
            save_file(tensors, draft / STATE_FILE)
            write_json(draft / STATE_INFO_FILE, {"step": step, "request": self.request})
        self.last = time.monotonic()

    def load(self, codec: FrameCodec, optimizer: torch.optim.Optimizer) -> int:
        """Reads the state back, if there is one; returns the number of steps that are done.

        Raises:
            ValueError: If the file is broken.
        """
        if not self.step:
            return 0
        path = self.folder / STATE_FILE
        try:
            tensors = load_file(path)
        except Exception as error:  # safetensors raises a type of its own
            raise ValueError(
                f"{path} is broken ({error}); delete {self.folder} and begin anew"
            ) from error
        weights = {n[6:]: t for n, t in tensors.items() if n.startswith("codec.")}
        codec.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        print(f"going on from step {self.step}")
        return self.step


@torch.no_grad()
def normalise(codec: FrameCodec, real: Tensor) -> None:
    """Store the mean and standard deviation that the latents of real frames have, per channel.

    Args:
        codec: Trained codec.
        real: float (n, 3, H, W).
    """
    parts = real[:512].split(64)
    latents = torch.cat([codec.encode_raw(part.to(codec.device)) for part in parts])
    values = latents.transpose(0, 1).flatten(1)
    codec.mean.copy_(values.mean(1))
    codec.std.copy_(values.std(1).clamp(min=1e-6))


def main(options: Options) -> None:
    """Train a codec, save it, and print its figures.

    Raises:
        ValueError: If the frames cannot be trained on, the device cannot be used, or `out` holds
            another run.
    """
    device = chosen_device(options.device)
    if options.bf16:
        warn_of_emulated_bf16(torch.device(device).type)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    pixels = read_frames(options.data, options.frames, rng)
    if pixels.shape[1] % options.patch or pixels.shape[2] % options.patch:
        raise ValueError(
            f"Frames of {pixels.shape[1:3]} do not divide into patches of {options.patch}; set "
            "--patch."
        )
    options = options.filled(pixels)
    saved = SavedRun(options, pixels)
    frames = pixels_to_frames(pixels)
    bank = torch.zeros(0, 3, options.patch, options.patch)
    if options.batch:
        patches = distinct_patches(pixels, options.patch, options.max_patches, rng)
        print(f"{len(pixels)} frames, {len(patches)} distinct patches in them")
        if options.sprites and options.patch == 8:
            patches = np.unique(np.concatenate([patches, minigrid_sprites()]), axis=0)
        bank = pixels_to_frames(patches)
    if options.init is None:
        assert options.config is not None
        codec = FrameCodec.from_config(options.config)
    else:
        codec = FrameCodec.from_pretrained(options.init).requires_grad_(True)
    held_out = max(1, len(frames) // 10)
    train(codec.to(device), bank, frames[held_out:], options, saved)
    figures: dict[str, Any] = {}
    with atomic_files(options.out, replaces=(TRAINING_FOLDER,)) as draft:
        codec.save_pretrained(draft)
        codec = FrameCodec.from_pretrained(draft).to(device)
        figures |= evaluate(codec, frames[:held_out])
        if options.batch:
            generator = torch.Generator().manual_seed(options.seed + 1)
            codec.to("cpu")
            figures |= evaluate_tiles(codec, bank, frames[:held_out], generator)
        write_json(draft / FIGURES_FILE, figures)
        save_sheet(codec, frames[:held_out], draft / SHEET_FILE)
    for name, value in figures.items():
        print(f"{name:52s} {value:.6g}")
    for warning in warnings_of(figures):
        print(f"WARNING: {warning}")
    print(f"saved {options.out}, fingerprint {codec.fingerprint}; look at {SHEET_FILE}")


if __name__ == "__main__":
    with command("train.codec"):
        main(tyro.cli(Options, description=__doc__))
