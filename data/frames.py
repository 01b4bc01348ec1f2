"""What may stand in a data folder as a frame: a picture, and not numbers in the shape of one."""

import struct
from pathlib import Path

import numpy as np

from data.episode import EpisodeRecord, decode_png

LEAST_SIDE = 16
LEAST_VALUE = 16
WRAPPER = (
    "wrap the environment so that it shows pictures (minigrid: RGBImgPartialObsWrapper, or "
    "data.record, which renders), and record it again"
)
_HEADER = struct.Struct(">8x8xII")  # signature, length and name of the first chunk, width, height


def check_pictures(episode: EpisodeRecord) -> None:
    """Refuses an episode whose frames are no pictures, such as a grid of 7 x 7 codes.

    A single dark frame is a picture; an episode in which nothing is ever brighter than 15 of 255 is
    made of codes.

    Raises:
        ValueError: Naming episode, frame and what to do.
    """
    pngs = [segment.frame for segment in episode.segments if segment.frame is not None]
    for number, png in enumerate(pngs):
        width, height = _HEADER.unpack_from(png)
        check_size(height, width, f"episode {episode.id!r}, frame {number}")
    brightest = (int(decode_png(png).max()) for png in pngs)
    if pngs and all(value < LEAST_VALUE for value in brightest):
        raise ValueError(
            f"episode {episode.id!r}: all values of its frames stay below {LEAST_VALUE} of 255, as "
            f"codes do and pictures do not; {WRAPPER}; leave the episode out if it is dark"
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
