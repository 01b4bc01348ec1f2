"""Kills each writer at random moments: `python -m tests.fuzz.kills --kills 100`.

A folder that was being written must then be the old one, the new one, or refused; and doing it
again must give the new one. Prints what was counted, and exits with status 1 where a folder passed
for whole and was not, was lost, or could not be written again.

Half of the kills come after a random time, half at a random one of the calls that open, make, move
or remove a file.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from data.dataset import EpisodeDataset
from data.join import join_folders
from data.latents import write_latents
from data.record import RecordArguments, record
from data.recording import record_babyai
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
from unified.files import write_json
from unified.media.actions import NamedActions
from unified.media.codec import FrameCodec
from unified.modeling import UnifiedModel

DOT = "tests.data.dot:Dot-v0"
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "ctypes.dlsym")
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


@dataclass
class Count:
    """What became of a writer's kills."""

    kills: int = 0
    cut_off: int = 0
    refused: int = 0
    old: int = 0
    new: int = 0
    faults: list[str] = field(default_factory=list)


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
    for seed, (_, processor) in enumerate(parts):
        torch.manual_seed(seed)
        processor.codec = FrameCodec.from_config(TOKENIZERS / "codec" / "babyai.json")
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
        "processor over another": Writer(
            save_processor, processor_of, lambda folder: save(0, folder), is_kept=True
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


def save_all(parts: tuple[UnifiedModel, UnifiedProcessor], folder: Path) -> None:
    """Model and processor together, as the training commands do."""
    from unified.files import atomic_folder

    with atomic_folder(folder) as draft:
        for part in parts:
            part.save_pretrained(draft)


def processor_of(folder: Path) -> str:
    """Of the processor alone."""
    processor = UnifiedProcessor.from_pretrained(folder)
    assert processor.codec is not None
    assert processor.action_space is not None
    return processor.codec.fingerprint + json.dumps(processor.action_space.to_config())


def in_child(write: Callable[[], object], *, at: int | None = None, after: float | None = None):
    """Runs it in a process of its own, killed at a file event or after a time.

    Returns:
        Exit status (negative where it was killed), seconds, and file events counted.
    """
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        _be_child(write, writer, at)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        events = told.read()
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, time.monotonic() - start, int(events or 0)


def _be_child(write: Callable[[], object], told: int, at: int | None) -> None:
    count = 0

    def hook(event: str, _: object) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if "KILLS_VERBOSE" not in os.environ:
            os.dup2(null, 2)
        sys.addaudithook(hook)
        write()
        code = 0
    except BaseException:
        traceback.print_exc()
    os.write(told, str(count).encode())
    os._exit(code)


def read(writer: Writer, folder: Path) -> str | None:
    """What lies there, None where it is refused; any other exception is a fault."""
    try:
        return writer.read(folder)
    except ValueError:
        return None


def torment(writer: Writer, work: Path, kills: int, rng: random.Random, name: str) -> Count:
    """Kills a writer so many times."""
    count = Count()
    folder = work / "folder" / "out"

    def begin() -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir()
        if writer.before is not None:
            writer.before(folder)

    begin()
    old = read(writer, folder)
    code, seconds, events = in_child(lambda: writer.write(folder))
    new = read(writer, folder)
    if code or new is None or new == old:
        count.faults.append("cannot be written even when nobody kills it")
        return count
    for number in tqdm(range(kills), name, leave=False):
        begin()
        if number % 2:
            at, after = rng.randint(1, max(events, 1)), None
        else:
            at, after = None, rng.uniform(0, seconds)
        moment = f"event {at}" if after is None else f"second {after:.3f}"
        code, _, _ = in_child(lambda: writer.write(folder), at=at, after=after)
        count.kills += 1
        count.cut_off += code < 0
        try:
            found = read(writer, folder)
        except Exception as error:
            count.faults.append(f"{moment}: reading it raised {error!r}")
            continue
        if found is None:
            count.refused += 1
            if writer.is_kept:
                count.faults.append(f"{moment}: what was there before is lost")
        elif found == new:
            count.new += 1
        elif found == old:
            count.old += 1
        else:
            count.faults.append(f"{moment}: passes for whole, and is neither old nor new")
        code, _, _ = in_child(lambda: writer.write(folder))
        if code or read(writer, folder) != new:
            count.faults.append(f"{moment}: cannot be written again")
        left = [path.name for path in folder.parent.iterdir() if path != folder]
        if left:
            count.faults.append(f"{moment}: {left} stays beside it")
    return count


def run(kills: int, seed: int, names: list[str] | None = None, slow: bool = True) -> list[str]:
    """Torments writers; returns the faults and prints a table."""
    torch.set_num_threads(1)  # a fork inherits no other thread
    rng = random.Random(seed)
    faults = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        print(f"{'writer':26s} kills  cut off  refused  old  new  faults")
        for name, writer in writers(work).items():
            if (names and name not in names) or (writer.is_slow and not slow):
                continue
            c = torment(writer, work, kills, rng, name)
            print(
                f"{name:26s} {c.kills:5d} {c.cut_off:8d} {c.refused:8d} {c.old:4d} {c.new:4d} "
                f"{len(c.faults):7d}",
                flush=True,
            )
            faults += [f"{name}: {fault}" for fault in c.faults]
    return faults


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writers", nargs="*", help="names of some; all if not given")
    arguments = parser.parse_args()
    faults = run(arguments.kills, arguments.seed, arguments.writers)
    print("\n".join(faults) or "no fault")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
