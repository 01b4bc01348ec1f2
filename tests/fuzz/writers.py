"""Everything that writes a folder, each with how the folder is read back."""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data.dataset import EpisodeDataset
from data.join import join_folders
from data.latents import write_latents
from data.record import RecordArguments, record
from data.recording import record_babyai
from data.sources.jsonl import import_jsonl
from data.sources.lerobot import import_lerobot
from data.sources.lerobot_export import export_lerobot
from data.sources.minari import export_minari, import_minari
from data.sources.table import import_table
from data.sources.vpt import import_vpt
from data.split import split_folder
from tests.data.lerobot_files import SHAPE, write_video
from tests.unified.parts import TOKENIZERS, babyai_parts
from train import codec as codec_training
from train.export import ExportArguments, export
from train.finetune import FinetuneArguments
from train.finetune import train as finetune
from train.pretrain import PretrainArguments
from train.pretrain import train as pretrain
from train.recipes import RECIPES, Recipe
from train.rows.mixture import MixtureConfig
from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_folder, write_json
from unified.media.actions import NamedActions
from unified.media.codec import FrameCodec
from unified.modeling import UnifiedModel

DOT = "tests.data.dot:Dot-v0"
SMALL_CODEC = {
    "autoencoder": {
        "_class_name": "AutoencoderTiny",
        "latent_channels": 4,
        "encoder_block_out_channels": [8, 8, 8, 8],
        "decoder_block_out_channels": [8, 8, 8, 8],
        "num_encoder_blocks": [0, 0, 0, 1],
        "num_decoder_blocks": [1, 0, 0, 0],
    }
}


@dataclass
class Writer:
    """Something that writes a folder.

    Attributes:
        write: Writes it; run in a process that may be killed, and then again.
        read: What lies in the folder, as a word that tells any two contents apart; raises
            ValueError where the folder is refused.
        before: Makes the folder as it is before; None if there is none.
        is_kept: Whether the old content must survive: it may not even be refused.
        is_slow: Whether it takes seconds.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], str]
    before: Callable[[Path], object] | None = None
    is_kept: bool = False
    is_slow: bool = False


def fingerprint(folder: Path) -> str:
    """Of model, processor and codec together."""
    model = UnifiedModel.from_pretrained(folder)
    processor = UnifiedProcessor.from_pretrained(folder)
    weights = sum(p.detach().double().abs().sum().item() for p in model.parameters())
    codec = processor.codec and processor.codec.fingerprint
    actions = processor.action_space and processor.action_space.to_config()
    return json.dumps([weights, model.config.window_frames, codec, actions])


def recorded(folder: Path) -> str:
    """All of a data folder, its actions and its latents."""
    data = EpisodeDataset(folder)
    actions = (folder / "action_space.json").exists() or data.info["source"] == "babyai"
    episodes = sorted((e.id, e.actions, data.pngs(i)[-1].hex()) for i, e in enumerate(data))
    latents = None if data.latents is None else float(data.latents.astype("float64").sum())
    return json.dumps([len(data), actions, latents, episodes])


def writers(work: Path) -> dict[str, Writer]:
    """All of them, with what they read in `work`."""
    parts = [babyai_parts(seed, window_frames=3 + seed) for seed in (0, 1)]
    for seed, (model, processor) in enumerate(parts):
        torch.manual_seed(seed)
        processor.codec = FrameCodec.from_config(TOKENIZERS / "codec" / "babyai.json")
        model.config.made_for = processor.fingerprints()
    codecs = [processor.codec for _, processor in parts if processor.codec is not None]
    changed = parts[1][1].with_action_space(NamedActions("two", ["x1", "x2", "x3"]))

    def save(number: int, folder: Path) -> None:
        model, processor = parts[number]
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    def save_processor(folder: Path) -> None:
        changed.save_pretrained(folder)

    save(0, work / "old")
    save(1, work / "new")
    (work / "report.md").write_text("| scores |")
    settings = {
        "agent_episodes": 1,
        "episodes": 1,
        "first_seed": 1,
        "num_inference_steps": 1,
        "temperature": 0,
        "levels": ["OpenDoor"],
        "parameters": 1,
        "machine": "none",
    }
    write_json(work / "report.json", {"settings": settings})

    def exported(name: str, folder: Path) -> None:
        report = work / "report.json"
        export(
            ExportArguments(
                model=work / name, report=report, out=folder, recipe="none", cost="none"
            )
        )

    def fill(folder: Path, episodes: int) -> None:
        record(
            RecordArguments(
                env=DOT, out=folder, episodes=episodes, max_steps=4, episodes_per_shard=2
            )
        )

    fill(work / "dots", 6)
    record_babyai(["GoToRedBall"], episodes=2, seed=11, out=work / "babyai")
    small = FrameCodec.from_config(SMALL_CODEC)
    small.save_pretrained(work / "codec")
    shutil.copytree(work / "babyai", work / "encoded")
    write_latents(work / "encoded", small)
    (work / "config.json").write_text(json.dumps(SMALL_CODEC))
    codec_options = codec_training.Options(
        data=work / "dots",
        out=work,
        config=work / "config.json",
        steps=6,
        batch=0,
        real_batch=4,
        threads=1,
        device="cpu",
        save_seconds=0,
        resume=True,
    )
    model = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "latent_grid": (7, 7),
        "window_frames": 3,
    }
    mixture = MixtureConfig(row_length=300, max_frames=3)
    RECIPES["kills"] = lambda: Recipe(model=model, mixture=mixture, steps=4, rows=1)
    run = {"save_seconds": 0, "workers": 0, "sample_steps": 0, "resume": True, "device": "cpu"}

    def pretrained(folder: Path) -> None:
        pretrain(
            PretrainArguments(
                data=work / "encoded", codec=work / "codec", out=folder, recipe="kills", **run
            )
        )

    def finetuned(folder: Path) -> None:
        arguments = FinetuneArguments(model=str(work / "old"), data=work / "own", out=folder, **run)
        finetune(replace(arguments, steps=2, rows=1, check_episodes=1))

    shutil.copytree(work / "babyai", work / "own")
    write_latents(work / "own", codecs[0])

    return {
        "model and processor": Writer(
            lambda folder: save_all(parts[1], folder), fingerprint, lambda folder: save(0, folder)
        ),
        "model, then processor": Writer(
            lambda folder: save(1, folder), fingerprint, lambda folder: save(0, folder)
        ),
        "processor over another": Writer(
            save_processor, processor_of, lambda folder: parts[0][1].save_pretrained(folder), True
        ),
        "codec": Writer(
            lambda folder: codecs[1].save_pretrained(folder),
            lambda folder: FrameCodec.from_pretrained(folder).fingerprint,
            lambda folder: codecs[0].save_pretrained(folder),
            is_kept=True,
        ),
        "export": Writer(
            lambda folder: exported("new", folder),
            fingerprint,
            lambda folder: exported("old", folder),
            is_kept=True,
        ),
        "data.record": Writer(lambda folder: fill(folder, 6), recorded),
        "data.record, grown": Writer(
            lambda folder: fill(folder, 9), recorded, lambda folder: fill(folder, 4)
        ),
        "data.prepare join": Writer(
            lambda folder: join_folders([work / "dots"] * 2, ["a", "b"], folder), recorded
        ),
        "data.prepare latents": Writer(
            lambda folder: write_latents(folder, small),
            recorded,
            lambda folder: shutil.copytree(work / "babyai", folder),
            is_kept=True,
        ),
        "train.codec": Writer(
            lambda folder: codec_training.main(replace(codec_options, out=folder)),
            lambda folder: FrameCodec.from_pretrained(folder).fingerprint,
            lambda folder: small.save_pretrained(folder),
            is_kept=True,
        ),
        "train.pretrain": Writer(
            pretrained, lambda folder: fingerprint(folder / "model"), is_slow=True
        ),
        "train.finetune": Writer(
            finetuned, lambda folder: fingerprint(folder / "adapter"), is_slow=True
        ),
    }


def sources(work: Path) -> dict[str, Writer]:
    """Importers and exporters, with what they read in `work`, where "dots" has been recorded."""
    export_lerobot(work / "dots", work / "lerobot")
    export_minari(work / "dots", work / "minari")
    for name, rate in (("films", 10), ("games", 20)):
        for film in ("a", "b"):
            write_video(work / name / f"{film}.mp4", film_of(film), rate=rate)
    for film in ("a", "b"):
        with (work / "films" / f"{film}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["n", "move"])
            rows.writerows([step, ("left", "right")[step % 2]] for step in range(6))
        mouse = {"dx": 1.0, "dy": -1.0, "buttons": [], "newButtons": []}
        keyboard = {"keys": ["key.keyboard.w"], "newKeys": []}
        line = json.dumps({"mouse": mouse, "keyboard": keyboard, "hotbar": 0})
        (work / "games" / f"{film}.jsonl").write_text("\n".join([line] * 6))
    dots = EpisodeDataset(work / "dots")
    lines = []
    for i in range(4):
        segments: list[dict[str, str]] = []
        for step in range(3):
            picture = work / f"{i}-{step}.png"
            picture.write_bytes(dots.pngs(i)[step])
            segments += [{"kind": "frame", "frame": picture.name}]
            segments += [{"kind": "action", "action": ("left", "right")[step % 2]}]
        lines.append(json.dumps({"id": str(i), "segments": segments[:-1]}))
    (work / "lines.jsonl").write_text("\n".join(lines))

    def table(folder: Path) -> None:
        import_table(work / "films", folder, index="n", actions=["move"], frames=3)

    return {
        "data.prepare jsonl": Writer(lambda f: import_jsonl(work / "lines.jsonl", f), recorded),
        "data.prepare lerobot": Writer(lambda f: import_lerobot(work / "lerobot", f), recorded),
        "data.prepare minari": Writer(lambda f: import_minari(work / "minari", f), recorded),
        "data.prepare table": Writer(table, recorded),
        "data.prepare vpt": Writer(lambda f: import_vpt(work / "games", f, frames=3), recorded),
        "data.prepare split": Writer(
            lambda folder: split_folder(work / "dots", folder, held_out=0.7),
            lambda folder: recorded(folder) + recorded(folder / "held-out"),
        ),
        "export-lerobot": Writer(
            lambda folder: export_lerobot(work / "dots", folder), lambda folder: reimported(folder)
        ),
    }


def reimported(folder: Path) -> str:
    """All of an exported LeRobot dataset, as it is read back."""
    quiet = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as place, quiet[0], quiet[1]:
        import_lerobot(folder, Path(place) / "data")
        return recorded(Path(place) / "data")


def film_of(name: str) -> list[np.ndarray]:
    """Six frames in which something moves."""
    frames = np.full((6, *SHAPE), 40 + ord(name), np.uint8)
    for step, frame in enumerate(frames):
        frame[:, 4 * step : 4 * step + 8] = 220
    return list(frames)


def save_all(parts: tuple[UnifiedModel, UnifiedProcessor], folder: Path) -> None:
    """Model and processor together, as the training commands do."""
    with atomic_folder(folder) as draft:
        for part in parts:
            part.save_pretrained(draft)


def processor_of(folder: Path) -> str:
    """Of the processor alone."""
    processor = UnifiedProcessor.from_pretrained(folder)
    assert processor.codec is not None
    assert processor.action_space is not None
    return processor.codec.fingerprint + json.dumps(processor.action_space.to_config())
