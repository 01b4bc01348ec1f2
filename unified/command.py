"""What commands share: the device they run on, functions named in an option, and how they end."""

import errno
import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_CANNOT_WRITE = {
    number: advice
    for numbers, advice in (
        ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, and run it again"),
        ((errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that can be written"),
        ((errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG), "choose another path"),
    )
    for number in numbers
}


@contextmanager
def command(name: str) -> Iterator[None]:
    """Runs what a command does; bad input, a full disk, and Ctrl+C end it in one line.

    Args:
        name: The command as one types it, which opens the line.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{name}: stopped", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except ValueError as error:
        _end(name, str(error), error)
    except Exception as error:
        advice = _CANNOT_WRITE.get(_number_of(error) or 0)
        if advice is None:
            raise
        _end(name, f"{error}; {advice}", error)


def _number_of(error: Exception) -> int | None:
    """The number of a failed write; the libraries that write weights do not raise OSErrors."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    for number in (errno.ENOSPC, errno.EFBIG, errno.EROFS):
        if f"os error {number})" in text:  # safetensors, tokenizers
            return number
    return errno.ENOSPC if "file write failed" in text else None  # torch.save


def _end(name: str, message: str, error: Exception) -> None:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
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
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name!r} cannot be used ({reason}); use cpu or cuda") from error
    return name


def named_function(module: str, name: str) -> Callable[..., Any]:
    """A function of a module, such as a policy that somebody wrote.

    Raises:
        ValueError: Saying why it cannot be had, even where the module itself breaks off.
    """
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever runs when a module is imported, or does not parse
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"{name!r} of {module} is no function but {type(found).__name__}")
    return found
