"""Who may come in: hosts, origins, tokens, and how often somebody may speak."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Of every answer: nothing is loaded from elsewhere, and no text becomes a program."""


def is_local(host: str) -> bool:
    """Whether an address is seen by this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Guard:
    """The rules of one server.

    Attributes:
        host: That it listens at.
        token: That a player has to show; None where only this machine can come.
    """

    host: str
    token: str | None = None

    def __post_init__(self) -> None:
        """Checks that a token is set where other machines can reach the server.

        Raises:
            ValueError: If other machines could come in without a token.
        """
        if not is_local(self.host) and not self.token:
            raise ValueError(
                f"--host {self.host} lets other machines in; give a --token that players have to "
                "know, or leave --host out"
            )
        if self.token is not None and len(self.token) < 12:
            raise ValueError("--token is too easy to guess; give 12 characters or more")

    def refusal(self, headers: Mapping[str, str]) -> str | None:
        """Why a request is refused by its headers; None if it is not.

        A page of another origin may not speak to the server, and where only this machine may come,
        neither may one whose name was made to mean this machine (DNS rebinding).
        """
        told = headers.get("host", "")
        name = urlsplit(f"//{told}").hostname or ""
        if is_local(self.host):
            allowed = {host.strip("[]") for host in (*LOCAL_HOSTS, self.host)}
            if name not in allowed:
                return "the server is asked by another name than this machine's"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != told:
            return "a page of another origin may not speak to the server"
        return None

    def knows(self, token: str | None) -> bool:
        """Whether a player showed the token; takes as long for a wrong one as for a right one."""
        if self.token is None:
            return True
        return hmac.compare_digest((token or "").encode(), self.token.encode())


class Pace:
    """How often somebody may speak: `burst` messages at once, then `rate` a second."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        """Nobody has spoken yet."""
        self.rate, self.burst, self._clock = rate, burst, clock
        self._left, self._last = burst, clock()

    def allows(self) -> bool:
        """Whether one more message is taken now."""
        now = self._clock()
        self._left = min(self.burst, self._left + self.rate * (now - self._last))
        self._last = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
