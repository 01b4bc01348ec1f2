"""Encode every frame of a data folder with a codec, once, so that training reads latents."""

import itertools
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.dataset import LATENTS_FILE, LATENTS_INFO_FILE, EpisodeDataset, read_latents_info
from unified.files import atomic_path, write_json
from unified.media.codec import FrameCodec, pixels_to_frames


def write_latents(
    folder: Path, codec: FrameCodec, *, batch: int = 256, device: str = "cpu"
) -> None:
    """Write `latents.npy`, float16 (frames, c, h, w) in row order, and `latents.json`, last.

    Latents that the same codec has already written are kept.

    Args:
        folder: A complete data folder.
        codec: Encodes them.
        batch: Frames per codec call.
        device: Torch device of the codec.

    Raises:
        ValueError: The folder is not complete, or frames differ in size.
    """
    if batch < 1:
        raise ValueError(f"batch {batch} must be at least 1")
    dataset = EpisodeDataset(folder)
    try:
        codec = codec.to(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} cannot be used ({error}); try cpu or cuda") from error
    if dataset.num_frames == 0:
        raise ValueError(f"{folder} holds no frames to encode; record or import some")
    info_path = folder / LATENTS_INFO_FILE
    if (read_latents_info(folder) or {}).get("codec") == codec.fingerprint:
        return
    first = next(itertools.chain.from_iterable(map(dataset.frames, range(len(dataset)))))
    size = codec.latent_size(*first.shape[:2])
    shape = (dataset.num_frames, codec.latent_channels, *size)
    info_path.unlink(missing_ok=True)
    with (
        atomic_path(folder / LATENTS_FILE) as temporary,
        tqdm(total=dataset.num_frames, unit="frame", desc="latents") as progress,
        torch.inference_mode(),
    ):
        latents = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        _reserve(temporary)
        done = 0
        pending: list[np.ndarray] = []
        for index in range(len(dataset)):
            frames = dataset.frames(index)
            for frame in frames:
                if frame.shape != first.shape:
                    raise ValueError(
                        f"{folder}: a frame of episode {index} has shape {frame.shape}, the first "
                        f"{first.shape}; one folder holds one frame size, split or resize"
                    )
            pending += frames
            last = index == len(dataset) - 1
            while len(pending) >= batch or (last and pending):
                pixels = torch.from_numpy(np.stack(pending[:batch])).to(device)
                encoded = codec.encode(pixels_to_frames(pixels)).to("cpu", torch.float16).numpy()
                if not np.isfinite(encoded).all():
                    raise ValueError(
                        f"codec {codec.fingerprint} gives NaN or infinity; train it again"
                    )
                latents[done : done + len(encoded)] = encoded
                done += len(encoded)
                del pending[:batch]
                progress.update(len(encoded))
        latents.flush()
        del latents
    write_json(
        info_path,
        {"codec": codec.fingerprint, "dtype": "float16", "shape": list(shape)},
    )


def _reserve(path: Path) -> None:
    """Takes the space of a mapped file: a disk that fills up later would end the program."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
