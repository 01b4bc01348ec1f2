"""Who plays in tests: an environment that knows the truth, a player, a server in a thread."""

import asyncio
import contextlib
import json
import os
import threading
import time

import numpy as np
from websockets.sync.client import connect

from unified.play.game import Game, House
from unified.play.guard import Guard
from unified.play.protocol import read_request, unpack
from unified.play.server import PlayServer, listen, server_of

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


class Counter:
    """An environment whose frame tells what was done since its seed, and that has an expert."""

    def __init__(self, repeats: bool = True, ends_after: int = 1000):
        self.repeats, self.ends_after = repeats, ends_after
        self.resets, self.is_closed = 0, False

    def reset(self, seed=None):
        self.resets += 1
        self.done = [int(seed or 0) + (0 if self.repeats else self.resets)]
        return self.seen(), {}

    def step(self, action):
        self.done.append(int(action))
        is_over = len(self.done) > self.ends_after
        return self.seen(), float(is_over), is_over, False, {}

    def seen(self):
        rng = np.random.default_rng(self.done)
        image = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
        return {"image": image, "mission": "go to the red ball"}

    def expert_action(self):
        return len(self.done) % 3

    def render(self):
        return self.seen()["image"]

    def close(self):
        self.is_closed = True


def house(engine, make=lambda level: Counter(), **changes) -> House:
    levels = () if make is None else ("Count", "Other")
    return House(engine, "tiny", make, levels, **changes)


class Player:
    """A game that is talked to in turn, without a server."""

    def __init__(self, house: House):
        self.game = Game(house)
        self.ids = iter(range(1, 10**6))

    @property
    def timeline(self):
        assert self.game.timeline is not None
        return self.game.timeline

    def say(self, type_, **fields):
        """All answers to a message, binary ones as header and files."""
        request = read_request(json.dumps({"type": type_, "id": next(self.ids), **fields}))

        async def answers():
            return [answer async for answer in self.game.answer(request)]

        told = asyncio.run(answers())
        return [unpack(one) if isinstance(one, bytes) else (one, {}) for one in told]

    def open(self, world="dream", **opening):
        opening = opening or {"level": "Count", "seed": 3}
        return self.say("open", opening=opening, world=world)[0][0]

    def step(self, action=None):
        fields = {} if action is None else {"action": action}
        return self.say("step", **fields)[0][0]


@contextlib.contextmanager
def serving(house, guard=None, **options):
    """A server in a thread; gives its address without scheme."""
    socket = listen("127.0.0.1", 0)
    play = PlayServer(house, guard or Guard("127.0.0.1"), **options)
    server = server_of(play)
    thread = threading.Thread(target=lambda: server.run(sockets=[socket]), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{socket.getsockname()[1]}", play, server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


class Client:
    """Speaks the protocol."""

    def __init__(self, address, **hello):
        self.connection = connect(f"ws://{address}/ws", max_size=None)
        self.socket = self.connection.__enter__()
        self.number = 0
        self.facts = self.ask("hello", **{"protocol": 1, **hello})

    def ask(self, type_, **fields):
        self.number += 1
        self.socket.send(json.dumps({"type": type_, "id": self.number, **fields}))
        return self.answer(self.number)

    def answer(self, number):
        while True:
            told = self.next()
            if told.get("id") == number or told["type"] == "closed":
                return told

    def next(self):
        told = self.socket.recv(timeout=30)
        return json.loads(told) if isinstance(told, str) else unpack(told)[0]

    def open(self, **opening):
        return self.ask("open", opening=opening or {"level": "Count"})

    def close(self):
        self.connection.__exit__(None, None, None)
