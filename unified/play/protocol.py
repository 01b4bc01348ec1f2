"""The protocol: what a player and the server say to each other over one WebSocket.

Up go JSON messages. Down come JSON messages, and frames as binary ones: four bytes, big endian,
that tell the length of a JSON header, the header, then the pictures that it lists. Every answer
repeats the `id` of the message that it answers.

It needs neither torch nor the web framework, so programs can speak it, too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION = 1
"""Of the protocol; server and player must have the same."""
MAX_MESSAGE = 3 * 2**20
"""Bytes of a message from a player: a picture of two megabytes in base64, and words."""
MAX_PICTURE = 2 * 2**20
"""Bytes of a picture's file."""
MAX_WORDS = 400
"""Characters of a task, or of what is told or asked."""
MAX_STEPS = 2_000
"""Steps of a recipe."""
MAX_ITEMS = 64
"""Items of a prompt."""
_BASE64 = MAX_PICTURE * 4 // 3 + 4

AgentSeat = Literal["human", "model", "expert", "random"]
WorldSeat = Literal["dream", "real", "both"]
Id = Annotated[int, Field(ge=0, lt=2**53)]
Node = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_WORDS)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Picture = Annotated[str, Field(min_length=1, max_length=_BASE64)]


class Part(BaseModel):
    """Anything that is said: nothing is added, nothing is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Opening(Part):
    """How an episode opens: a level of the environment, a picture, or words.

    Attributes:
        level: One of the server's levels; with it the environment knows the truth.
        seed: Of the environment and of the model's noise.
        noise: Of the model's noise; None is `seed`.
        task: In words; None is the level's own.
        words: What the world says of its first frame, for a model that was taught such words.
        picture: A PNG, JPEG or WebP file in base64.
    """

    level: Name | None = None
    seed: Seed = 0
    noise: Seed | None = None
    task: Words | None = None
    words: Words | None = None
    picture: Picture | None = None


class Message(Part):
    """What a player says; `id` comes back with the answer."""

    id: Id


class Hello(Message):
    """The first message.

    Attributes:
        protocol: Version of the protocol that the client speaks.
        token: Password, where the server asks for one.
        session: Id of the session to resume, from an earlier connection.
        exact: Whether frames of any size are sent without loss.
    """

    type: Literal["hello"]
    protocol: int
    token: Annotated[str, Field(max_length=200)] | None = None
    session: Annotated[str, Field(max_length=64)] | None = None
    exact: bool = False


class Open(Message):
    """Opens an episode; the one before is forgotten."""

    type: Literal["open"]
    opening: Opening
    world: WorldSeat = "dream"


class Step(Message):
    """One step from the present frame.

    Attributes:
        action: What the human does; None lets the agent in the seat decide.
    """

    type: Literal["step"]
    action: Any = None


class Seats(Message):
    """Who sits where from now on; None leaves a seat as it is.

    Attributes:
        temperature: Of the model's actions.
    """

    type: Literal["seats"]
    agent: AgentSeat | None = None
    world: WorldSeat | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None


class Goto(Message):
    """Goes to a frame of the timeline; a step from there is a fork."""

    type: Literal["goto"]
    node: Node


class Instruct(Message):
    """A new task in mid-play; the agent hears it before it acts."""

    type: Literal["instruct"]
    words: Words


class Tell(Message):
    """Says what happens in the world with the next step."""

    type: Literal["tell"]
    words: Words


class Ask(Message):
    """Asks the model about a frame, outside of the episode; None asks what it sees."""

    type: Literal["ask"]
    node: Node
    words: Words | None = None


class Weigh(Message):
    """Asks what the model thinks at a frame."""

    type: Literal["weigh"]
    node: Node


class Denoise(Message):
    """Asks for the denoise steps of a frame that the model drew."""

    type: Literal["denoise"]
    node: Node


class Item(Part):
    """One item of a prompt."""

    role: Literal["task", "world", "agent"]
    text: Words | None = None
    picture: Picture | None = None
    action: Any = None


class Prompt(Message):
    """A conversation, and what is asked of it; see `UnifiedModel.generate`."""

    type: Literal["prompt"]
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    query: Literal["policy", "forward", "inverse", "joint"] | None = None
    seed: Seed = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    num_inference_steps: Annotated[int, Field(ge=1, le=32)] = 4
    max_turns: Annotated[int, Field(ge=1, le=32)] = 4
    think: bool | None = None


class Keep(Message):
    """Asks for the present lane as files: a recording to train on, or a moving picture."""

    type: Literal["keep"]
    what: Literal["recording", "gif", "mp4"]


class Share(Message):
    """Asks for the recipe of the present lane."""

    type: Literal["share"]


class Move(Part):
    """One step of a recipe.

    Attributes:
        action: What the agent did.
        said: Its words before.
        heard: Tasks that it was told before.
        told: What the world was told.
        world: Who sat in the world's seat.
        agent: Who sat in the agent's.
    """

    action: Any
    said: Words | None = None
    heard: Annotated[list[Words], Field(max_length=8)] = []
    told: Words | None = None
    world: WorldSeat = "dream"
    agent: AgentSeat = "human"


class Recipe(Part):
    """All inputs of a lane: it can be played again exactly.

    Attributes:
        model: Name of the model.
        steps: Denoise steps of a frame.
        opening: How it opened.
        world: Who sat in the world's seat then.
        moves: What was done.
        digest: SHA-256 of all frames; None compares nothing.
    """

    model: Annotated[str, Field(max_length=200)]
    steps: Annotated[int, Field(ge=1, le=64)]
    opening: Opening
    world: WorldSeat
    moves: Annotated[list[Move], Field(max_length=MAX_STEPS)]
    digest: Annotated[str, Field(max_length=64)] | None = None


class Replay(Message):
    """Plays a recipe; every frame is sent, then whether all are as they were."""

    type: Literal["replay"]
    recipe: Recipe


Request = (
    Hello
    | Open
    | Step
    | Seats
    | Goto
    | Instruct
    | Tell
    | Ask
    | Weigh
    | Denoise
    | Prompt
    | Keep
    | Share
    | Replay
)
_REQUEST = TypeAdapter(Annotated[Request, Field(discriminator="type")])


def read_request(text: str | bytes) -> Request:
    """Reads a message of a player.

    Raises:
        ValueError: If it is none; says what is wrong in one line.
    """
    if isinstance(text, bytes):
        raise ValueError("binary messages are not taken; send JSON as text")
    if len(text) > MAX_MESSAGE:
        raise ValueError(f"the message has more than {MAX_MESSAGE:,} bytes; send less")
    try:
        return _REQUEST.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"][:6])[:100] or "message"
        raise ValueError(f"{place}: {first['msg'][:200]}; see docs/play.md") from None


def request_id(text: str | bytes) -> int | None:
    """The id of a message that cannot be read, if it has one."""
    if isinstance(text, bytes) or len(text) > 4096:
        return None
    try:
        told = json.loads(text).get("id")
    except (ValueError, AttributeError, RecursionError):
        return None
    is_id = isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 2**53
    return told if is_id else None


def pack(header: Mapping[str, Any], files: Mapping[str, tuple[str, bytes]]) -> bytes:
    """Packs a header and files into one binary message.

    Args:
        header: JSON; gets the list `files` of names, types and sizes.
        files: Name -> media type and content.

    >>> unpack(pack({"type": "frame"}, {"view": ("image/png", b"abc")}))
    ({'type': 'frame'}, {'view': b'abc'})
    """
    listed = [[name, kind, len(content)] for name, (kind, content) in files.items()]
    head = json.dumps({**header, "files": listed}, separators=(",", ":")).encode()
    return b"".join([struct.pack(">I", len(head)), head, *(c for _, c in files.values())])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Header and files of a binary message; the inverse of `pack`."""
    (size,) = struct.unpack_from(">I", message)
    header = json.loads(message[4 : 4 + size])
    place, files = 4 + size, {}
    for name, _, length in header.pop("files"):
        files[name] = message[place : place + length]
        place += length
    return header, files
