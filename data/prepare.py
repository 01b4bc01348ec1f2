"""Write a data folder, or write one for others: each source explains itself with --help."""

import argparse
import importlib
import sys
from pathlib import Path

import tyro

from unified.command import chosen_device, command

SOURCES = {
    "babyai": ("data.recording", "record_babyai", "record BabyAI in the real environment"),
    "jsonl": ("data.sources.jsonl", "import_jsonl", "import one JSON episode per line"),
    "lerobot": ("data.sources.lerobot", "import_lerobot", "import a LeRobot dataset, v2.1 or v3.0"),
    "minari": (
        "data.sources.minari",
        "import_minari",
        "import a Minari dataset with pictures",
    ),
    "table": (
        "data.sources.table",
        "import_table",
        "import mp4s, each with a CSV of one row a frame",
    ),
    "vpt": (
        "data.sources.vpt",
        "import_vpt",
        "import mp4s with keyboard and mouse in JSON lines",
    ),
    "export-lerobot": ("data.sources.lerobot_export", "export_lerobot", "write LeRobot v3.0"),
    "export-minari": ("data.sources.minari", "export_minari", "write a Minari dataset"),
    "join": ("data.join", "join_folders", "make several folders one, for several embodiments"),
    "split": ("data.split", "split_folder", "hold episodes out, to evaluate on"),
    "latents": ("data.prepare", "latents", "encode every frame with a codec, once"),
}
"""For each name the module, the function whose arguments are the options, and what it does."""


def latents(data: Path, codec: Path, *, batch: int = 256, device: str | None = None) -> None:
    """Encodes every frame of a data folder with a codec, once.

    Args:
        data: A complete data folder.
        codec: Folder of a codec, as `train.codec` writes it.
        batch: Frames per codec call.
        device: Torch device of the codec; CUDA where there is one, if not given.

    Raises:
        ValueError: If a folder is not complete, or frames differ in size.
    """
    from data.latents import write_latents
    from unified.media.codec import FrameCodec

    write_latents(
        data, FrameCodec.from_pretrained(codec), batch=batch, device=chosen_device(device)
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with status 2 where the input is bad.

    A source's module is imported when it is chosen, so that LeRobot can be read without minigrid.
    """
    listing = "\n".join(f"  {name:<16}{text}" for name, (_, _, text) in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description=f"{__doc__}\n\nsources:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=SOURCES, metavar="source", help="one of the above")
    given = sys.argv[1:] if arguments is None else arguments
    name = parser.parse_args(given[:1]).source
    module, function, _ = SOURCES[name]
    with command("data.prepare"):
        run = getattr(importlib.import_module(module), function)
        tyro.cli(run, prog=f"python -m data.prepare {name}", args=given[1:])


if __name__ == "__main__":
    main()
