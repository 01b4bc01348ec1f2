"""How every command ends where its input is bad: in one line, with status 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def command(name: str) -> Iterator[None]:
    """Runs what a command does; a ValueError ends the program.

    Args:
        name: The command as one types it, which opens the line.
    """
    try:
        yield
    except ValueError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
