"""Prepare a data folder: `python -m data.prepare babyai --help`, and so on for other sources."""

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
    jsonl.add_argument("--actions", type=Path, help="action space; as the file shows by default")

    lerobot = commands.add_parser("lerobot", help="import a LeRobot dataset, v2.1 or v3.0")
    lerobot.add_argument("--folder", type=Path, required=True, help="it holds meta/info.json")
    lerobot.add_argument("--out", type=Path, required=True, help="data folder to write")
    lerobot.add_argument("--cameras", nargs="+", help="to take, side by side; all by default")
    lerobot.add_argument("--size", type=int, nargs=2, help="height and width of a camera's frame")
    lerobot.add_argument("--fps", type=float, help="frames a second to keep; a divisor")
    lerobot.add_argument(
        "--styles",
        nargs="*",
        default=["subtask", "interjection", "say"],
        help="what is said of the language columns: also plan, memory, motion, vqa, trace, and "
        "task_aug (the task in other words)",
    )
    lerobot.add_argument("--workers", type=int, default=1, help="processes")

    vpt = commands.add_parser("vpt", help="import mp4s, each with a jsonl of keyboard and mouse")
    vpt.add_argument("--folder", type=Path, required=True, help="it holds the recordings")
    vpt.add_argument("--out", type=Path, required=True, help="data folder to write")
    vpt.add_argument("--task", help="words that open each episode")
    vpt.add_argument("--size", type=int, nargs=2, help="height and width of the frames")
    vpt.add_argument("--frames", type=int, default=200, help="most of one episode")
    vpt.add_argument("--bins", type=int, default=11, help="of each direction of the mouse, odd")
    vpt.add_argument("--workers", type=int, default=1, help="processes")

    minari = commands.add_parser("minari", help="import a Minari dataset whose frames are pictures")
    minari.add_argument("--folder", type=Path, required=True, help="it holds data/metadata.json")
    minari.add_argument("--out", type=Path, required=True, help="data folder to write")
    minari.add_argument("--image", help="key of the pictures; the only ones by default")
    minari.add_argument("--task", help="words that open each episode; its own by default")
    minari.add_argument("--size", type=int, nargs=2, help="height and width of the frames")
    minari.add_argument("--workers", type=int, default=1, help="processes")

    to_minari = commands.add_parser("export-minari", help="write a data folder for Minari")
    to_minari.add_argument("--data", type=Path, required=True, help="a complete data folder")
    to_minari.add_argument("--out", type=Path, required=True, help="new folder to write")
    to_minari.add_argument("--name", help="id of the dataset, such as babyai/mine-v0")
    to_minari.add_argument(
        "--actions", type=Path, help="action space; the data folder's by default"
    )

    export = commands.add_parser("export-lerobot", help="write a data folder as LeRobot v3.0")
    export.add_argument("--data", type=Path, required=True, help="a complete data folder")
    export.add_argument("--out", type=Path, required=True, help="new folder to write")
    export.add_argument("--fps", type=int, default=10, help="frames a second to claim")
    export.add_argument("--actions", type=Path, help="action space; the data folder's by default")

    join = commands.add_parser("join", help="several data folders as one, for several embodiments")
    join.add_argument("--data", type=Path, nargs="+", required=True, help="complete data folders")
    join.add_argument("--names", nargs="+", required=True, help="name of each one's embodiment")
    join.add_argument("--out", type=Path, required=True, help="data folder to write")
    join.add_argument("--size", type=int, nargs=2, help="height and width of all frames")

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

            import_jsonl(options.file, options.out, actions=options.actions)
        elif options.command == "lerobot":
            from data.lerobot import import_lerobot

            import_lerobot(
                options.folder,
                options.out,
                cameras=options.cameras,
                size=options.size and tuple(options.size),
                fps=options.fps,
                styles=options.styles,
                workers=options.workers,
            )
        elif options.command == "vpt":
            from data.vpt import import_vpt

            import_vpt(
                options.folder,
                options.out,
                task=options.task,
                size=options.size and tuple(options.size),
                frames=options.frames,
                bins=options.bins,
                workers=options.workers,
            )
        elif options.command == "minari":
            from data.minari import import_minari

            import_minari(
                options.folder,
                options.out,
                image=options.image,
                size=options.size and tuple(options.size),
                task=options.task,
                workers=options.workers,
            )
        elif options.command == "export-minari":
            from data.minari import export_minari
            from unified.actions import ActionSpace

            space = options.actions and ActionSpace.from_config(options.actions)
            export_minari(options.data, options.out, name=options.name, actions=space)
        elif options.command == "export-lerobot":
            from data.lerobot_export import export_lerobot
            from unified.actions import ActionSpace

            space = options.actions and ActionSpace.from_config(options.actions)
            export_lerobot(options.data, options.out, fps=options.fps, actions=space)
        elif options.command == "join":
            from data.join import join_folders

            size = options.size and tuple(options.size)
            join_folders(options.data, options.names, options.out, size=size)
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
