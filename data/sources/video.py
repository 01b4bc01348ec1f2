"""Frames of a video file, one after another."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def resized(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A uint8 frame in another height and width, each new pixel the mean of those it covers."""
    if size is None or frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))


def frames_of(
    file: Path, *, fps: float, begin: float = 0.0, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Decodes a video.

    Args:
        file: Anything that FFmpeg reads.
        fps: Frames a second that it has to have, within a hundredth.
        begin: Seconds to leave out.
        size: Height and width; None leaves frames as they are.

    Yields:
        `(H, W, 3)` uint8.

    Raises:
        ValueError: If the file is missing or broken, or runs at another speed.
    """
    import av
    from av.error import FFmpegError

    if not file.exists():
        raise ValueError(f"{file} is missing; copy the dataset with its videos")
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or fps)
            if abs(rate - fps) > 0.01 * fps:
                raise ValueError(
                    f"{file} has {rate:g} frames a second, the dataset says {fps:g}; mixed rates "
                    "cannot be read as one dataset"
                )
            if begin:
                assert stream.time_base is not None
                container.seek(int(begin / float(stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None and frame.time >= begin - 0.5 / fps:
                    yield resized(frame.to_ndarray(format="rgb24"), size)
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{file} cannot be decoded ({error}); copy it again") from error
