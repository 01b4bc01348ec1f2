"""Frames as a video file."""

import io
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image


def encode_mp4(pictures: list[Image.Image], fps: float) -> bytes:
    """An H.264 video of RGB pictures; needs the package `av`.

    Args:
        pictures: Of one size; an odd side gets one more pixel, as the format wants it.
        fps: Pictures a second.

    Raises:
        ValueError: If they differ in size, or `av` is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("an MP4 needs the package av: pip install av; or save a GIF") from error
    if len({picture.size for picture in pictures}) > 1:
        raise ValueError("frames differ in size, a video's cannot; write a sheet or a GIF")
    width, height = pictures[0].size
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        for picture in pictures:
            even = np.pad(
                np.asarray(picture), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"
            )
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
