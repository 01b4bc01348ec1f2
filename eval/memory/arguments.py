"""What `python -m eval.memory` is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Part = Literal["turn", "walk", "rooms", "circle", "loop", "unseen", "drift"]
PARTS: tuple[Part, ...] = ("turn", "walk", "rooms", "circle", "loop", "unseen", "drift")


@dataclass(frozen=True, kw_only=True)
class MemoryArguments:
    """Leave, come back, and compare with the real environment, on seeds that training never saw."""

    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    memories: tuple[str, ...] = ("window", "place")
    """What is compared: "window:frames=80", "window:sinks=2", "place:recent=4", ..."""
    parts: tuple[Part, ...] = PARTS
    """What to measure: returns (turn, walk, rooms), laps (circle), the open loop, what goes on
    off screen (unseen), drift."""
    out: Path = Path("runs/memory")
    """Folder for memory.json, memory.md and memory.html, and for what was measured so far."""
    episodes: int = 6
    """Trips of each kind, and episodes of the open loop; drift has a third of them."""
    longest: int = 64
    """Most frames that one is away (4 to 512), and horizon of the open loop."""
    frames: int = 200
    """Frames of a drift."""
    seed: int | None = None
    """First environment seed; None is the first of development."""
    final: bool = False
    """Take the seeds that are kept for the final run of a release."""
    num_inference_steps: int = 2
    """Denoise steps of a frame."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""
