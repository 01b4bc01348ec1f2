"""Frames of a video file: those of given moments, or all of a steady film."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.frames import check_size

TOLERANCE = 0.25
"""Of the time between two frames: how far a frame may lie from the moment that it shows."""


def is_next(before: float, now: float, interval: float) -> bool:
    """Whether one moment comes a frame after another: within half of the time between two.

    Args:
        before: Seconds.
        now: Seconds.
        interval: Between two frames, seconds.
    """
    return abs(now - before - interval) < 0.5 * interval


def resized(frame: np.ndarray, size: tuple[int, int] | None, name: str) -> np.ndarray:
    """A uint8 frame in another height and width, each new pixel the mean of those it covers.

    Args:
        frame: `(H, W, 3)`.
        size: Height and width; None leaves it as it is.
        name: What an error calls it.

    Raises:
        ValueError: If it is no picture but a grid of codes, which enlarging would hide.
    """
    check_size(frame.shape[0], frame.shape[1], name)
    if size is None or frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))


def side_by_side(frames: Sequence[np.ndarray], cameras: Sequence[str], name: str) -> np.ndarray:
    """What several cameras show at one moment, as one uint8 frame.

    Args:
        frames: One of each camera, `(H, W, 3)`.
        cameras: Their names.
        name: What an error calls the moment.

    Raises:
        ValueError: If they differ in height.
    """
    if len({len(frame) for frame in frames}) > 1:
        found = ", ".join(
            f"{camera}: {frame.shape[0]} x {frame.shape[1]}"
            for camera, frame in zip(cameras, frames, strict=True)
        )
        raise ValueError(
            f"{name}: cameras differ in height ({found}) and cannot stand side by side; give "
            "--size HEIGHT WIDTH, or choose among them with --cameras"
        )
    return np.concatenate(frames, axis=1)


def frames_of(
    file: Path, *, begin: float = 0.0, size: tuple[int, int] | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Decodes a video.

    Args:
        file: Anything that FFmpeg reads.
        begin: Seconds; a few frames before it may come, too.
        size: Height and width; None leaves frames as they are.

    Yields:
        When a frame is shown, in seconds, and the frame, `(H, W, 3)` uint8, turned as the film
        says that players show it.

    Raises:
        ValueError: If the file is missing or broken, or does not say when its frames are shown.
    """
    import av
    from av.error import FFmpegError

    if not file.exists():
        raise ValueError(f"{file} is missing; copy the dataset with its videos")
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            if begin > 0:
                assert stream.time_base is not None
                container.seek(int(begin / float(stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                if frame.time is None:
                    raise ValueError(f"{file} does not say when its frames are shown; remux it")
                turns, rest = divmod(frame.rotation, 90)  # against the clock
                if rest:
                    raise ValueError(
                        f"{file} is turned by {frame.rotation} degrees; encode it upright"
                    )
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                yield frame.time, resized(np.ascontiguousarray(pixels), size, f"a frame of {file}")
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{file} cannot be decoded ({error}); copy it again") from error


def rate_of(file: Path) -> float | None:
    """Frames a second of a video on the average, None if it does not say.

    Raises:
        ValueError: If it cannot be read.
    """
    import av
    from av.error import FFmpegError

    if not file.exists():
        raise ValueError(f"{file} is missing; copy the dataset with its videos")
    try:
        with av.open(str(file)) as container:
            rate = container.streams.video[0].average_rate
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{file} cannot be decoded ({error}); copy it again") from error
    return float(rate) if rate else None


def check_rate(file: Path, fps: float, tolerance: float) -> None:
    """Refuses a video of another speed.

    Args:
        file: Anything that FFmpeg reads.
        fps: Frames a second that it has to have.
        tolerance: How far it may be off, as a share.

    Raises:
        ValueError: If it runs at another speed, or cannot be read.
    """
    rate = rate_of(file) or fps
    if abs(rate - fps) > tolerance * fps:
        raise ValueError(
            f"{file} has {rate:g} frames a second, the dataset says {fps:g}; mixed rates cannot be "
            "read as one dataset"
        )


def frames_at(
    file: Path, times: Sequence[float], *, interval: float, size: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """The frames that a video shows at some moments: found by their time, never by counting.

    Args:
        file: Anything that FFmpeg reads.
        times: Seconds, rising.
        interval: Between two frames, seconds; a frame lies within a quarter of it.
        size: Height and width; None leaves frames as they are.

    Raises:
        ValueError: If the video shows no frame at one of the moments; names its row, from 0.
    """
    found: list[np.ndarray] = []
    near: tuple[float, np.ndarray] | None = None  # the frame before, with its time
    for time, frame in frames_of(file, begin=times[0] - interval, size=size):
        # A moment's frame is found once the next one is farther from it.
        while len(found) < len(times) and near is not None:
            wanted = times[len(found)]
            if abs(time - wanted) < abs(near[0] - wanted):
                break
            found.append(_checked(file, near, wanted, len(found), interval))
        near = time, frame
        if len(found) == len(times):
            break
    while near is not None and len(found) < len(times):
        if times[len(found)] > near[0] + TOLERANCE * interval:
            raise ValueError(
                f"{file} ends after {len(found)} of {len(times)} frames of an episode, at "
                f"{near[0]:.3f} s; it was cut off, copy it again"
            )
        found.append(_checked(file, near, times[len(found)], len(found), interval))
    if len(found) < len(times):
        raise ValueError(f"{file} shows nothing at {times[0]:.3f} s; it was cut off, copy it again")
    return found


def _checked(
    file: Path, shown: tuple[float, np.ndarray], wanted: float, row: int, interval: float
) -> np.ndarray:
    time, frame = shown
    if abs(time - wanted) > TOLERANCE * interval:
        raise ValueError(
            f"{file} has no frame for row {row}, at {wanted:.3f} s: the nearest is at "
            f"{time:.3f} s; a frame was lost, record or encode the episode again"
        )
    return frame


def steady_frames(
    file: Path, *, fps: float, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """All frames of a video that misses none.

    Args:
        file: Anything that FFmpeg reads.
        fps: Frames a second that it has to have.
        size: Height and width; None leaves frames as they are.

    Yields:
        `(H, W, 3)` uint8.

    Raises:
        ValueError: If it runs at another speed, or the time between two frames is not that of one.
    """
    check_rate(file, fps, 0.2)
    before: float | None = None
    for number, (time, frame) in enumerate(frames_of(file, size=size)):
        if before is not None and not is_next(before, time, 1 / fps):
            raise ValueError(
                f"{file}: frame {number} comes {time - before:.3f} s after the one before, not "
                f"{1 / fps:.3f} s; a frame was lost or doubled, and what follows would be matched "
                "to the wrong actions: leave the recording out"
            )
        before = time
        yield frame
