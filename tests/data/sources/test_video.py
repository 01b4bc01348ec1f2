"""Films are shown as players show them."""

import struct

import numpy as np
import pytest

from data.sources.video import frames_of
from tests.data.lerobot_files import SHAPE, write_video

ONE = 1 << 16


def turn_film(path, columns):
    """Writes the display matrix of a film's track: where a pixel at (x, y) is shown."""
    (a, c), (b, d) = columns
    matrix = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def shown_at(frame, columns):
    """The frame with each pixel put where the matrix says, shifted into the picture."""
    (a, c), (b, d) = columns
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    turned = np.zeros((down.max() + 1, right.max() + 1, 3), np.uint8)
    turned[down, right] = frame
    return turned


@pytest.mark.parametrize(
    "columns",
    [((1, 0), (0, 1)), ((0, -1), (1, 0)), ((-1, 0), (0, -1)), ((0, 1), (-1, 0))],
    ids=["upright", "right", "down", "left"],
)
def test_a_film_of_a_telephone_is_turned_as_it_says(columns, tmp_path):
    frame = np.full(SHAPE, 40, np.uint8)
    frame[:10, :20] = (220, 120, 60)
    write_video(tmp_path / "a.mp4", [frame, frame])
    turn_film(tmp_path / "a.mp4", columns)
    expected = shown_at(frame, columns)
    for _, shown in frames_of(tmp_path / "a.mp4"):
        assert shown.shape == expected.shape
        assert abs(shown.astype(int) - expected).max() <= 8  # colours went through YUV
    sizes = {shown.shape for _, shown in frames_of(tmp_path / "a.mp4", size=(16, 24))}
    assert sizes == {(16, 24, 3)}


def test_a_film_that_lies_askew_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", [np.full(SHAPE, 40, np.uint8)])
    turn_film(tmp_path / "a.mp4", ((1, -1), (1, 1)))
    with pytest.raises(ValueError, match=r"a.mp4 is turned by -45 degrees; encode it upright"):
        list(frames_of(tmp_path / "a.mp4"))
