"""Frame codec: frames <-> normalised latents, over any frame-wise diffusers autoencoder."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from unified.files import atomic_files, check_weights, check_whole, read_json, write_json

AUTOENCODERS = ("AutoencoderTiny", "AutoencoderKL", "AutoencoderDC")
CODEC_FILE = "codec.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MAX_BATCH = 128


def pixels_to_frames(pixels: np.ndarray | Tensor) -> Tensor:
    """Turn uint8 pixels into frames.

    Args:
        pixels: uint8 (..., H, W, 3).

    Returns:
        float32 frames (..., 3, H, W) in [-1, 1].

    >>> pixels_to_frames(np.full((8, 8, 3), 255, np.uint8)).max().item()
    1.0
    """
    tensor = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    if tensor.dtype != torch.uint8 or tensor.ndim < 3 or tensor.shape[-1] != 3:
        raise ValueError(
            f"Pixels must be uint8 of shape (..., H, W, 3), got {tensor.dtype} "
            f"{tuple(tensor.shape)}; convert them with image.convert('RGB') and np.asarray."
        )
    return tensor.movedim(-1, -3).to(torch.float32).div(127.5).sub(1.0)


def frames_to_pixels(frames: Tensor) -> Tensor:
    """Turn frames into uint8 pixels, rounded to the nearest level and clipped.

    Args:
        frames: float (..., 3, H, W) in [-1, 1].

    Returns:
        uint8 pixels (..., H, W, 3).
    """
    _check_frames(frames)
    levels = frames.detach().to(torch.float32).add(1.0).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()


def split_patches(frames: Tensor, size: int) -> Tensor:
    """Cut frames into square patches.

    Args:
        frames: (n, channels, H, W), H and W multiples of `size`.
        size: Patch side in pixels.

    Returns:
        (n, H // size, W // size, channels, size, size).
    """
    n, channels, height, width = frames.shape
    cut = frames.reshape(n, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5)


def join_patches(patches: Tensor) -> Tensor:
    """Put patches together again; the inverse of `split_patches`.

    Args:
        patches: (n, rows, columns, channels, size, size).

    Returns:
        Frames (n, channels, rows * size, columns * size).
    """
    n, rows, columns, channels, size, _ = patches.shape
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, rows * size, columns * size)


class FrameCodec(nn.Module):
    """Encodes single frames to latents of zero mean and unit variance, and decodes them.

    With `patch_size`, the autoencoder sees one square patch at a time, so a latent depends on the
    pixels of its own patch and nothing else: moving a tile is copying a latent. Without it, the
    autoencoder sees whole frames.

    Args:
        autoencoder: A diffusers AutoencoderTiny, AutoencoderKL or AutoencoderDC.
        mean: Mean of the autoencoder's latents, one value per channel.
        std: Standard deviation of the autoencoder's latents, one positive value per channel.
        patch_size: Side in pixels of independently coded patches, a multiple of
            `downsample_factor`; None for whole frames.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        autoencoder: nn.Module,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        *,
        patch_size: int | None = None,
    ) -> None:
        super().__init__()
        name = type(autoencoder).__name__
        if name not in AUTOENCODERS:
            raise ValueError(
                f"Unsupported autoencoder {name}; use one of {', '.join(AUTOENCODERS)}."
            )
        self.autoencoder = autoencoder
        config = cast(Mapping[str, Any], autoencoder.config)
        prefix = "" if name == "AutoencoderKL" else "encoder_"
        widths = config[f"{prefix}block_out_channels"]
        self.latent_channels: int = config["latent_channels"]
        self.downsample_factor: int = 2 ** (len(widths) - 1)
        if patch_size is not None and (patch_size < 1 or patch_size % self.downsample_factor):
            raise ValueError(
                f"patch_size {patch_size} is not a multiple of the downsample factor "
                f"{self.downsample_factor}; use such a multiple, or None for whole frames."
            )
        self.patch_size = patch_size
        self.register_buffer("mean", self._statistic("mean", mean, 0.0))
        self.register_buffer("std", self._statistic("std", std, 1.0))
        if not bool((self.std > 0).all()):
            raise ValueError(
                f"Every std must be positive, got {self.std.tolist()}; measure them on real frames."
            )

    def _statistic(
        self, name: str, values: Sequence[float] | Tensor | None, default: float
    ) -> Tensor:
        if values is None:
            return torch.full((self.latent_channels,), default)
        tensor = torch.as_tensor(values, dtype=torch.float32).detach().clone()
        if tensor.shape != (self.latent_channels,) or not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{name} must hold {self.latent_channels} finite values, one per latent channel, "
                f"got {tensor.tolist()}."
            )
        return tensor

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the weights, and of what `encode` and `decode` return."""
        return next(self.autoencoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.mean.device

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights and the normalisation: equal codecs give equal latents."""
        kind = f"{type(self.autoencoder).__name__} patch_size={self.patch_size}"
        digest = hashlib.sha256(kind.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the latents of a frame of the given size in pixels.

        Args:
            height: Frame height, a multiple of the patch size (or of the downsample factor).
            width: Frame width, likewise.
        """
        unit = self.patch_size or self.downsample_factor
        if height < unit or width < unit or height % unit or width % unit:
            raise ValueError(f"Frame size {height}x{width} is not a multiple of {unit}; resize it.")
        return height // self.downsample_factor, width // self.downsample_factor

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames, the same frame always to the same latents (the mode of a KL posterior).

        Args:
            frames: float (..., 3, H, W) in [-1, 1].

        Returns:
            Normalised latents (..., c, h, w).
        """
        _check_frames(frames)
        rows, columns = self.latent_size(frames.shape[-2], frames.shape[-1])
        if frames.numel() and not bool(frames.detach().abs().amax() <= 1.001):
            raise ValueError(
                "Frames hold NaN or values outside [-1, 1]; use pixels_to_frames on uint8 images."
            )
        flat = frames.reshape(-1, *frames.shape[-3:])
        shape = (*frames.shape[:-3], self.latent_channels, rows, columns)
        if flat.shape[0] == 0:
            return flat.new_zeros(shape, device=self.device, dtype=self.dtype)
        batches = flat.to(self.device, self.dtype).split(MAX_BATCH)
        raw = torch.cat([self.encode_raw(batch) for batch in batches])
        latents = (raw - self.mean[:, None, None]) / self.std[:, None, None]
        return latents.to(self.dtype).reshape(shape)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to frames.

        Args:
            latents: float (..., c, h, w), normalised as `encode` gives them.

        Returns:
            Frames (..., 3, H, W), clipped to [-1, 1].
        """
        matches = latents.ndim >= 3 and latents.shape[-3] == self.latent_channels
        if not matches or not latents.is_floating_point():
            raise ValueError(
                f"Latents must be floats of shape (..., {self.latent_channels}, h, w), "
                f"got {latents.dtype} {tuple(latents.shape)}; use latents of this codec."
            )
        height, width = (side * self.downsample_factor for side in latents.shape[-2:])
        self.latent_size(height, width)
        if not bool(torch.isfinite(latents.detach()).all()):
            raise ValueError("Latents hold NaN or infinity; look for the step that made them.")
        flat = latents.reshape(-1, *latents.shape[-3:])
        shape = (*latents.shape[:-3], 3, height, width)
        if flat.shape[0] == 0:
            return flat.new_zeros(shape, device=self.device, dtype=self.dtype)
        parts = []
        for part in flat.to(self.device, self.dtype).split(MAX_BATCH):
            raw = part * self.std[:, None, None] + self.mean[:, None, None]
            parts.append(self.decode_raw(raw.to(self.dtype)).clamp(-1.0, 1.0))
        return torch.cat(parts).reshape(shape)

    def encode_raw(self, frames: Tensor) -> Tensor:
        """Encode without checks and without normalisation, for training.

        Args:
            frames: (n, 3, H, W) in [-1, 1].

        Returns:
            The autoencoder's own latents (n, c, h, w).
        """
        if self.patch_size is None:
            return self._autoencode(frames)
        # Worlds drawn from sprites repeat a few patches all the time: encode each of them once.
        patches = split_patches(frames, self.patch_size)
        flat = patches.flatten(3).flatten(0, 2)
        first, inverse = _distinct_rows(flat)
        latents = self._autoencode(flat[first].unflatten(1, patches.shape[3:]))
        return join_patches(latents[inverse].unflatten(0, patches.shape[:3]))

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Decode the autoencoder's own latents without checks and without clipping, for training.

        Args:
            latents: (n, c, h, w).

        Returns:
            Frames (n, 3, H, W), about in [-1, 1].
        """
        autoencoder = cast(Any, self.autoencoder)
        if self.patch_size is None:
            return autoencoder.decode(latents).sample
        patches = split_patches(latents, self.patch_size // self.downsample_factor)
        decoded = autoencoder.decode(patches.flatten(0, 2)).sample
        return join_patches(decoded.unflatten(0, patches.shape[:3]))

    def _autoencode(self, frames: Tensor) -> Tensor:
        output = cast(Any, self.autoencoder).encode(frames)
        match type(self.autoencoder).__name__:
            case "AutoencoderKL":
                return output.latent_dist.mode()
            case "AutoencoderDC":
                return output.latent
            case _:
                return output.latents

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any]) -> FrameCodec:
        """Build an untrained codec.

        Args:
            config: Mapping, or the path of a JSON file, with the keys `autoencoder` (a diffusers
                config with `_class_name`) and optionally `patch_size`.
        """
        content = dict(config) if isinstance(config, Mapping) else read_json(Path(config))
        settings = content.get("autoencoder")
        if not isinstance(settings, Mapping):
            raise ValueError(
                f"A codec config needs the key 'autoencoder', got {sorted(content)}; see "
                "codec/babyai.json."
            )
        autoencoder_class = _autoencoder_class(settings.get("_class_name"))
        return cls(
            autoencoder_class.from_config(dict(settings)), patch_size=content.get("patch_size")
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype | None = None) -> FrameCodec:
        """Load a codec saved by `save_pretrained`: frozen, in evaluation mode, on the CPU.

        Args:
            folder: Folder with a diffusers config.json, safetensors weights and codec.json.
            dtype: Floating point type of the weights; None means float32.
        """
        folder = Path(folder)
        check_whole(folder)
        stored = read_json(folder / CODEC_FILE)
        if not (folder / WEIGHTS_FILE).is_file():
            raise ValueError(f"No {WEIGHTS_FILE} in {folder}; save the codec again.")
        loader = _autoencoder_class(read_json(folder / "config.json").get("_class_name"))
        options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
        try:
            check_weights(folder / WEIGHTS_FILE)
            loaded, report = loader.from_pretrained(folder, output_loading_info=True, **options)
            if report["missing_keys"]:
                raise ValueError(f"weights {report['missing_keys'][:3]} are missing")
            codec = cls(loaded, stored["mean"], stored["std"], patch_size=stored["patch_size"])
            codec.eval().requires_grad_(False)
            # A setting that cannot be used shows when a frame is drawn with it.
            side = 2 * codec.downsample_factor
            codec.decode(codec.encode(torch.zeros(1, 3, side, side)))
        except KeyError as error:
            raise ValueError(f"{folder / CODEC_FILE} lacks {error}; save it again.") from error
        except Exception as error:
            raise ValueError(f"Cannot load the codec in {folder} ({error}); retrain.") from error
        for name, tensor in codec.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"tensor {name} in {folder / WEIGHTS_FILE} holds NaN or infinity; copy the "
                    "codec again, or retrain it"
                )
        if dtype is not None:
            codec.to(dtype)
        return codec

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers folder plus codec.json, all of it or nothing.

        Args:
            folder: Target folder, made if missing.
        """
        content = {
            "patch_size": self.patch_size,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }
        with atomic_files(Path(folder)) as scratch:
            cast(Any, self.autoencoder).save_pretrained(scratch, safe_serialization=True)
            config_file = scratch / "config.json"
            config = read_json(config_file)
            known = inspect.signature(type(self.autoencoder).__init__).parameters
            kept = [k for k in config if k in known or k in ("_class_name", "_diffusers_version")]
            write_json(config_file, {key: config[key] for key in sorted(kept)})
            write_json(scratch / CODEC_FILE, content)


def _distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find one row of each kind, and for every row which of those it equals."""
    order = torch.arange(rows.shape[0], device=rows.device)
    bits = rows.detach().to(torch.float32).contiguous().view(torch.int32).to(torch.int64)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device)
    hashes, inverse = torch.unique((bits * factors).sum(1), return_inverse=True)
    first = order.new_zeros(hashes.shape[0]).scatter_(0, inverse, order)
    if torch.equal(rows[first[inverse]], rows):
        return first, inverse
    return order, order  # two different rows share a hash: take all


def _autoencoder_class(name: Any) -> Any:
    if name not in AUTOENCODERS:
        raise ValueError(f"Unsupported autoencoder {name!r}; use one of {', '.join(AUTOENCODERS)}.")
    import diffusers

    return getattr(diffusers, name)


def _check_frames(frames: Tensor) -> None:
    if frames.ndim < 3 or frames.shape[-3] != 3 or not frames.is_floating_point():
        raise ValueError(
            f"Frames must be floats of shape (..., 3, H, W), got {frames.dtype} "
            f"{tuple(frames.shape)}; use pixels_to_frames on uint8 images."
        )
