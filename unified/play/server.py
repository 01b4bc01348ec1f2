"""The server: a page, and the protocol over a WebSocket, for people and programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.websockets import WebSocketState

from unified.play.game import Answer, House
from unified.play.guard import HEADERS, Guard, Pace
from unified.play.protocol import MAX_MESSAGE, VERSION, Hello, read_request, request_id
from unified.play.rooms import Room, Rooms

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
RATE, BURST = 100.0, 200.0
"""Messages a second that one connection may send."""
MOST_WAITING = 32
"""Messages of one connection that wait to be answered."""
MOST_FAULTS = 50
"""Messages in a row that cannot be read, until the connection is closed."""
MOST_REFUSED = 2_000
"""Messages in a row that come too fast, until the connection is closed."""
HELLO_SECONDS = 10.0
SWEEP_SECONDS = 5.0
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class _ClosedError(Exception):
    """The connection is to end, with a code and a reason."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason


class PlayServer:
    """Connections, games, and how they end.

    Attributes:
        app: For uvicorn, or for a test's client.
        rooms: The games.
        is_stopping: No more inputs are taken.
    """

    def __init__(self, house: House, guard: Guard, most: int = 16, idle_seconds: float = 900.0):
        """Begins without connections.

        Args:
            house: What all games share.
            guard: Who may come in.
            most: Games at a time.
            idle_seconds: After which a game is given up.
        """
        self.house, self.guard = house, guard
        self.rooms = Rooms(house, most, idle_seconds)
        self.is_stopping = False
        self._running = 0
        self.app = FastAPI(lifespan=self._life, docs_url=None, redoc_url=None, openapi_url=None)
        self.app.middleware("http")(self._check)
        self.app.get("/")(self._page)
        self.app.get("/page/{name}")(self._page)
        self.app.get("/health")(self._health)
        self.app.websocket("/ws")(self._connect)

    # HTTP

    @contextlib.asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(self._sweep())
        yield
        sweeper.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self.rooms.idle_seconds))
            for room in self.rooms.sweep():
                if room.guest is not None:
                    words = "nobody played for long, so the game was given up; reload to begin anew"
                    await _close(room.guest, 4008, words)

    async def _check(self, request: Request, call_next: Any) -> Response:
        refusal = self.guard.refusal(request.headers)
        if refusal is not None:
            response: Response = PlainTextResponse(refusal, 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    async def _page(self, name: str = "index.html") -> Response:
        files = {path.name: path for path in PAGE.iterdir() if path.suffix in _KINDS}
        if name not in files:  # a name, and never a path
            return PlainTextResponse("there is no such page", 404)
        return FileResponse(files[name], media_type=_KINDS[files[name].suffix])

    async def _health(self) -> dict[str, Any]:
        return {"protocol": VERSION, "games": len(self.rooms), "most": self.rooms.most}

    # WebSocket

    async def _connect(self, socket: WebSocket) -> None:
        if self.guard.refusal(socket.headers) is not None or self.is_stopping:
            await socket.close(4003)
            return
        await socket.accept()
        room: Room | None = None
        try:
            room, hello = await self._welcome(socket)
            await self._talk(socket, room, hello)
        except _ClosedError as end:
            await _close(socket, end.code, end.reason)
        except WebSocketDisconnect:
            pass
        except RuntimeError as error:  # a tab that closed while it was spoken to
            logger.debug("connection lost: %s", error)
        finally:
            if room is not None:
                self.rooms.leave(room, socket)

    async def _welcome(self, socket: WebSocket) -> tuple[Room, Hello]:
        try:
            text = await asyncio.wait_for(_receive(socket), HELLO_SECONDS)
            hello = read_request(text)
        except TimeoutError:
            raise _ClosedError(4000, "no hello came; speak first") from None
        except ValueError as error:
            raise _ClosedError(4000, f"hello: {error}") from None
        if not isinstance(hello, Hello):
            raise _ClosedError(4000, "the first message is no hello; see docs/play.md")
        if hello.protocol != VERSION:
            words = f"the player speaks protocol {hello.protocol}, the server {VERSION}; "
            raise _ClosedError(4001, words + "reload the page, or install the same version")
        if not self.guard.knows(hello.token):
            raise _ClosedError(4003, "the token is missing or wrong; ask whoever runs the server")
        try:
            room, before = self.rooms.enter(hello.session, socket)
        except ValueError as error:
            raise _ClosedError(4029, str(error)) from None
        room.game.is_exact = hello.exact
        if before is not None:
            await _close(before, 4009, "the game goes on in another window")
        await _send(socket, self._facts(room, hello))
        for message in room.game.frames(hello.id):
            await _send(socket, message)
        return room, hello

    def _facts(self, room: Room, hello: Hello) -> dict[str, Any]:
        """What a player has to know."""
        engine, house = self.house.engine, self.house
        lexicon = engine.processor.lexicon
        phrases = [] if lexicon is None else [one.say for one in lexicon.phrases]
        return {
            "type": "welcome",
            "id": hello.id,
            "protocol": VERSION,
            "session": room.name,
            "model": house.model,
            "parameters": sum(p.numel() for p in engine.model.parameters()),
            "actions": engine.actions.to_config(),
            "frame_size": engine.frame_size,
            "tile": engine.tile,
            "steps": engine.steps,
            "levels": house.levels,
            "has_reality": house.make is not None,
            "knows_world": engine.knows_world,
            "phrases": phrases,
            "words": [] if lexicon is None else lexicon.words,
            "is_open": room.game.timeline is not None,
        }

    async def _talk(self, socket: WebSocket, room: Room, hello: Hello) -> None:
        """Reads messages, and answers them one after the other."""
        waiting: asyncio.Queue[Any] = asyncio.Queue(MOST_WAITING)
        answering = asyncio.create_task(self._answer_all(socket, room, waiting))
        pace, faults, refused = Pace(RATE, BURST), 0, 0
        try:
            while True:
                reading = asyncio.create_task(_receive(socket))
                await asyncio.wait({reading, answering}, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    reading.cancel()
                    answering.result()
                    return
                text = reading.result()
                self.rooms.touch(room)
                refusal = None
                if self.is_stopping:
                    refusal = "the server is being stopped; try again when it is back"
                elif not pace.allows():
                    refused += 1
                    refusal = f"more than {RATE:.0f} messages a second; slow down"
                else:
                    refused = 0
                    try:
                        waiting.put_nowait(read_request(text))
                        faults = 0
                    except asyncio.QueueFull:
                        refusal = f"{MOST_WAITING} messages wait already; wait for their answers"
                    except ValueError as error:
                        faults += 1
                        refusal = str(error)
                if refusal is not None:
                    await _send(socket, _error(request_id(text), refusal))
                if faults >= MOST_FAULTS:
                    raise _ClosedError(4000, "too many messages that cannot be read")
                if refused >= MOST_REFUSED:
                    raise _ClosedError(4000, "the messages come too fast; slow down")
        finally:
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await answering

    async def _answer_all(self, socket: WebSocket, room: Room, waiting: asyncio.Queue[Any]) -> None:
        while True:
            request = await waiting.get()
            self._running += 1
            try:
                async for message in room.game.answer(request):
                    await _send(socket, message)
            except ValueError as error:
                await _send(socket, _error(request.id, " ".join(str(error).split())[:500]))
            except (WebSocketDisconnect, RuntimeError):
                raise
            except Exception:
                logger.exception("a game failed")
                self.rooms.give_up(room)
                words = "this game failed, and was given up; reload to begin anew"
                raise _ClosedError(4011, words) from None
            finally:
                self._running -= 1

    async def drain(self) -> None:
        """Takes no more inputs, and waits until running frames are sent."""
        self.is_stopping = True
        while self._running:
            await asyncio.sleep(0.01)


def _error(id_: int | None, words: str) -> dict[str, Any]:
    return {"type": "error", "id": id_, "words": words}


async def _receive(socket: WebSocket) -> str | bytes:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text = message.get("text")
    return message["bytes"] if text is None else text


async def _send(socket: WebSocket, message: Answer) -> None:
    if isinstance(message, bytes):
        await socket.send_bytes(message)
    else:
        await socket.send_text(json.dumps(message, separators=(",", ":")))


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        if socket.application_state is WebSocketState.CONNECTED:
            await socket.send_text(json.dumps({"type": "closed", "code": code, "words": reason}))
            await socket.close(code, reason.encode()[:120].decode(errors="ignore"))


class _Uvicorn(uvicorn.Server):
    """Lets running frames finish before connections are closed."""

    def __init__(self, config: uvicorn.Config, play: PlayServer):
        super().__init__(config)
        self._play = play

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._play.drain(), 10)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Address.
        port: 0 takes any that is free.

    Raises:
        ValueError: If the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host.strip("[]"), port))
        made.listen(128)
    except (OSError, OverflowError) as error:
        made.close()
        raise ValueError(
            f"cannot listen at {host}:{port} ({error}); choose another --port, or 0 for any"
        ) from error
    return made


def server_of(play: PlayServer) -> uvicorn.Server:
    """What runs the app; `serve(sockets=[...])` or `run(sockets=[...])` of it."""
    config = uvicorn.Config(
        play.app,
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=5,
        server_header=False,
        date_header=False,
    )
    return _Uvicorn(config, play)
