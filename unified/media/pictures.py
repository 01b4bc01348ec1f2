"""Pictures from anywhere as `(H, W, 3)` uint8: files, bytes, PIL images and arrays.

Messages, the command line and every import read pictures here, so that one and the same file means
the same pixels everywhere. It needs no torch.
"""

import io
import logging
import os
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

MAX_PIXELS = 2**26
"""Of a picture, known from its header before anything is decoded: 8192 x 8192."""
BACKGROUND = (255, 255, 255)
"""What shines through where a picture is transparent: white."""
LEAST_SIDE = 16
"""Pixels of a picture's side: what is smaller is a grid of numbers in the shape of one."""
MAX_NAME = 200
"""Characters of a file's name that an error repeats."""

Fit = Literal["crop", "pad"]
"""How a picture of another size becomes a frame: scaled to cover it, with what hangs over cut off
on both sides, or scaled to lie within it, on black."""
FITS: tuple[str, ...] = get_args(Fit)

_WIDE = ("I;16", "I;16L", "I;16B", "I;16N")
_UNKNOWN_RANGE = ("I", "F")
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")


def read_picture(source: Any, name: str | None = None) -> np.ndarray:
    """Reads one picture as `(H, W, 3)` uint8.

    A picture is turned as its EXIF orientation says, laid on `BACKGROUND` where it is transparent,
    and scaled to 8 bits if it has 16: 65535 is white. Grey becomes red, green and blue.

    Args:
        source: Path of a file, its bytes, a PIL image, or an array: `(H, W, 3)` or `(H, W, 4)`,
            uint8 or uint16. A tensor counts as an array, on whatever device it lies.
        name: What an error calls it, if it is no file.

    Raises:
        ValueError: If it cannot be read, has more than `MAX_PIXELS`, is animated, or holds numbers
            whose range nobody knows (32 bits, floats).
    """
    if isinstance(source, str | os.PathLike):
        name = shortened(source)
    name = name or "the picture"
    if source is None:
        raise ValueError(f"{name} is missing; give a PIL image, a uint8 array, or a file")
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, name)
        if isinstance(source, str | os.PathLike | bytes):
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return _pixels(image, name)
    except _RefusedError:
        raise
    except Image.DecompressionBombError as error:
        raise _RefusedError(f"{name} is too large ({error}); make it smaller") from error
    except FileNotFoundError as error:
        raise ValueError(f"{name} does not exist; give the path of a PNG or JPEG file") from error
    except Exception as error:  # PIL's readers raise whatever a broken file leads them to
        reason = str(error) if len(str(error)) < 200 else type(error).__name__
        raise ValueError(
            f"{name} cannot be read as a picture ({reason}); give a whole PNG or JPEG file"
        ) from error
    return _from_array(source, name)


def fit_picture(pixels: np.ndarray, size: tuple[int, int], how: Fit) -> np.ndarray:
    """A picture in another size; each new pixel is the mean of those that it covers.

    Args:
        pixels: `(H, W, 3)` uint8.
        size: Height and width that are wanted.
        how: "crop" or "pad", see `Fit`.

    Raises:
        ValueError: If `how` is neither.
    """
    check_fit(how)
    if pixels.shape[:2] == size:
        return pixels
    change = ImageOps.fit if how == "crop" else ImageOps.pad
    image = change(Image.fromarray(pixels), (size[1], size[0]), method=Image.Resampling.BOX)
    return np.array(image)


def sized_picture(
    pixels: np.ndarray,
    name: str,
    size: tuple[int, int],
    resize: Fit | None,
    told: set[tuple[int, ...]],
) -> np.ndarray:
    """A picture in the size of a model's frames, as it is or fitted.

    Args:
        pixels: `(H, W, 3)` uint8.
        name: What an error calls it.
        size: Height and width of the model's frames.
        resize: How to fit it; None refuses it.
        told: Sizes of pictures that the log has told of; is added to.

    Raises:
        ValueError: If it has another size and `resize` is None, or is no picture but a grid of
            codes.
    """
    height, width, _ = pixels.shape
    if (height, width) == size:
        return pixels
    if resize is None:
        raise ValueError(
            f"{name} is {height}x{width} pixels, this model's frames are {size[0]}x{size[1]} "
            "(height x width); pass --resize crop or --resize pad to a command, or "
            "resize='crop' or 'pad' to UnifiedProcessor.from_pretrained"
        )
    if min(height, width) < min(LEAST_SIDE, *size):
        raise ValueError(
            f"{name} is {height}x{width} pixels, which is no picture but numbers in the shape of "
            f"one; give what the environment renders, of at least {LEAST_SIDE} pixels a side"
        )
    if (height, width) not in told:
        told.add((height, width))
        done = "cropped" if resize == "crop" else "padded"
        logger.warning(
            f"{name} is {height}x{width} pixels; it is {done} and scaled to the model's "
            f"{size[0]}x{size[1]}, as all frames of its size"
        )
    return fit_picture(pixels, size, resize)


def check_fit(how: Any) -> None:
    """Refuses what is no `Fit`."""
    if how not in FITS:
        raise ValueError(f"resize={how!r} is unknown; use one of {', '.join(FITS)}")


def shortened(path: Any) -> str:
    """A file's name for an error: as it is, or its end if it is very long."""
    name = str(os.fspath(path))
    return name if len(name) <= MAX_NAME else f"...{name[-MAX_NAME:]}"


class _RefusedError(ValueError):
    """A picture that could be read, but is not taken."""


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise _RefusedError(
            f"{name} is {height}x{width} pixels (height x width), more than {MAX_PIXELS:,}; make "
            "it smaller"
        )


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """Of an image that PIL has opened; nothing is decoded before it is known to be taken."""
    _check_size(*image.size, name)
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # a photo with a preview, as telephones take them
        raise _RefusedError(
            f"{name} holds {count} pictures; save the one that is meant, or give each by itself"
        )
    if image.mode in _UNKNOWN_RANGE:
        raise _RefusedError(
            f"{name} has pixels of 32 bits (mode {image.mode}), and nobody knows which is white; "
            "scale them to 0 to 255 and save it with 8 bits"
        )
    hidden = image.info.get("transparency")
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE:
        wide = np.asarray(image)
        pixels = np.repeat(_eight_bits(wide)[..., None], 3, axis=2)
        if hidden is not None:  # the one level that stands for nothing
            pixels[wide == hidden] = BACKGROUND
        return pixels
    if hidden is not None or image.mode in _TRANSPARENT:
        return _on_background(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _from_array(source: Any, name: str) -> np.ndarray:
    if hasattr(source, "read"):  # a file has a method detach, too, which takes its content away
        raise ValueError(
            f"{name} is an open file ({type(source).__name__}); give its path, or what its read() "
            "returns"
        )
    try:
        if hasattr(source, "detach") and hasattr(source, "cpu"):  # a tensor, perhaps on a GPU
            source = source.detach().cpu()
        pixels = np.asarray(source)
    except Exception as error:
        raise ValueError(
            f"{name} is no picture ({error}); give (height, width, 3) uint8"
        ) from error
    if (
        pixels.dtype not in (np.uint8, np.uint16)
        or pixels.ndim != 3
        or pixels.shape[2] not in (3, 4)
    ):
        raise ValueError(
            f"{name}: a frame of shape {pixels.shape} and dtype {pixels.dtype} cannot be read; "
            "give (height, width, 3) uint8 or a PIL image" + _hint(pixels)
        )
    height, width, channels = pixels.shape
    if not height or not width:
        raise ValueError(f"{name} is {height}x{width} pixels; give one that is not empty")
    _check_size(width, height, name)
    pixels = _eight_bits(pixels)
    return _on_background(pixels) if channels == 4 else pixels


def _hint(pixels: np.ndarray) -> str:
    """What to do with an array that is nearly right."""
    if np.issubdtype(pixels.dtype, np.floating):
        return "; if its numbers lie in [0, 1]: (frame * 255).round().astype(np.uint8)"
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4):
        return "; if its channels come first: np.moveaxis(frame, 0, -1)"
    return ""


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 as uint8, 65535 as 255, to the nearest level; uint8 as it is."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_background(pixels: np.ndarray) -> np.ndarray:
    """`(H, W, 4)` uint8 as `(H, W, 3)`, laid on the background."""
    colour, alpha = pixels[..., :3].astype(np.uint32), pixels[..., 3:].astype(np.uint32)
    under = np.array(BACKGROUND, np.uint32)
    return ((colour * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)
