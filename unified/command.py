"""What commands share: the device they run on, and how they end where their input is bad."""

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


def chosen_device(name: str | None) -> str:
    """The torch device of a command.

    Args:
        name: As torch names it; None takes CUDA where there is one, else the CPU.

    Returns:
        A name that torch can use here.

    Raises:
        ValueError: If it cannot be used on this machine.
    """
    import torch  # here, since `--help` has no need of it

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); try cpu or cuda") from error
    return name
