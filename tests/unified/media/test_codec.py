"""The frame codec: exact pixels at the edges, local latents, stored normalisation, whole files."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from unified.media.codec import (
    CODEC_FILE,
    MAX_BATCH,
    WEIGHTS_FILE,
    FrameCodec,
    frames_to_pixels,
    join_patches,
    pixels_to_frames,
    split_patches,
)

WIDTHS = [8, 8, 8, 8]
TINY = {
    "_class_name": "AutoencoderTiny",
    "latent_channels": 8,
    "encoder_block_out_channels": WIDTHS,
    "decoder_block_out_channels": WIDTHS,
    "num_encoder_blocks": [0, 0, 1, 1],
    "num_decoder_blocks": [1, 1, 0, 0],
}
KL = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": WIDTHS,
    "latent_channels": 5,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
DC = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 4,
    "attention_head_dim": 4,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": WIDTHS,
    "decoder_block_out_channels": WIDTHS,
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [], []],
    "decoder_qkv_multiscales": [[], [], [], []],
}


@pytest.fixture(autouse=True)
def _one_thread():
    """These convolutions are too small to share; two threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(autoencoder=None, patch_size=None, seed=0) -> FrameCodec:
    torch.manual_seed(seed)
    config = {"autoencoder": autoencoder or TINY, "patch_size": patch_size}
    return FrameCodec.from_config(config).eval().requires_grad_(False)


def frames(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) * 2 - 1


def test_every_pixel_level_survives_the_way_to_frames_and_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    there = pixels_to_frames(levels)
    assert there.min() == -1.0
    assert there.max() == 1.0
    assert there[:, 0, 1].tolist() == pytest.approx([1 / 127.5 - 1] * 3)
    assert np.array_equal(frames_to_pixels(there).numpy(), levels)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_patches_join_to_the_frame_they_were_cut_from(n, rows, columns, size):
    whole = frames(n, 3, rows * size, columns * size)
    patches = split_patches(whole, size)
    assert patches.shape == (n, rows, columns, 3, size, size)
    assert torch.equal(patches[:, -1, 0], whole[:, :, (rows - 1) * size :, :size])
    assert torch.equal(join_patches(patches), whole)


@pytest.mark.parametrize("config", [TINY, KL, DC], ids=lambda config: config["_class_name"])
@pytest.mark.parametrize("patch_size", [None, 16])
def test_each_autoencoder_gives_the_promised_shapes_and_the_same_latents_twice(config, patch_size):
    codec = make(config, patch_size)
    x = frames(2, 3, 3, 32, 48)
    latents = codec.encode(x)
    assert latents.shape == (2, 3, config["latent_channels"], 4, 6)
    assert codec.latent_size(32, 48) == (4, 6)
    assert torch.equal(latents, codec.encode(x))
    decoded = codec.decode(latents * 50)
    assert decoded.shape == x.shape
    assert decoded.abs().max() <= 1.0
    torch.testing.assert_close(codec.encode(x[1, 2]), latents[1, 2], rtol=1e-5, atol=1e-5)


def test_more_frames_than_fit_one_pass_equal_single_frames():
    codec = make(patch_size=8)
    x = frames(MAX_BATCH + 2, 3, 16, 16)
    latents = codec.encode(x)
    decoded = codec.decode(latents)
    for index in (0, MAX_BATCH - 1, MAX_BATCH, MAX_BATCH + 1):
        z = codec.encode(x[index])
        torch.testing.assert_close(latents[index], z, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(decoded[index], codec.decode(z), rtol=1e-5, atol=1e-5)


def test_coding_distinct_patches_once_equals_coding_every_patch():
    codec = make(patch_size=8)
    bank = frames(5, 3, 8, 8)
    labels = torch.randint(5, (4, 7, 7), generator=torch.Generator().manual_seed(2))
    x = join_patches(bank[labels])
    alone = cast(Any, codec.autoencoder).encode(bank).latents[:, :, 0, 0]
    expected = alone[labels].permute(0, 3, 1, 2)
    torch.testing.assert_close(codec.encode(x), expected, rtol=1e-5, atol=1e-6)


def test_with_patches_a_pixel_changes_the_latent_of_its_own_patch_only():
    codec = make(patch_size=8)
    x = frames(1, 3, 56, 56)
    changed = x.clone()
    changed[..., 17, 30] = 0.9
    moved = (codec.encode(x) - codec.encode(changed)).abs().amax(1)[0]
    assert moved[2, 3] > 1e-4
    moved[2, 3] = 0
    assert moved.max() <= 1e-6
    z = codec.encode(x)
    z2 = z.clone()
    z2[..., 2, 3] += 1
    difference = split_patches(codec.decode(z) - codec.decode(z2), 8).abs().amax((0, 3, 4, 5))
    assert difference[2, 3] > 1e-4
    difference[2, 3] = 0
    assert difference.max() <= 1e-6


def test_normalisation_is_applied_in_encode_and_undone_in_decode():
    plain = make(patch_size=8)
    mean, std = torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8)
    scaled = FrameCodec(plain.autoencoder, mean, std, patch_size=8)
    x = frames(2, 3, 16, 16)
    z = plain.encode(x)
    expected = (z - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(scaled.encode(x), expected)
    torch.testing.assert_close(scaled.decode(expected), plain.decode(z))


@pytest.mark.parametrize("patch_size", [None, 8])
def test_a_saved_codec_loads_bit_equal(tmp_path, patch_size):
    torch.manual_seed(0)
    codec = make(patch_size=patch_size)
    codec = FrameCodec(codec.autoencoder, torch.rand(8), torch.rand(8) + 0.5, patch_size=patch_size)
    codec.save_pretrained(tmp_path)
    codec.save_pretrained(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted([CODEC_FILE, WEIGHTS_FILE, "config.json"])
    loaded = FrameCodec.from_pretrained(tmp_path)
    x = frames(2, 3, 24, 24)
    assert torch.equal(loaded.encode(x), codec.encode(x))
    assert loaded.fingerprint == codec.fingerprint
    assert not any(p.requires_grad for p in loaded.parameters())
    half = FrameCodec.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == torch.float16
    half.save_pretrained(tmp_path / "half")
    again = FrameCodec.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.encode(x), codec.encode(x), rtol=0.02, atol=0.02)


def test_the_fingerprint_tells_codecs_apart():
    codec = make(patch_size=8)
    prints = {
        codec.fingerprint,
        make(patch_size=None).fingerprint,
        make(patch_size=8, seed=1).fingerprint,
    }
    codec.mean += 0.5
    prints.add(codec.fingerprint)
    assert len(prints) == 4
    assert make(patch_size=8).fingerprint == make(patch_size=8).fingerprint


def test_no_frames_give_no_latents():
    codec = make(patch_size=8)
    assert codec.encode(torch.zeros(0, 3, 16, 16)).shape == (0, 8, 2, 2)
    assert codec.decode(torch.zeros(0, 8, 2, 2)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 56, 56, dtype=torch.uint8), "pixels_to_frames"),
        (torch.zeros(56, 56, 3), "shape"),
        (torch.zeros(56, 56), "shape"),
        (torch.zeros(3, 56, 55), "multiple of 8"),
        (torch.zeros(3, 4, 56), "multiple of 8"),
        (torch.full((3, 8, 8), 255.0), r"\[-1, 1\]"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
    ],
)
def test_bad_frames_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        make(patch_size=8).encode(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(7, 2, 2), "8, h, w"),
        (torch.zeros(8, 2), "shape"),
        (torch.zeros(8, 2, 2, dtype=torch.int64), "floats"),
        (torch.full((8, 2, 2), float("nan")), "NaN"),
        (torch.full((8, 2, 2), float("inf")), "infinity"),
        (torch.zeros(8, 1, 2), "multiple of 16"),
    ],
)
def test_bad_latents_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        make(patch_size=16 if bad.shape[-2] == 1 else 8).decode(bad)


def test_bad_pixels_are_refused():
    for bad in (np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            pixels_to_frames(bad)
    for bad in (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, 3)):
        with pytest.raises(ValueError, match="floats"):
            frames_to_pixels(bad)


def test_bad_settings_are_refused():
    good = make(patch_size=8).autoencoder
    cases: list[tuple[dict[str, Any], str]] = [
        ({"patch_size": 12}, "multiple"),
        ({"mean": [0.0]}, "8 finite"),
        ({"std": [float("nan")] * 8}, "finite"),
        ({"std": [0.0] * 8}, "positive"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            FrameCodec(good, **arguments)
    with pytest.raises(ValueError, match="AutoencoderKL"):
        FrameCodec(torch.nn.Linear(2, 2))
    for config in ({}, {"autoencoder": {"_class_name": "AutoencoderHuge"}}):
        with pytest.raises(ValueError, match="autoencoder"):
            FrameCodec.from_config(config)


def test_missing_or_corrupt_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=CODEC_FILE):
        FrameCodec.from_pretrained(tmp_path / "nowhere")
    make(patch_size=8).save_pretrained(tmp_path)
    stored = (tmp_path / CODEC_FILE).read_text()
    for text, message in (
        ("{", "JSON"),
        ("[]", "object"),
        ('{"mean": []}', "lacks"),
        ("{}", "lacks"),
    ):
        (tmp_path / CODEC_FILE).write_text(text)
        with pytest.raises(ValueError, match=message):
            FrameCodec.from_pretrained(tmp_path)
    (tmp_path / CODEC_FILE).write_text(stored)
    weights = (tmp_path / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="Cannot load the codec"):
        FrameCodec.from_pretrained(tmp_path)
    tensors = load(weights)
    tensors.pop(sorted(tensors)[0])
    (tmp_path / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    with pytest.raises(ValueError, match="missing"):
        FrameCodec.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match=WEIGHTS_FILE):
        FrameCodec.from_pretrained(tmp_path)


def test_the_file_of_the_normalisation_can_be_read_by_people(tmp_path):
    make(patch_size=8).save_pretrained(tmp_path)
    content = json.loads((tmp_path / CODEC_FILE).read_text())
    assert content == {"patch_size": 8, "mean": [0.0] * 8, "std": [1.0] * 8}
