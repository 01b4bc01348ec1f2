"""The player's server, from the command line to its end."""

import contextlib
import importlib.util
import os
import signal
import sys
import webbrowser
from types import FrameType

from unified.cli.arguments import PlayArguments
from unified.cli.loading import load_model, load_processor
from unified.command import chosen_device
from unified.media.samples import shipped_levels
from unified.play.engine import Engine
from unified.play.game import House
from unified.play.guard import Guard
from unified.play.reality import BABYAI, Reality, maker_of
from unified.play.server import PlayServer, listen, server_of
from unified.play.threads import tune_threads

BABYAI_ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


def serve(arguments: PlayArguments) -> None:
    """Serves until it is stopped.

    Raises:
        ValueError: If the port is taken, the model is missing, or an option is out of range.
    """
    for name in ("steps", "max_sessions", "idle_minutes", "session_memory"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be more than 0")
    guard = Guard(arguments.host, arguments.token)
    socket = listen(arguments.host, arguments.port)
    with contextlib.closing(socket):
        house = house_of(arguments)
        server = PlayServer(house, guard, arguments.max_sessions, 60 * arguments.idle_minutes)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        link = f"http://{host}:{socket.getsockname()[1]}/"
        if arguments.token is not None:
            link += f"#token={arguments.token}"
        print(f"play {arguments.model} at {link}   (Ctrl+C stops it)", flush=True)
        if arguments.browser and has_screen():
            with contextlib.suppress(webbrowser.Error):
                webbrowser.open(link)
        running = server_of(server)

        def stop(number: int, frame: FrameType | None) -> None:
            running.handle_exit(number, frame)

        signal.signal(signal.SIGTERM, stop)
        with contextlib.suppress(KeyboardInterrupt):
            running.run(sockets=[socket])
        house.engine.close()


def has_screen() -> bool:
    """Whether a browser has somewhere to appear, and would not take the terminal instead."""
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, names))


def house_of(arguments: PlayArguments) -> House:
    """Model, environment and levels, as they are named.

    Raises:
        ValueError: If one of them cannot be had.
    """
    device = chosen_device(arguments.device)
    processor = load_processor(arguments.model, device)
    model = load_model(arguments.model, device)
    if "OMP_NUM_THREADS" not in os.environ:  # else somebody has chosen
        tune_threads(model)
    engine = Engine(model, processor, arguments.steps)
    names = getattr(engine.actions, "names", ())
    env, levels = arguments.env, arguments.level
    is_babyai = tuple(names) == BABYAI_ACTIONS
    if env is None and is_babyai:
        env = BABYAI if importlib.util.find_spec("minigrid") else None
        levels = levels or tuple(shipped_levels())
    if env is None:
        return House(engine, arguments.model, None, levels, 2**20 * arguments.session_memory)
    make = maker_of(env)
    levels = levels or tuple(getattr(make, "levels", ())) or (env.rpartition(":")[2],)
    Reality(make, levels[0], engine.frame_size).close()  # what cannot be made is told of now
    return House(engine, arguments.model, make, levels, 2**20 * arguments.session_memory)
