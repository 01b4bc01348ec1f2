"""Training of the frame codec: its data, its losses, and that it learns."""

import json
import math

import numpy as np
import pytest
import torch

from data.babyai.recorder import Recorder
from data.episode import decode_png, write_shard
from train.codec import (
    Options,
    collages,
    distinct_patches,
    evaluate,
    evaluate_tiles,
    main,
    minigrid_sprites,
    normalise,
    read_frames,
    separation_loss,
    train,
)
from unified.media.codec import FrameCodec, pixels_to_frames

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
    return Options(data=tmp_path, out=tmp_path, threads=1, **changes)


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
    main(Options(**first, out=tmp_path / "b", steps=60, init=tmp_path / "a", bf16=True))
    figures = [json.loads((tmp_path / n / "figures.json").read_text()) for n in ("a", "b")]
    assert figures[1]["real PSNR"] > figures[0]["real PSNR"] + 0.5
    assert figures[0]["real PSNR of the mean frame"] == figures[1]["real PSNR of the mean frame"]
    assert "balanced PSNR" not in figures[0]
