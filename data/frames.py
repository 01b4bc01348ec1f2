"""What may stand in a data folder as a frame: a picture, and not numbers in the shape of one."""

import struct
from pathlib import Path

import numpy as np

from data.episode import EpisodeRecord, decode_png, first_frame
from unified.media.pictures import LEAST_SIDE

LEAST_VALUE = 16
WRAPPER = (
    "wrap the environment so that it shows pictures (minigrid: RGBImgPartialObsWrapper, or "
    "data.record, which renders), and record it again"
)
_HEADER = struct.Struct(">8x8xII")  # signature, length and name of the first chunk, width, height


def check_pictures(episode: EpisodeRecord, sizes: dict[tuple[int, int], str] | None = None) -> None:
    """Refuses an episode whose frames are no pictures, such as a grid of 7 x 7 codes.

    A single dark frame is a picture; an episode in which nothing is ever brighter than 15 of 255 is
    made of codes.

    Args:
        episode: To be written.
        sizes: Heights and widths that other episodes have, and where; is added to.

    Raises:
        ValueError: Naming episode, frame and what to do; also if frames differ in size.
    """
    sizes = {} if sizes is None else sizes
    pngs = [segment.frame for segment in episode.segments if segment.frame is not None]
    for number, png in enumerate(pngs):
        height, width = png_size(png)
        name = f"episode {episode.id!r}, frame {number}"
        check_size(height, width, name)
        check_one_size(height, width, name, sizes)
    brightest = (int(decode_png(png).max()) for png in pngs)
    if pngs and all(value < LEAST_VALUE for value in brightest):
        raise ValueError(
            f"episode {episode.id!r}: all values of its frames stay below {LEAST_VALUE} of 255, as "
            f"codes do and pictures do not; {WRAPPER}; leave the episode out if it is dark"
        )


def png_size(png: bytes) -> tuple[int, int]:
    """Height and width of a PNG, from its header alone."""
    width, height = _HEADER.unpack_from(png)
    return height, width


def frame_size(shard: Path) -> tuple[int, int] | None:
    """Height and width of the first frame of a Parquet file, None if it has none."""
    png = first_frame(shard)
    return None if png is None else png_size(png)


def check_one_size(height: int, width: int, name: str, sizes: dict[tuple[int, int], str]) -> None:
    """Refuses a frame of another size than those before it: a model has frames of one size.

    Args:
        height: Of the frame.
        width: Of the frame.
        name: What an error calls it.
        sizes: Heights and widths that were met before, and where; is added to.

    Raises:
        ValueError: Naming it and what to do.
    """
    sizes.setdefault((height, width), name)
    if len(sizes) > 1:
        found = ", ".join(f"{where} is {h} x {w}" for (h, w), where in sizes.items())
        raise ValueError(
            f"frames differ in size ({found}); give --size HEIGHT WIDTH, or resize them"
        )


def check_size(height: int, width: int, name: str) -> None:
    """Refuses a frame that is too small for a picture.

    Raises:
        ValueError: Naming it and what to do.
    """
    if min(height, width) < LEAST_SIDE:
        raise ValueError(
            f"{name} is {height} x {width} pixels, which is no picture but numbers in the shape of "
            f"one: a side has at least {LEAST_SIDE} pixels; {WRAPPER}"
        )


def is_blank_end(previous: np.ndarray, last: np.ndarray) -> bool:
    """Whether an episode's last frame shows nothing: all of one kind, and far from the one before.

    Some environments render black once they are over. A frame before that looked the same is what
    the world is like.

    Args:
        previous: The frame before, uint8 `(H, W, 3)`.
        last: The last one.
    """
    one, other = last.astype(np.float64), previous.astype(np.float64)
    is_plain = bool((one.std((0, 1)) < 1.0).all())
    return is_plain and bool(other.std((0, 1)).max() >= 1.0) and np.abs(one - other).mean() > 4.0


def named_inside(folder: Path, name: str) -> Path:
    """A file that a folder's own description names, if the name stays in the folder.

    Links are followed: downloads are often folders of links.

    Raises:
        ValueError: If the name is absolute, or leads up by dots.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{name!r} lies outside of {folder}; name a file below it")
    return folder / path
