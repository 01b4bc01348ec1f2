"""Rooms: the games of a server, who is in them, and when they are given up."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unified.play.game import Game, House


@dataclass
class Room:
    """A game, by a name that only its player knows.

    Attributes:
        name: Secret.
        game: Whose methods are called one after the other.
        guest: The connection that plays; None while nobody does.
        touched: When somebody last spoke, by the clock of the rooms.
    """

    name: str
    game: Game
    guest: Any = None
    touched: float = field(default=0.0)


class Rooms:
    """All games of a server."""

    def __init__(
        self,
        house: House,
        most: int,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begins without games.

        Args:
            house: What they share.
            most: Games at a time.
            idle_seconds: After which a game is given up.
            clock: Tells seconds.
        """
        self.house, self.most, self.idle_seconds, self._clock = house, most, idle_seconds, clock
        self._rooms: dict[str, Room] = {}

    def __len__(self) -> int:
        """Games that are kept."""
        return len(self._rooms)

    def enter(self, name: str | None, guest: Any) -> tuple[Room, Any]:
        """A game of one's own, or the one that was left.

        Args:
            name: Of the game that was left; None, or one that was given up, gets a new one.
            guest: The connection.

        Returns:
            The room, and the connection that was in it until now, if any.

        Raises:
            ValueError: If all places are taken.
        """
        room = self._rooms.get(name or "")
        if room is None:
            self.sweep()
            if len(self._rooms) >= self.most and not self._give_up_a_left_one():
                raise ValueError(f"all {self.most} places are taken; try again later")
            room = Room(secrets.token_urlsafe(18), Game(self.house))
            self._rooms[room.name] = room
        before, room.guest = room.guest, guest
        room.touched = self._clock()
        return room, before

    def touch(self, room: Room) -> None:
        """Notes that somebody spoke."""
        room.touched = self._clock()

    def leave(self, room: Room, guest: Any) -> None:
        """Notes that a connection is gone; the game waits for its player."""
        if room.guest is guest:
            room.guest = None
            if room.game.timeline is None:
                self.give_up(room)  # there is nothing to come back to

    def sweep(self) -> list[Room]:
        """Gives up the games in which nobody spoke for long."""
        late = self._clock() - self.idle_seconds
        gone = [room for room in self._rooms.values() if room.touched < late]
        for room in gone:
            self.give_up(room)
        return gone

    def give_up(self, room: Room) -> None:
        """Forgets a game."""
        self._rooms.pop(room.name, None)
        room.game.close()

    def _give_up_a_left_one(self) -> bool:
        left = [room for room in self._rooms.values() if room.guest is None]
        if left:
            self.give_up(min(left, key=lambda room: room.touched))
        return bool(left)
