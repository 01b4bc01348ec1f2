"""The timeline: a tree of frames that were played, its lanes, and how much memory it may take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unified.play.protocol import AgentSeat, WorldSeat
from unified.sampling.moment import Moment

MOST_FRAMES = 5_000
"""Of one timeline."""
_KEPT = 4
"""Moments before the present one that are never given up, so that undoing goes on working."""


@dataclass(eq=False)
class Node:
    """A frame, and how it came about.

    Attributes:
        number: Of the node; never used twice.
        parent: The frame before; None at the beginning.
        pixels: What the player sees, `(H, W, 3)` uint8.
        truth: What the environment showed beside a dream; None where nobody knows.
        outcome: What the world that the player sees says.
        truth_outcome: What the environment says beside a dream.
        moment: To go on from; None once it was given up to save memory.
        action: What led here, by its name; None at the beginning.
        said: The agent's words before it.
        heard: Tasks that it was told before it.
        told: What the world was told.
        world: Who made the frame.
        agent: Who acted.
        task: Of the episode until here.
        wrong: Tiles of a dream that differ from the truth.
        chances: Of the outcomes, where the model told them.
    """

    number: int
    parent: Node | None
    pixels: np.ndarray
    outcome: str
    moment: Moment | None
    truth: np.ndarray | None = None
    truth_outcome: str | None = None
    action: Any = None
    said: str | None = None
    heard: tuple[str, ...] = ()
    told: str | None = None
    world: WorldSeat = "dream"
    agent: AgentSeat = "human"
    task: str | None = None
    wrong: tuple[int, ...] = ()
    chances: dict[str, float] | None = None

    @property
    def depth(self) -> int:
        """Steps since the beginning."""
        return sum(1 for _ in self.path()) - 1

    @property
    def is_over(self) -> bool:
        """Whether the episode ended here."""
        return self.outcome != "ongoing" or self.truth_outcome not in (None, "ongoing")

    def path(self) -> Iterator[Node]:
        """This frame and those before, backwards."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def lane(self) -> list[Node]:
        """The frames from the beginning until here."""
        return list(self.path())[::-1]

    @property
    def num_bytes(self) -> int:
        """Memory that it holds itself."""
        shown = self.pixels.nbytes + (0 if self.truth is None else self.truth.nbytes)
        return shown + (0 if self.moment is None else self.moment.added)

    def is_same(self, other: Node) -> bool:
        """Whether another step came to the same frame in the same way."""
        return (
            self.action == other.action
            and (self.said, self.heard, self.told) == (other.said, other.heard, other.told)
            and (self.world, self.outcome) == (other.world, other.outcome)
            and np.array_equal(self.pixels, other.pixels)
            and self.truth_outcome == other.truth_outcome
        )


class Timeline:
    """The frames of one player's episode.

    Attributes:
        nodes: By number.
        now: The present frame.
    """

    def __init__(self, root: Node, most_bytes: int):
        """A timeline of one frame.

        Args:
            root: The first frame.
            most_bytes: Memory that frames may take.
        """
        self.nodes: dict[int, Node] = {root.number: root}
        self.root = self.now = root
        self.most_bytes = most_bytes
        self._children: dict[int, list[Node]] = {root.number: []}
        self._used: list[int] = [root.number]
        self._next = root.number + 1

    @property
    def next_number(self) -> int:
        """Of the next node."""
        return self._next

    @property
    def num_bytes(self) -> int:
        """Memory of all frames."""
        return sum(node.num_bytes for node in self.nodes.values())

    @property
    def is_full(self) -> bool:
        """Whether it takes no more frames."""
        return len(self.nodes) >= MOST_FRAMES

    def get(self, number: int) -> Node:
        """The frame of a number.

        Raises:
            ValueError: If there is none of that number.
        """
        if number not in self.nodes:
            raise ValueError(f"frame {number} is not on the timeline (any more); choose another")
        return self.nodes[number]

    def children(self, node: Node) -> list[Node]:
        """What was played from a frame."""
        return self._children[node.number]

    def add(self, node: Node) -> tuple[Node, list[int], int]:
        """Goes on to a frame.

        Args:
            node: Its parent is on the timeline.

        Returns:
            The present frame: an earlier one if that is the same; the numbers of frames that were
            given up with their branches; and how many others can be seen but no more returned to.
        """
        assert node.parent is not None
        for other in self.children(node.parent):
            if other.is_same(node) and other.moment is not None:
                self.go(other.number)
                return other, [], 0
        self.nodes[node.number] = node
        self._children[node.number] = []
        self._children[node.parent.number].append(node)
        self._next = node.number + 1
        self.go(node.number)
        return node, *self._save_memory()

    def go(self, number: int) -> Node:
        """Makes a frame the present one."""
        self.now = self.get(number)
        if number in self._used:
            self._used.remove(number)
        self._used.append(number)
        return self.now

    def _save_memory(self) -> tuple[list[int], int]:
        """Gives up the branches that were left longest ago, then the oldest moments."""
        kept = {node.number for node in self.now.path()}
        total, gone = self.num_bytes, []
        for number in list(self._used):
            if total <= self.most_bytes:
                return gone, 0
            while number in self.nodes and number not in kept and not self._children[number]:
                node = self.nodes.pop(number)
                total -= node.num_bytes
                gone.append(number)
                self._used.remove(number)
                del self._children[number]
                assert node.parent is not None
                self._children[node.parent.number].remove(node)
                number = node.parent.number
        faded = 0
        for node in self.now.lane()[: -1 - _KEPT]:
            if total <= self.most_bytes:
                break
            if node.moment is not None:
                total -= node.moment.added
                node.moment = None
                faded += 1
        return gone, faded


def digest_of(lane: list[Node]) -> str:
    """SHA-256 of all frames of a lane, and of the truth beside them."""
    total = hashlib.sha256()
    for node in lane:
        total.update(node.pixels.tobytes())
        if node.truth is not None:
            total.update(node.truth.tobytes())
    return total.hexdigest()
