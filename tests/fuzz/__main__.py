"""Runs a fuzz, and exits with status 1 where it found a fault.

python -m tests.fuzz conversations --count 10000
python -m tests.fuzz checkpoints --count 500
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class FuzzArguments:
    """How much of what."""

    kind: tyro.conf.Positional[Literal["conversations", "checkpoints", "kills"]]
    """A module of this folder, whose function `fuzz(count, seed)` returns a `Tally`."""
    count: int = 300
    """Tries."""
    seed: int = 0
    """Of the first; each has the next one, and is made again with --seed N --count 1."""


def main() -> None:
    """Command line."""
    arguments = tyro.cli(FuzzArguments, description=__doc__)
    fuzz = import_module(f"tests.fuzz.{arguments.kind}").fuzz
    tally = fuzz(arguments.count, arguments.seed)
    print(tally)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
