"""Files that are there whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights, as safetensors calls them."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path that becomes the file `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder whose files move into `folder` if the block ends without an error.

    Other files of `folder` stay. Who may read a file is not left to the library that wrote it:
    safetensors shuts out all but the owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        yield Path(temporary)
        for source in sorted(Path(temporary).rglob("*")):
            target = folder / source.relative_to(temporary)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                source.chmod(0o644)
                os.replace(source, target)


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
        raise ValueError(f"the weights in {path} are corrupt ({error}); copy them again") from error
    for name, dtype in types.items():
        if dtype not in FLOATS:
            raise ValueError(
                f"tensor {name} in {path} is {dtype}; give weights in {', '.join(FLOATS)}"
            )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
