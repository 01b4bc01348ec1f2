"""Runs a fuzz, and exits with status 1 where it found a fault.

python -m tests.fuzz conversations --count 10000
python -m tests.fuzz checkpoints --count 500

`python -m tests.fuzz.kills` kills whatever writes a folder.
"""

import sys
from dataclasses import dataclass
from importlib import import_module

import tyro

from unified.command import command

KINDS = ("checkpoints", "conversations")


@dataclass(frozen=True, kw_only=True)
class FuzzArguments:
    """How much of what."""

    kind: tyro.conf.Positional[str]
    """Name of the module."""
    count: int = 300
    """Tries."""
    seed: int = 0
    """Of the first; each has the next one, and is made again with --seed N --count 1."""


def main() -> None:
    """Command line."""
    arguments = tyro.cli(FuzzArguments, description=__doc__)
    with command("tests.fuzz"):
        if arguments.kind not in KINDS:
            raise ValueError(f"{arguments.kind!r} is unknown; use one of {', '.join(KINDS)}")
    fuzz = import_module(f"tests.fuzz.{arguments.kind}").fuzz
    tally = fuzz(arguments.count, arguments.seed)
    print(tally)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
