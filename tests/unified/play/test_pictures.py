"""Frames as files, and files of players as pixels."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.unified.parts import random_frames
from unified.play.pictures import fitted, moving_picture, picture_file, read_upload, wrong_tiles


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    out = io.BytesIO()
    image.save(out, format=kind)
    return base64.b64encode(out.getvalue()).decode()


def test_small_frames_come_back_to_the_last_bit_and_large_ones_if_asked():
    small, large = random_frames(1)[0], np.random.default_rng(0).integers(0, 256, (200, 200, 3))
    kind, content = picture_file(small)
    assert kind == "image/png"
    assert np.array_equal(np.array(Image.open(io.BytesIO(content))), small)
    assert picture_file(large.astype(np.uint8))[0] == "image/webp"
    kind, content = picture_file(large.astype(np.uint8), exact=True)
    assert np.array_equal(np.array(Image.open(io.BytesIO(content))), large)


def test_a_players_picture_is_read_and_fitted_with_a_word():
    image = Image.new("RGB", (112, 56), (10, 200, 30))
    pixels, note = fitted(read_upload(encoded(image)), (56, 56))
    assert pixels.shape == (56, 56, 3)
    assert (pixels == (10, 200, 30)).all()
    assert note == "the picture is 56x112; it is cropped and scaled to 56x56"
    assert fitted(pixels, (56, 56))[1] is None


def bomb() -> str:
    """A few bytes that claim to be 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
    parts = [chunk(b"IHDR", head), body, chunk(b"IEND", b"")]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no base64!", "not base64"),
        (base64.b64encode(b"hello").decode(), "cannot be read"),
        (encoded(Image.new("RGB", (8, 8)), "BMP"), "give a PNG, JPEG or WebP"),
        (base64.b64encode(bytes(3 * 2**20)).decode(), "more than 2,097,152 bytes"),
        (bomb(), "cannot be read|more than 8,388,608"),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused_before_it_is_decoded(text, message):
    with pytest.raises(ValueError, match=message):
        read_upload(text)


def test_a_tile_is_wrong_if_its_colours_are():
    truth = random_frames(1)[0]
    dream = truth.copy()
    dream[8:16, 16:24] = 255 - dream[8:16, 16:24]
    dream[0, 0] ^= 1  # what a codec loses is no difference
    assert wrong_tiles(dream, truth, 8) == [1 * 7 + 2]
    assert wrong_tiles(truth, truth, 8) == []


def test_a_moving_picture_holds_every_frame():
    frames = random_frames(3)
    with Image.open(io.BytesIO(moving_picture(frames, "gif", scale=2))) as image:
        assert (getattr(image, "n_frames", 1), image.size) == (3, (112, 112))
