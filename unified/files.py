"""Files that are there whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_weights(folder: Path) -> None:
    """Refuses safetensors files of whole numbers, which a loader would silently take as they are.

    Files that are broken are left to the loader.

    Raises:
        ValueError: If a tensor holds integers or booleans; names file and tensor.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > path.stat().st_size:
                    continue
                header = json.loads(file.read(size))
            dtypes = {k: v["dtype"] for k, v in header.items() if k != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, dtype in dtypes.items():
            if str(dtype).startswith(("I", "U", "BOOL")):
                raise ValueError(
                    f"{path} holds {name} as {dtype}, and weights are floats; save the model "
                    "without quantisation, in float32, bfloat16 or float16"
                )
