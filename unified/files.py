"""Files and folders that are there whole or not at all, however a program ends."""

import ctypes
import errno
import glob
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights, as safetensors calls them."""
UNFINISHED = ".unfinished"
"""Lies in a folder that cannot be swapped as a whole, while its files are replaced one by one."""

_PART = re.compile(r"\.(.+)\.(\d+)\.(part|old)")
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2
_NO_SIBLING = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_NO_RENAME = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM)  # such as a mount point


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path that becomes the file `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = _beside(path, "part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: Path, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Gives a temporary folder whose files are in `folder` if the block ends without an error.

    Whoever looks sees all of the new files or none of them. Other files of `folder` stay. Who may
    read a file is not left to the library that wrote it: safetensors shuts out all but the owner.

    Args:
        folder: To write to, made if missing.
        replaces: Names at the top of `folder`, with wildcards, that do not stay: what was saved
            there before and may have no successor.

    Raises:
        ValueError: If `folder` is a file.
    """
    with _draft(folder, replaces) as draft:
        yield draft


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder that replaces `folder` as a whole.

    The old one stays untouched until then: nothing in it is kept.

    Raises:
        ValueError: If `folder` is a file.
    """
    with _draft(folder, ("*",)) as draft:
        yield draft


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: If it cannot be read, or holds something else; names the file and the fix.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); restore it, or copy its folder again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a JSON object, got {type(content).__name__}; restore it, or copy "
            "its folder again"
        )
    return content


def path_inside(folder: Path, path: Path, *, allow_outside: bool = False) -> Path:
    """A path that a file of others names, if it stays in its folder.

    Args:
        folder: Which it must not leave, by dots, an absolute path or a link.
        path: As it is named, put behind the folder.
        allow_outside: Whether it may leave it.

    Raises:
        ValueError: If it leaves it.
    """
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, circular links
        raise ValueError(f"{str(path)[:200]!r} is no path ({error}); name a file") from error
    if not is_inside and not allow_outside:
        raise ValueError(
            f"{path} lies outside of {folder}; put the file below it, or say --allow-outside"
        )
    return path


def check_weights(path: Path) -> None:
    """Refuses weights that are no floating point numbers, such as quantised ones.

    Read as numbers, they would make another model without a word.

    Raises:
        ValueError: If the file is broken, or a tensor is of another type; names both.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= path.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(size))
        types = {name: one["dtype"] for name, one in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the weights in {path} are corrupt ({error}); copy the checkpoint again"
        ) from error
    for name, dtype in types.items():
        if dtype not in FLOATS:
            raise ValueError(
                f"tensor {name} in {path} is {dtype}; give weights in {', '.join(FLOATS)}, "
                "without quantisation"
            )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_whole(folder: Path) -> None:
    """Refuses a folder in which files were being replaced one by one when the writer was killed.

    Raises:
        ValueError: If it is such a folder.
    """
    if (folder / UNFINISHED).exists():
        raise ValueError(
            f"{folder} is half old and half new, since the program that wrote it was stopped; "
            "write it again"
        )


def is_part(path: Path) -> bool:
    """Whether a program that was killed left this: nobody misses it."""
    return _PART.fullmatch(path.name) is not None


def _real(path: Path) -> Path:
    """The folder itself, not a link to it, and with a name of its own even if it is `.`."""
    return Path(os.path.realpath(path))


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


@contextmanager
def _draft(folder: Path, replaces: tuple[str, ...]) -> Iterator[Path]:
    """A temporary folder that is put in the place of `folder` at the end."""
    folder = _real(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder that can be written")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    draft = _beside(folder, "part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
    except OSError as error:
        if error.errno not in _NO_SIBLING or not folder.is_dir():
            raise
        draft = folder / draft.name  # only the folder itself can be written to
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    try:
        yield draft
        for path in draft.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o644)
        _keep_others(folder, draft, replaces)
        _put(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _keep_others(folder: Path, draft: Path, replaces: tuple[str, ...]) -> None:
    """Links what `folder` holds besides into the draft that will replace it."""
    if not folder.is_dir():
        return
    for source in folder.rglob("*"):
        relative = source.relative_to(folder)
        is_replaced = any(fnmatch(relative.parts[0], name) for name in replaces)
        target = draft / relative
        if is_replaced or any(_PART.fullmatch(part) for part in relative.parts):
            continue
        if source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
        elif relative.name != UNFINISHED and not os.path.lexists(target):
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:  # a file system without links
                shutil.copy2(source, target, follow_symlinks=False)


def _put(draft: Path, folder: Path) -> None:
    """Moves a draft to its place; the old content, if there is any, goes."""
    if draft.parent == folder:
        _replace_files(draft, folder)
        return
    try:
        if not folder.exists():
            os.rename(draft, folder)
            return
        shutil.copymode(folder, draft)
        found = set(os.listdir(folder))
        try:
            _exchange(draft, folder)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            old = _beside(folder, "old")  # `_sweep` puts it back if we are killed in between
            os.rename(folder, old)
            os.rename(draft, folder)
            os.rename(old, draft)
        # What another process wrote meanwhile, such as another rank to a checkpoint.
        for name in set(os.listdir(draft)) - found:
            os.rename(draft / name, folder / name)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        _replace_files(draft, folder)


def _exchange(one: Path, other: Path) -> None:
    """Swaps two paths, atomically.

    Raises:
        OSError: If the system or the file system cannot.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "no renameat2")
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "no renameat2")
    here = -100  # AT_FDCWD
    if rename(here, os.fsencode(one), here, os.fsencode(other), _EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def _replace_files(draft: Path, folder: Path) -> None:
    """Moves files one by one, under a savepoint that `check_whole` refuses."""
    mark = folder / UNFINISHED
    mark.touch()
    kept = {path.relative_to(draft) for path in draft.rglob("*")}
    for path in sorted(folder.rglob("*"), reverse=True):
        relative = path.relative_to(folder)
        if path == mark or relative in kept or any(_PART.fullmatch(p) for p in relative.parts):
            continue
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    for source in sorted(draft.rglob("*")):
        target = folder / source.relative_to(draft)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            shutil.move(source, target)
    mark.unlink()


def _sweep(path: Path) -> None:
    """Removes what killed programs left of `path`, and puts back what they had moved away."""
    for left in path.parent.glob(f".*{glob.escape(path.name)}.*"):
        match = _PART.fullmatch(left.name)
        if match is None or _is_running(int(match[2])):
            continue
        name = match[1]
        while nested := _PART.fullmatch(name):  # a draft of something that was a draft itself
            name = nested[1]
        if name != path.name:
            continue
        if match[3] == "old" and match[1] == path.name and not path.exists():
            os.rename(left, path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
