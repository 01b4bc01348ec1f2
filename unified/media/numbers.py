"""The NumPy types in which environments hold the numbers of an action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def number_type(dtype: Any, name: str, kinds: str = "iuf") -> np.dtype:
    """The NumPy type of an environment's numbers.

    Args:
        dtype: Its name.
        name: Of the action space, for messages.
        kinds: Of NumPy types that may be: "i", "u" and "f".

    Raises:
        ValueError: If it is none of them.
    """
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.kind not in kinds or found.itemsize > 8:
        raise ValueError(
            f"dtype={dtype!r} of {name!r} is no type of its numbers; use one such as "
            f"{'float32 or ' if 'f' in kinds else ''}int64"
        )
    return found


def is_whole(dtype: Any) -> bool:
    """Whether numbers of a NumPy type are integers."""
    return np.issubdtype(np.dtype(dtype), np.integer)


def check_reach(name: str, values: np.ndarray, dtype: np.dtype) -> None:
    """Refuses numbers that the type cannot hold, or of which float64 cannot hold the sums."""
    if dtype.kind == "f":
        most = min(float(np.finfo(dtype).max), float(np.finfo(np.float64).max) / 2)
        least = -most
    else:
        least = max(float(np.iinfo(dtype).min), -(2.0**53))
        most = min(float(np.iinfo(dtype).max), 2.0**53)
    if values.size and not (least <= values.min() and values.max() <= most):
        raise ValueError(
            f"the numbers of {name!r} go from {values.min():g} to {values.max():g}, and as {dtype} "
            f"they must stay within {least:g} and {most:g}; clip them, or name narrower bounds"
        )


def number_table(name: str, columns: Sequence[str], rows: Any) -> np.ndarray:
    """Numbers as float64, `(N, D)`: a row for each action, a column for each of its numbers.

    Args:
        name: Of the action space, for messages.
        columns: Names of the numbers.
        rows: What somebody gave for them.

    Raises:
        ValueError: If it is something else, or there is no row.
    """
    try:
        table = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"the numbers of {name!r} cannot be read ({error})") from error
    if table.ndim != 2 or table.shape[1] != len(columns) or not len(table):
        raise ValueError(
            f"the numbers of {name!r} have shape {table.shape}; give rows of "
            f"{len(columns)}: {', '.join(columns)}"
        )
    return table
