"""What a session remembers, in one line: "window", "window:frames=80,sinks=1", "place:recent=2".

The mechanisms are in `unified.sampling.memory`; this is their name and their numbers, which a
checkpoint's config, `start`, `WorldEnv` and the command line share.
"""

from dataclasses import dataclass

SETTINGS: dict[str, dict[str, int]] = {
    "window": {"frames": 1, "sinks": 0},
    "place": {"recent": 1, "cells": 1},
}
"""Kind -> its settings, and the least that each may be."""
MOST = 1 << 20
"""Frames or cells; more is a slip of the pen."""
HOW = "use 'window', 'window:frames=80,sinks=1', 'place' or 'place:recent=2,cells=4000'"


@dataclass(frozen=True)
class Memory:
    """A kind of memory and its settings.

    Attributes:
        kind: `window` keeps the last frames whole. `place` keeps the last few whole, and of what
            is older, for each cell of the world, the latents that showed it last.
        frames: Of `window`: frames that a token sees, its own included; None is the model's
            `window_frames`.
        sinks: Of `window`: first frames of the conversation that stay as its task does.
        recent: Of `place`: last frames that are whole.
        cells: Of `place`: most latents that are remembered besides, one or two of each cell; what
            was not seen for the longest time goes first.
    """

    kind: str
    frames: int | None = None
    sinks: int = 0
    recent: int = 2
    cells: int = 4000

    def __str__(self) -> str:
        """The text that `read_memory` reads back."""
        told = {name: getattr(self, name) for name in SETTINGS[self.kind]}
        given = ",".join(f"{name}={value}" for name, value in told.items() if value is not None)
        return f"{self.kind}:{given}"


def read_memory(text: str) -> Memory:
    """Reads a memory as it is written.

    Raises:
        ValueError: If the kind or a setting is unknown, or a number is out of range.

    >>> read_memory("place:recent=4").recent
    4
    """
    if not isinstance(text, str):
        raise ValueError(f"memory={text!r} is a {type(text).__name__}, no words; {HOW}")
    kind, _, rest = text.partition(":")
    if kind not in SETTINGS:
        raise ValueError(f"memory={text!r} is unknown; {HOW}")
    told: dict[str, int] = {}
    for part in rest.split(",") if rest else []:
        name, _, number = part.partition("=")
        if name not in SETTINGS[kind] or name in told:
            names = ", ".join(SETTINGS[kind])
            raise ValueError(f"memory={text!r}: {kind} has {names}, each once; {HOW}")
        if not number.isdecimal() or not SETTINGS[kind][name] <= int(number) <= MOST:
            raise ValueError(
                f"memory={text!r}: {name} is {number!r}, and must be a whole number from "
                f"{SETTINGS[kind][name]} to {MOST}"
            )
        told[name] = int(number)
    return Memory(kind, **told)
