"""Pictures on the wire: frames as files, and files of players as pixels."""

import base64
import binascii
import io

import numpy as np
from PIL import Image

from unified.media.pictures import fit_picture, read_picture
from unified.media.video import encode_mp4
from unified.play.protocol import MAX_PICTURE

MAX_PIXELS = 2**23
"""Of a player's picture, known from its header before anything is decoded."""
EXACT_PIXELS = 128 * 128
"""Frames up to here are sent without loss."""
RIGHT = 2.0
"""A tile is right if its colours differ by less than this on average, of 255. On BabyAI's tiles the
codec itself differs by at most 1.3, and two sprites by at least 4.0."""
FORMATS = ("PNG", "JPEG", "WEBP")


def picture_file(pixels: np.ndarray, exact: bool = False) -> tuple[str, bytes]:
    """Media type and content of a frame `(H, W, 3)` uint8: PNG if it is small, else WebP.

    Args:
        pixels: The frame.
        exact: Whether it is PNG in any case.
    """
    out = io.BytesIO()
    if exact or pixels.shape[0] * pixels.shape[1] <= EXACT_PIXELS:
        Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
        return "image/png", out.getvalue()
    Image.fromarray(pixels).save(out, format="WEBP", quality=85, method=0)
    return "image/webp", out.getvalue()


def read_upload(text: str) -> np.ndarray:
    """A player's picture as `(H, W, 3)` uint8.

    Args:
        text: A file in base64.

    Raises:
        ValueError: If it is no picture, or too large; nothing is decoded before that is known.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the picture is not base64 ({error}); send a file in base64") from error
    if len(content) > MAX_PICTURE:
        raise ValueError(f"the picture has more than {MAX_PICTURE:,} bytes; make it smaller")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # PIL's readers raise whatever a broken file leads them to
        raise ValueError("the picture cannot be read; give a PNG, JPEG or WebP file") from error
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the picture is {height}x{width} pixels (height x width), more than {MAX_PIXELS:,}; "
            "make it smaller"
        )
    return read_picture(content, "the picture")


def fitted(pixels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, str | None]:
    """A picture in the size of the model's frames, and what was done to it, if anything."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels, None
    note = f"the picture is {height}x{width}; it is cropped and scaled to {size[0]}x{size[1]}"
    return fit_picture(pixels, size, "crop"), note


def wrong_tiles(dream: np.ndarray, truth: np.ndarray, side: int) -> list[int]:
    """Indices of the tiles of a dream, row by row, that differ from the truth.

    Args:
        dream: `(H, W, 3)` uint8.
        truth: Likewise.
        side: Pixels of a tile.
    """
    rows, columns = dream.shape[0] // side, dream.shape[1] // side
    gap = np.abs(dream.astype(np.int16) - truth.astype(np.int16))[: rows * side, : columns * side]
    mean = gap.reshape(rows, side, columns, side, 3).mean((1, 3, 4))
    return np.flatnonzero(mean >= RIGHT).tolist()


FRAME_MILLISECONDS = 200
"""How long a moving picture shows a frame; the last of a GIF stays five times as long."""


def moving_picture(frames: list[np.ndarray], what: str, scale: int = 4) -> bytes:
    """Frames `(H, W, 3)` uint8 as a file; each pixel becomes `scale` x `scale`.

    Args:
        frames: Of one size.
        what: `gif`, which repeats, or `mp4`, which needs the package `av`.
        scale: How much larger.

    Raises:
        ValueError: If `av` is missing.
    """
    images = [Image.fromarray(f.repeat(scale, 0).repeat(scale, 1)) for f in frames]
    if what == "mp4":
        return encode_mp4(images, 1000 / FRAME_MILLISECONDS)
    out = io.BytesIO()
    images[0].save(
        out,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[FRAME_MILLISECONDS] * (len(images) - 1) + [5 * FRAME_MILLISECONDS],
        loop=0,
    )
    return out.getvalue()
