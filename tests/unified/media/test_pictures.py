"""One reader for all pictures: the right pixels, or a ValueError that names the picture."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from unified.media.pictures import BACKGROUND, MAX_PIXELS, fit_picture, read_picture

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
LEVELS = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
EIGHT_BITS = [[0, 0, 1, 1], [128, 254, 255, 255]]  # v / 257, to the nearest


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["path", "name", "bytes", "image", "array", "tensor"])
def test_the_same_pixels_come_from_a_file_its_bytes_an_image_and_an_array(tmp_path, form):
    image = Image.fromarray(COLOURS)
    image.save(tmp_path / "a.png")
    source = {
        "path": tmp_path / "a.png",
        "name": str(tmp_path / "a.png"),
        "bytes": saved(image),
        "image": image,
        "array": COLOURS,
        "tensor": torch.from_numpy(COLOURS).clone(),
    }[form]
    pixels = read_picture(source)
    assert pixels.dtype == np.uint8
    assert (pixels == COLOURS).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped_to_white(kind):
    for source in (saved(Image.fromarray(LEVELS), kind), Image.fromarray(LEVELS)):
        assert (read_picture(source) == np.array(EIGHT_BITS)[..., None]).all()
    colours = np.repeat(LEVELS[..., None], 3, axis=2)
    assert (read_picture(colours) == np.array(EIGHT_BITS)[..., None]).all()
    big_endian = Image.frombytes("I;16B", (4, 2), LEVELS.astype(">u2").tobytes())
    assert (read_picture(big_endian) == np.array(EIGHT_BITS)[..., None]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    values = np.linspace(0, 70000, 12).reshape(3, 4).astype(dtype)
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    for source in (tmp_path / "deep.tiff", Image.fromarray(values)):
        with pytest.raises(ValueError, match="nobody knows which is white; scale them to 0 to 255"):
            read_picture(source)
    with pytest.raises(ValueError, match=r"frame 3: .* dtype (int32|float32) cannot be read"):
        read_picture(np.repeat(values[..., None], 3, axis=2), "frame 3")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(orientation):
    upright = COLOURS
    turned = {  # what a camera stores, so that turning it back gives the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = saved(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    assert (read_picture(stored) == upright).all()


@pytest.mark.parametrize("form", ["RGBA", "array", "LA", "P", "I;16"])
def test_what_is_transparent_shows_the_background(form):
    alpha = np.array([[0, 51, 255]], np.uint8)
    ink = np.zeros((1, 3), np.uint8)
    pixels = np.stack([ink, ink, ink, alpha], -1)
    expected = [255, 204, 0]  # white, a fifth of black on white, black
    if form == "RGBA":
        source = saved(Image.fromarray(pixels))
    elif form == "array":
        source = pixels
    elif form == "LA":
        source = saved(Image.fromarray(np.stack([ink, alpha], -1)))
    elif form == "P":
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
        image.putpalette([9, 9, 9, 204, 204, 204, 0, 0, 0])
        source = saved(image, transparency=0)
    else:
        wide = np.array([[7, 204 * 257, 0]], np.uint16)
        source = saved(Image.fromarray(wide), transparency=7)
        if "transparency" not in Image.open(io.BytesIO(source)).info:
            source = Image.fromarray(wide)
            source.info["transparency"] = 7
    assert BACKGROUND == (255, 255, 255)
    assert read_picture(source)[0].tolist() == [[x] * 3 for x in expected]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "P"])
def test_other_modes_are_read_as_pil_converts_them(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    assert (read_picture(image) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_no_frame(tmp_path, kind):
    frames = [Image.fromarray(np.roll(COLOURS, i, 0)) for i in range(3)]
    path = tmp_path / f"walk.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"walk\.\w+ holds 3 pictures; save the one that is meant"):
        read_picture(path)
    with Image.open(path) as image:
        image.seek(1)
        assert read_picture(image.convert("RGB")).shape == (20, 30, 3)


def test_a_telephone_photo_with_a_preview_is_one_picture():
    image = Image.fromarray(COLOURS)
    stored = saved(image, "MPO", save_all=True, append_images=[image.resize((8, 8))])
    assert read_picture(stored).shape == (20, 30, 3)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "map.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=r"map\.png is too large"):
        read_picture(tmp_path / "map.png")
    side = int(MAX_PIXELS**0.5)
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        with pytest.raises(ValueError, match=r"map.png is 20000x20000 pixels \(height x width\)"):
            read_picture(tmp_path / "map.png")
    finally:
        Image.MAX_IMAGE_PIXELS = before
    broad = np.broadcast_to(np.zeros(3, np.uint8), (side, side + 1, 3))
    with pytest.raises(ValueError, match="make it smaller"):
        read_picture(broad)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_whatever_is_cut_or_broken_is_a_value_error_that_names_the_file(tmp_path, kind):
    whole = saved(Image.fromarray(np.tile(COLOURS, (5, 5, 1))), kind)
    rng = np.random.default_rng(0)
    path = tmp_path / "broken.bin"
    for trial in range(40):
        content = bytearray(whole)
        if trial % 2:
            content = content[: int(rng.integers(len(whole)))]
        else:
            for place in rng.integers(len(whole), size=20):
                content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            told = f"{path.name} was read"  # JPEG and BMP have no sums that would tell
            read_picture(path)
        except ValueError as error:
            told = str(error)
        assert "broken.bin" in told
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="broken.bin"):
        read_picture(path)


def test_paths_that_are_no_picture_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png does not exist"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match=f"{tmp_path.name} cannot be read as a picture"):
        read_picture(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"^\S*notes\.txt cannot be read as a picture"):
        read_picture(tmp_path / "notes.txt", "frame 2")
    with pytest.raises(ValueError, match=r"\.\.\.a+ cannot be read as a picture") as caught:
        read_picture("a" * 5000)
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_picture("a\0b.png")


def test_a_closed_picture_is_refused(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(ValueError, match="observation 1 cannot be read as a picture"):
        read_picture(image, "observation 1")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (None, "the picture is missing"),
        (COLOURS[..., 0], r"\(20, 30\) and dtype uint8 cannot be read"),
        (COLOURS.transpose(2, 0, 1), "np.moveaxis"),
        (COLOURS / 255, r"\(frame \* 255\)"),
        (COLOURS[:0], "0x30 pixels"),
        ({"a": 1}, "cannot be read"),
        ([[1], [1, 2]], "is no picture"),
        (3, "cannot be read"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_fix(source, hint):
    with pytest.raises(ValueError, match=hint):
        read_picture(source)


def test_an_open_file_is_refused_and_stays_open(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb", buffering=0) as file:
        with pytest.raises(
            ValueError, match=r"the frame is an open file \(FileIO\); give its path"
        ):
            read_picture(file, "the frame")
        assert np.array_equal(read_picture(file.read()), COLOURS)
    with pytest.raises(ValueError, match=r"open file \(BytesIO\)"):
        read_picture(io.BytesIO(saved(Image.fromarray(COLOURS))))
    with pytest.raises(ValueError, match=r"is no picture .*; give \(height, width, 3\) uint8"):
        read_picture(torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"))


def test_cropping_covers_the_frame_and_padding_shows_all_of_the_picture():
    blocks = COLOURS[:4, :8].repeat(2, 0).repeat(2, 1)  # 8 x 16
    assert (fit_picture(blocks, (4, 4), "crop") == COLOURS[:4, 2:6]).all()
    padded = fit_picture(blocks, (8, 8), "pad")
    assert (padded[2:6] == COLOURS[:4, :8]).all()
    assert not padded[:2].any()
    assert not padded[6:].any()
    assert fit_picture(blocks, (8, 16), "pad") is blocks
    with pytest.raises(ValueError, match="resize='stretch' is unknown; use one of crop, pad"):
        fit_picture(blocks, (4, 4), "stretch")  # pyright: ignore[reportArgumentType]


def test_reading_pictures_needs_no_torch():
    code = "import sys, unified.media.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
