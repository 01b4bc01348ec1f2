"""Load of the player: frames a second, latency, memory, and whether anything breaks.

python -m eval.play_load --out runs/play
python -m eval.play_load --parts soak --minutes 60 --out runs/soak

Every client speaks over a real WebSocket to a real server in a process of its own. Latency beyond
the model's own time is what the server says of each frame: from the message to the frame that is
ready to be sent, less the seconds in which the engine worked for it.
"""

import json
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from eval.report import machine
from unified.command import command
from unified.files import write_json
from unified.play.protocol import VERSION, unpack

PARTS = ("one", "sixteen", "timelines", "fuzz", "soak")
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle")


@dataclass(frozen=True, kw_only=True)
class LoadArguments:
    """Measure the player's server."""

    parts: tuple[str, ...] = ("one", "sixteen", "timelines", "fuzz")
    """Which figures: one, sixteen, timelines, fuzz, soak."""
    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    steps: int = 4
    """Denoise steps of a frame."""
    frames: int = 100
    """Of each client, where frames are counted."""
    players: int = 16
    """Of the part `sixteen`."""
    timelines: int = 500
    """Random timelines that are replayed."""
    messages: int = 10_000
    """Of the fuzz."""
    minutes: float = 5.0
    """Of the soak, with 8 clients."""
    seed: int = 0
    """Of all that is drawn at random."""
    out: Path = Path("runs/play")
    """Folder of load.json."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""


class Client:
    """Speaks the protocol, and counts what went wrong."""

    def __init__(self, port: int):
        self._connection = connect(f"ws://127.0.0.1:{port}/ws", max_size=None, compression=None)
        self._socket = self._connection.__enter__()
        self._number = 0
        self.session = self.ask("hello", protocol=VERSION)[0].get("session")

    def ask(self, type_: str, **fields: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The last answer to a message."""
        self._number += 1
        self._socket.send(json.dumps({"type": type_, "id": self._number, **fields}))
        while True:
            header, files = self.next()
            is_ours = header.get("id") == self._number and header["type"] != "forgot"
            if header["type"] == "closed" or is_ours:
                return header, files

    def next(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The next message."""
        told = self._socket.recv(timeout=120)
        return (json.loads(told), {}) if isinstance(told, str) else unpack(told)

    def open(self, seed: int, world: str = "dream") -> dict[str, Any]:
        """Opens a level."""
        opening = {"level": "GoToLocal", "seed": 1_000_000 + seed}
        return self.ask("open", opening=opening, world=world)[0]

    def step(self, dice: random.Random) -> tuple[dict[str, Any], dict[str, bytes]]:
        """A random action; an episode that is over goes on from its first frame."""
        header, files = self.ask("step", action=dice.choice(ACTIONS))
        if header["type"] == "error" and "over" in header["words"]:
            self.open(dice.randrange(1000))
            return self.step(dice)
        return header, files

    def close(self) -> None:
        """Closes the connection."""
        self._connection.__exit__(None, None, None)


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextmanager
def serving(arguments: LoadArguments, *options: str) -> Iterator[Server]:
    """Starts a server, and stops it as a user would."""
    program = [sys.executable, "-m", "unified.cli", "play", "--port", "0", "--no-browser"]
    told = ["--model", arguments.model, "--steps", str(arguments.steps), *options]
    if arguments.device is not None:
        told += ["--device", arguments.device]
    process = subprocess.Popen([*program, *told], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise ValueError(f"the server did not start: {line!r}")
        yield Server(process, int(line.split("/   ")[0].rsplit(":", 1)[1]))
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Counted:
    """Frames of one client."""

    beyond: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    errors: int = 0


def play(port: int, seed: int, frames: int, counted: Counted) -> None:
    """A client that plays as fast as frames come."""
    dice, client = random.Random(seed), Client(port)
    client.open(seed)
    for _ in range(frames):
        began = time.perf_counter()
        header, _ = client.step(dice)
        counted.waits.append(1000 * (time.perf_counter() - began))
        if header["type"] == "frame":
            counted.beyond.append(header["ms"]["server"])
        else:
            counted.errors += 1
    client.close()


def rate(port: int, players: int, frames: int, seed: int) -> dict[str, Any]:
    """Frames a second of some players together."""
    counted = [Counted() for _ in range(players)]
    threads = [
        threading.Thread(target=play, args=(port, seed + i, frames, one))
        for i, one in enumerate(counted)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    beyond = [ms for one in counted for ms in one.beyond]
    waits = [ms for one in counted for ms in one.waits]
    return {
        "players": players,
        "frames": len(beyond),
        "frames/s": len(beyond) / seconds,
        "wait, median ms": float(np.median(waits)),
        "beyond the model, median ms": float(np.median(beyond)),
        "beyond the model, p95 ms": float(np.quantile(beyond, 0.95)),
        "errors": sum(one.errors for one in counted),
    }


def timelines(port: int, count: int, seed: int) -> dict[str, Any]:
    """Random walks with rewinds and forks, each played again from its recipe."""
    client, other = Client(port), Client(port)
    frames = different = errors = 0
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        nodes = [client.open(number)["node"]]
        for _ in range(dice.randrange(3, 8)):
            if dice.random() < 0.3:
                client.ask("goto", node=dice.choice(nodes))
            header, _ = client.ask("step", action=dice.choice(ACTIONS))
            if header["type"] == "frame" and not header["is_over"]:
                nodes.append(header["node"])
        recipe = client.ask("share")[0]["recipe"]
        other._number += 1
        told = {"type": "replay", "id": other._number, "recipe": recipe}
        other._socket.send(json.dumps(told))
        while True:
            header, _ = other.next()
            frames += header["type"] == "frame"
            if header["type"] in ("replayed", "error", "closed"):
                break
        different += header["type"] == "replayed" and not header["is_same"]
        errors += header["type"] != "replayed"
    client.close()
    other.close()
    return {"timelines": count, "frames": frames, "different": different, "errors": errors}


JUNK = (
    "",
    "null",
    "[]",
    "{",
    '{"type":"step"}',
    '{"type":"goto","id":1,"node":1e99}',
    '{"type":"step","id":2,"action":{"__class__":"x"}}',
    '{"type":"open","id":3,"opening":{"level":"../../etc/passwd"}}',
    '{"type":"open","id":3,"opening":{"picture":"AAAA"}}',
    '{"type":"instruct","id":4,"words":"\\u0000\\ud800"}',
    '{"type":"instruct","id":4,"words":"<script>alert(1)</script>"}',
    '{"type":"tell","id":5,"words":"' + "a" * 500 + '"}',
    '{"type":"seats","id":6,"agent":"expert","world":"both","temperature":-1}',
    '{"type":"prompt","id":7,"items":[]}',
    '{"type":"prompt","id":7,"items":[{"role":"world","action":"left"}]}',
    '{"type":"replay","id":8,"recipe":{"model":"x"}}',
    '{"type":"hello","id":9,"protocol":1}',
    '{"type":"weigh","id":10,"node":0}',
    '{"type":"step","id":11,"action":"left"}',
    '{"type":"goto","id":12,"node":0}',
    '{"type":"undo","id":13}',
    "[" * 5000,
    '{"a":' * 3000,
)


def fuzz(server: Server, count: int, seed: int) -> dict[str, Any]:
    """Junk from many connections, while one client plays on undisturbed."""
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # lines are cut on purpose
    dice, sent, connections = random.Random(seed), 0, 0
    calm, errors, waits = Client(server.port), 0, []
    calm.open(0)
    before = server.megabytes
    stop = threading.Event()

    def play_on() -> None:
        nonlocal errors
        walk = random.Random(seed)
        while not stop.is_set():
            began = time.perf_counter()
            header, _ = calm.step(walk)
            waits.append(1000 * (time.perf_counter() - began))
            errors += header["type"] != "frame"
            time.sleep(0.05)

    thread = threading.Thread(target=play_on)
    thread.start()
    while sent < count:
        connections += 1
        try:
            sent += _annoy(server.port, dice)
        except (WebSocketException, OSError, TimeoutError):
            sent += 1
    stop.set()
    thread.join()
    calm.close()
    alive = server.process.poll() is None
    return {
        "messages": sent,
        "connections": connections,
        "server lives": alive,
        "frames of the calm player": len(waits),
        "errors of the calm player": errors,
        "its longest wait, ms": max(waits, default=0.0),
        "memory before and after, MB": [before, server.megabytes if alive else 0.0],
    }


def _annoy(port: int, dice: random.Random) -> int:
    """One connection that misbehaves; returns how many messages it sent."""
    sent = 0
    link = f"ws://127.0.0.1:{port}/ws"
    with connect(link, max_size=None, compression=None, close_timeout=0.2) as line:
        if dice.random() < 0.9:
            hello: dict[str, Any] = {"type": "hello", "id": 1, "protocol": VERSION}
            if dice.random() < 0.1:
                hello["session"] = "x" * dice.randrange(64)
            line.send(json.dumps(hello))
            sent += 1
        for _ in range(dice.randrange(1, 200)):
            kind = dice.random()
            if kind < 0.05:
                line.send(dice.randbytes(dice.randrange(1, 2000)))
            elif kind < 0.06:
                line.send("x" * dice.randrange(10**5, 2 * 10**6))
            elif kind < 0.0605:
                line.send("x" * (4 * 2**20))
            else:
                line.send(dice.choice(JUNK))
            sent += 1
            if dice.random() < 0.01:
                break
        if dice.random() < 0.5:
            line.socket.close()  # without a word
            return sent
        try:
            while dice.random() < 0.9:
                line.recv(timeout=0.05)
        except (TimeoutError, ConnectionClosed):
            pass
    return sent


def soak(server: Server, minutes: float, seed: int) -> dict[str, Any]:
    """Eight clients that play, rewind and open anew; memory over time."""
    until = time.monotonic() + 60 * minutes
    counted = [Counted() for _ in range(8)]

    def go_on(place: int) -> None:
        dice, client = random.Random(seed + place), Client(server.port)
        node = client.open(place)["node"]
        while time.monotonic() < until:
            header, _ = client.step(dice)
            counted[place].errors += header["type"] != "frame"
            counted[place].beyond.append(0.0)
            if dice.random() < 0.02:
                client.ask("goto", node=header.get("parent") or node)
            if dice.random() < 0.005:
                client.open(dice.randrange(1000))
        client.close()

    threads = [threading.Thread(target=go_on, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(server.megabytes)
        time.sleep(min(5.0, 6 * minutes))
    for thread in threads:
        thread.join()
    return {
        "minutes": minutes,
        "frames": sum(len(one.beyond) for one in counted),
        "errors": sum(one.errors for one in counted),
        "memory, MB": memory,
    }


def measure(arguments: LoadArguments) -> dict[str, Any]:
    """All that was asked for; printed as soon as it is there.

    Raises:
        ValueError: If a part is unknown, or the server does not start.
    """
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        raise ValueError(f"part {unknown[0]!r} is unknown; use {', '.join(PARTS)}")
    found: dict[str, Any] = {"machine": machine()}
    options = ["--max-sessions", str(max(16, arguments.players))]
    if "soak" in arguments.parts:  # so little that timelines are at their bound within a minute
        options += ["--session-memory", "16"]
    with serving(arguments, *options) as server:
        rate(server.port, 1, 10, arguments.seed)  # warm
        works = {
            "one": lambda: rate(server.port, 1, arguments.frames, arguments.seed),
            "sixteen": lambda: rate(
                server.port, arguments.players, max(5, arguments.frames // 4), arguments.seed
            ),
            "timelines": lambda: timelines(server.port, arguments.timelines, arguments.seed),
            "fuzz": lambda: fuzz(server, arguments.messages, arguments.seed),
            "soak": lambda: soak(server, arguments.minutes, arguments.seed),
        }
        for part in arguments.parts:
            found[part] = works[part]()
            print(f"{part}: {json.dumps(found[part])}", flush=True)
            write_json(arguments.out / "load.json", found)
    return found


def main() -> None:
    """Command line."""
    arguments = tyro.cli(LoadArguments, description=__doc__)
    with command("eval.play_load"):
        found = measure(arguments)
    if "one" in found and "sixteen" in found:
        ratio = found["sixteen"]["frames/s"] / found["one"]["frames/s"]
        print(f"{arguments.players} players see {ratio:.2f} times the frames of one")


if __name__ == "__main__":
    main()
