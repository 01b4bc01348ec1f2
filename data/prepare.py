"""Prepare a data folder: `python -m data.prepare babyai | jsonl | latents --help`."""

import argparse
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    babyai = commands.add_parser("babyai", help="record BabyAI episodes in the real environment")
    babyai.add_argument("--levels", nargs="+", required=True, help="for example GoToRedBall")
    babyai.add_argument("--episodes", type=int, required=True, help="in all, split over levels")
    babyai.add_argument(
        "--seed", type=int, default=0, help="first environment seed; episode i uses seed + i"
    )
    babyai.add_argument("--out", type=Path, required=True, help="data folder to write")
    babyai.add_argument("--workers", type=int, default=1, help="processes")
    babyai.add_argument(
        "--evaluation", action="store_true", help="record held-out seeds (1000000 and above)"
    )

    jsonl = commands.add_parser("jsonl", help="import one JSON episode per line")
    jsonl.add_argument("--file", type=Path, required=True, help="frames are paths relative to it")
    jsonl.add_argument("--out", type=Path, required=True, help="data folder to write")

    latents = commands.add_parser("latents", help="encode every frame with a codec, once")
    latents.add_argument("--data", type=Path, required=True, help="a complete data folder")
    latents.add_argument("--codec", type=Path, required=True, help="folder of a FrameCodec")
    latents.add_argument("--batch", type=int, default=256, help="frames per codec call")
    latents.add_argument("--device", default="cpu", help="torch device of the codec")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "babyai":
            from data.recording import record_babyai

            record_babyai(
                options.levels,
                episodes=options.episodes,
                seed=options.seed,
                out=options.out,
                workers=options.workers,
                evaluation=options.evaluation,
            )
        elif options.command == "jsonl":
            from data.jsonl import import_jsonl

            import_jsonl(options.file, options.out)
        else:
            from data.latents import write_latents
            from unified.codec import FrameCodec

            codec = FrameCodec.from_pretrained(options.codec)
            write_latents(options.data, codec, batch=options.batch, device=options.device)
    except ValueError as error:
        print(f"data.prepare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
