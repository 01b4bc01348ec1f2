"""Training of the frame codec: its data, its losses, and that it learns."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.babyai.recorder import Recorder
from data.episode import decode_png, write_shard
from train import codec as codec_training
from train.codec import (
    SCENES,
    TILES,
    Options,
    SavedRun,
    main,
    normalise,
    rare_weights,
    separation_loss,
    train,
)
from train.codec_figures import (
    MEAN_PSNR,
    PSNR,
    RARE_PSNR,
    evaluate,
    evaluate_tiles,
    sheet,
    warnings_of,
)
from train.patches import (
    are_tiles,
    collages,
    distinct_patches,
    minigrid_sprites,
    read_frames,
)
from unified.media.codec import FrameCodec, frames_to_pixels, pixels_to_frames

SMALL = {
    "patch_size": 8,
    "autoencoder": {
        "_class_name": "AutoencoderTiny",
        "latent_channels": 4,
        "encoder_block_out_channels": [16] * 4,
        "decoder_block_out_channels": [16] * 4,
        "num_encoder_blocks": [0, 0, 1, 1],
        "num_decoder_blocks": [1, 1, 0, 0],
    },
}


@pytest.fixture(autouse=True)
def _one_thread():
    """These convolutions are too small to share; two threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_shard(
        path / "episodes" / "0.parquet", [Recorder("GoToLocal").record(seed) for seed in range(4)]
    )
    return path


def options(tmp_path, **changes) -> Options:
    """None left out: those of tiles, where nothing else is said."""
    return Options(
        data=tmp_path, out=tmp_path, threads=1, device="cpu", **{**vars(TILES), **changes}
    )


def test_frames_are_read_back_as_recorded(folder):
    frames = read_frames(folder, 10_000, np.random.default_rng(0))
    episodes = [Recorder("GoToLocal").record(seed) for seed in range(4)]
    truth = [decode_png(s.frame) for episode in episodes for s in episode.segments if s.frame]
    assert np.array_equal(frames, np.stack(truth))
    assert len(read_frames(folder, 5, np.random.default_rng(0))) == 5
    with pytest.raises(ValueError, match=r"data\.prepare"):
        read_frames(folder / "none", 5, np.random.default_rng(0))


def test_distinct_patches_are_what_a_set_says(folder):
    frames = read_frames(folder, 20, np.random.default_rng(0))
    found = distinct_patches(frames, 8, 4096, np.random.default_rng(0))
    cells = [
        f[r : r + 8, c : c + 8].tobytes()
        for f in frames
        for r in range(0, 56, 8)
        for c in range(0, 56, 8)
    ]
    assert {patch.tobytes() for patch in found} == set(cells)
    assert len(found) == len(set(cells))
    assert len(distinct_patches(frames, 8, 3, np.random.default_rng(0))) == 3


def test_the_sprites_hold_every_patch_of_recorded_frames(folder):
    sprites = {sprite.tobytes() for sprite in minigrid_sprites()}
    found = distinct_patches(
        read_frames(folder, 1000, np.random.default_rng(0)), 8, 4096, np.random.default_rng(0)
    )
    assert {patch.tobytes() for patch in found} <= sprites


def test_a_collage_shows_the_patches_it_names():
    bank = torch.rand(3, 3, 8, 8)
    frame = collages(bank, torch.tensor([[[0, 1], [2, 1]]]))[0]
    assert torch.equal(frame[:, :8, 8:], bank[1])
    assert torch.equal(frame[:, 8:, :8], bank[2])


def test_separation_pushes_only_different_patches_and_only_when_close():
    latents = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    # rows 0 and 1 are one patch; each is 1 away from row 2, and the pair counts twice: 4 * (3 -
    # 1)^2 / 4 rows
    assert separation_loss(latents, labels, 3.0).item() == pytest.approx(4.0)


def test_separation_has_a_finite_gradient_where_latents_coincide():
    latents = torch.zeros(3, 2, requires_grad=True)
    separation_loss(latents, torch.arange(3), 1.0).backward()
    assert latents.grad is not None
    assert bool(torch.isfinite(latents.grad).all())


def test_normalised_latents_of_real_frames_have_zero_mean_and_unit_variance():
    torch.manual_seed(0)
    codec = FrameCodec.from_config(SMALL)
    real = torch.rand(32, 3, 16, 16) * 2 - 1
    normalise(codec, real)
    latents = codec.encode(real).transpose(0, 1).flatten(1)
    assert latents.mean(1).abs().max() < 1e-4
    assert (latents.std(1) - 1).abs().max() < 1e-3


def test_a_short_training_makes_four_sprites_exact(tmp_path):
    torch.manual_seed(0)
    codec = FrameCodec.from_config(SMALL)
    bank = pixels_to_frames(minigrid_sprites()[::20][:4])
    labels = torch.randint(4, (40, 2, 2), generator=torch.Generator().manual_seed(0))
    real = collages(bank, labels)
    train(codec, bank, real, options(tmp_path, steps=400, batch=4, real_batch=6, noise=0.2))
    generator = torch.Generator().manual_seed(1)
    figures = evaluate(codec, real) | evaluate_tiles(codec, bank, real, generator)
    assert figures["balanced tiles exact"] == 1.0
    assert figures["leak (std over contexts / total std)"] < 1e-5
    assert figures["largest |latent|"] < 5
    assert math.isclose(figures["std of real latents"], 1.0, rel_tol=0.02)


@pytest.mark.parametrize("patch_size", ["8", "null"])
def test_the_command_writes_a_codec_that_loads_and_repeats(folder, tmp_path, capsys, patch_size):
    config = tmp_path / "config.json"
    autoencoder = str(SMALL["autoencoder"]).replace("'", '"')
    config.write_text(f'{{"patch_size": {patch_size}, "autoencoder": {autoencoder}}}')
    prints = []
    for name in ("a", "b"):
        arguments = Options(
            data=folder,
            out=tmp_path / name,
            config=config,
            steps=2,
            batch=2,
            real_batch=2,
            frames=20,
            threads=1,
        )
        main(arguments)
        prints.append(FrameCodec.from_pretrained(tmp_path / name).fingerprint)
    assert prints[0] == prints[1]
    assert "real tiles exact" in capsys.readouterr().out


def test_patches_that_do_not_fill_the_frame_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="--patch"):
        main(Options(data=folder, out=tmp_path, patch=9, frames=5, threads=1))


def test_frames_that_are_no_tiles_are_learned_alone_and_further_from_a_codec(folder, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**SMALL, "patch_size": None}))
    first = {"data": folder, "config": config, "batch": 0, "real_batch": 8, "threads": 1}
    main(Options(**first, out=tmp_path / "a", steps=60))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a processor may emulate bfloat16
        main(Options(**first, out=tmp_path / "b", steps=60, init=tmp_path / "a", bf16=True))
    figures = [json.loads((tmp_path / n / "figures.json").read_text()) for n in ("a", "b")]
    assert figures[1]["real PSNR"] > figures[0]["real PSNR"] + 0.5
    assert figures[0]["real PSNR of the mean frame"] == figures[1]["real PSNR of the mean frame"]
    assert "balanced PSNR" not in figures[0]


@pytest.fixture(scope="module")
def dots():
    """A grey room with a bright figure of 6 x 8 pixels somewhere in it, 240 times."""
    rng = np.random.default_rng(0)
    room = rng.integers(60, 90, (1, 32, 32, 3), dtype=np.uint8).repeat(240, 0)
    for frame, row, column in zip(room, *rng.integers(0, 24, (2, 240)), strict=True):
        frame[row : row + 8, column : column + 6] = (250, 40, 20)
    return room


def scene(**changes):
    return {**SMALL, "patch_size": None, **changes}


def test_frames_are_told_to_be_tiles_or_not(folder, dots):
    assert are_tiles(read_frames(folder, 1000, np.random.default_rng(0)), 8)
    assert not are_tiles(dots, 8)
    assert not are_tiles(np.zeros((20, 20, 30, 3), np.uint8), 8)  # do not even divide


def test_what_is_left_out_depends_on_the_frames(folder, dots, tmp_path):
    plain = Options(data=tmp_path, out=tmp_path)
    tiles = plain.filled(read_frames(folder, 1000, np.random.default_rng(0)))
    assert {name: getattr(tiles, name) for name in vars(TILES)} == vars(TILES)
    scenes = plain.filled(dots)
    assert {name: getattr(scenes, name) for name in vars(SCENES)} == vars(SCENES)
    assert json.loads(SCENES.config.read_text())["patch_size"] is None
    told = replace(plain, batch=0, noise=0.1).filled(dots)
    assert (told.config, told.noise, told.rare) == (SCENES.config, 0.1, SCENES.rare)


def test_a_pixel_weighs_by_how_far_it_is_from_the_mean_frame():
    mean = torch.zeros(3, 2, 2)
    frames = torch.zeros(1, 3, 2, 2)
    frames[0, 1, 0, 0] = -0.8  # 4 times as far as pixels are on average
    found = rare_weights(frames, mean, 2.0)
    # 1 + 2 * 4 = 9 beside 1, divided by their mean, 3
    assert found.flatten().tolist() == pytest.approx([3.0, 1 / 3, 1 / 3, 1 / 3])
    assert (rare_weights(frames, mean, 0.0) == 1).all()


def test_a_small_figure_survives_where_what_is_rare_weighs_more(dots, tmp_path):
    frames = pixels_to_frames(dots)
    found = {}
    for rare in (0.0, 8.0):
        torch.manual_seed(0)
        codec = FrameCodec.from_config(scene())
        kind = {**vars(SCENES), "rare": rare, "learning_rate": 4e-3, "noise": 0.1}
        bank = torch.zeros(0, 3, 8, 8)
        train(codec, bank, frames[120:], options(tmp_path, **kind, steps=120, real_batch=12))
        found[rare] = evaluate(codec, frames[:120])
    assert found[8.0][RARE_PSNR] > found[0.0][RARE_PSNR] + 1
    share = found[0.0]["share of pixels that differ"]
    assert share == pytest.approx(48 / 1024, rel=0.2)


def test_the_figure_where_frames_differ_counts_those_pixels_alone(monkeypatch):
    frames = torch.zeros(4, 3, 8, 8)
    frames[0, :, 2, 2] = 1.0  # 0.75 from the mean frame; the others 0.25 there
    codec = FrameCodec.from_config(SMALL)
    monkeypatch.setattr(codec, "encode", lambda frames: frames)
    monkeypatch.setattr(codec, "decode", lambda latents: latents / 2)
    figures = evaluate(codec, frames)
    assert figures["share of pixels that differ"] == pytest.approx(4 / (4 * 64))
    # Levels of 128 and 255: one pixel of four is 63 or 64 off, the others are right.
    assert figures[RARE_PSNR] == pytest.approx(10 * math.log10(255**2 / (64**2 / 4)), abs=0.3)


def test_a_codec_that_is_worse_than_the_mean_frame_is_said_to_be(folder, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(scene()))
    main(Options(data=folder, out=tmp_path / "a", config=config, batch=0, steps=1, threads=1))
    assert "WARNING: frames come back worse" in capsys.readouterr().out
    good = {PSNR: 30.0, MEAN_PSNR: 20.0, RARE_PSNR: 18.0, f"{RARE_PSNR}, of the mean frame": 9.0}
    assert warnings_of(good) == []
    assert "what moves is lost" in warnings_of({**good, RARE_PSNR: 8.0})[0]


def test_the_sheet_shows_what_is_real_and_what_was_coded(dots):
    codec = FrameCodec.from_config(scene())
    frames = pixels_to_frames(dots[:3])
    picture = np.asarray(sheet(codec, frames))
    scale, gap, margin, top = 3, 4, 64, 16
    cell = 32 * scale + gap
    coded = frames_to_pixels(codec.decode(codec.encode(frames))).numpy()
    for row, pictures in enumerate((dots[:3], coded)):
        for column in range(3):
            left, upper = margin + column * cell, top + row * cell
            tile = picture[upper : upper + 96 : scale, left : left + 96 : scale]
            np.testing.assert_array_equal(tile, pictures[column])


class CutOffError(Exception):
    """Stands for a power failure."""


def test_a_run_that_was_cut_off_becomes_the_codec_it_would_have_become(
    folder, tmp_path, monkeypatch
):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL))
    asked = Options(
        data=folder,
        out=tmp_path / "whole",
        config=config,
        steps=6,
        batch=2,
        real_batch=2,
        frames=40,
        threads=1,
        save_seconds=0,
    )
    main(asked)
    cut = replace(asked, out=tmp_path / "cut")
    save = SavedRun.save

    def cut_off(self, codec, optimizer, step):
        save(self, codec, optimizer, step)
        if step == 4:
            raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(codec_training.SavedRun, "save", cut_off)
        with pytest.raises(CutOffError):
            main(cut)
    with pytest.raises(ValueError, match="cut off at step 4; add --resume"):
        main(cut)
    with pytest.raises(ValueError, match="begun with other steps"):
        main(replace(cut, steps=7, resume=True))
    main(replace(cut, resume=True))
    codecs = [FrameCodec.from_pretrained(tmp_path / name) for name in ("whole", "cut")]
    assert codecs[0].fingerprint == codecs[1].fingerprint
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert {"codec.json", "figures.json", "sheet.png"} <= names
    assert "training" not in names


def test_a_device_that_is_not_there_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):
        main(Options(data=tmp_path / "nowhere", out=tmp_path, device="gpu"))


@pytest.mark.gpu
def test_a_codec_trains_on_a_gpu(folder, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL))
    asked = {"data": folder, "config": config, "steps": 40, "threads": 1}
    main(Options(**asked, out=tmp_path / "cpu", device="cpu"))
    main(Options(**asked, out=tmp_path / "cuda"))
    found = [json.loads((tmp_path / d / "figures.json").read_text()) for d in ("cpu", "cuda")]
    assert found[1][PSNR] == pytest.approx(found[0][PSNR], abs=1.0)
