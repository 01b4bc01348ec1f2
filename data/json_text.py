"""JSON that others wrote: whatever is wrong with it ends in one line that says what to do."""

import json
import math
import re
from pathlib import Path
from typing import Any

_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
INT64 = range(-(2**63), 2**63)
"""Integers that a data folder can hold."""


def parsed(text: str | bytes, fix: str = "write it again") -> Any:
    """The content of a JSON text.

    Numbers have to be finite, integers have to fit into 64 bits, and words have to be Unicode.

    Args:
        text: UTF-8 if it is bytes.
        fix: What to do where it is damaged.

    Raises:
        ValueError: If it is no such JSON.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        content = json.loads(
            text, parse_constant=_refused, parse_float=_finite, parse_int=_small_integer
        )
        if _HALF.search(text):  # of a character beyond the first 65,536, perhaps with its other
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise ValueError(
            f"\\u{code:04x} is half of a character and stands alone; write the text as UTF-8"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON ({error}); {fix}") from error
    except RecursionError:
        raise ValueError(f"JSON that is nested too deeply; {fix}") from None


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number; leave such steps out, or mend them")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number; leave such steps out, or mend them")
    return value


def _small_integer(text: str) -> int:
    if len(text) > 20 or int(text) not in INT64:
        short = text if len(text) <= 24 else f"{text[:20]}..."
        raise ValueError(f"{short} does not fit into 64 bits; give a smaller integer")
    return int(text)


def read_json(path: Path, fix: str = "copy it again") -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ValueError: If it is missing or damaged; names the file.
    """
    try:
        content = parsed(path.read_bytes(), fix)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {fix}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); {fix}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {fix}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no object); {fix}")
    return content


def read_lines(path: Path, fix: str = "copy it again") -> list[dict[str, Any]]:
    """A file with one JSON object on each line; empty lines are skipped.

    Raises:
        ValueError: If it is missing or damaged; names file and line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {fix}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = parsed(line, fix)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}:{number}: no object; {fix}")
        found.append(content)
    return found
