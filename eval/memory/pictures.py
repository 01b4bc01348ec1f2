"""Curves and strips of frames for the page of `eval.memory`."""

from typing import Any

import numpy as np

from eval.pages import page
from eval.statistics import Estimate


def curves(lines: dict[str, list[tuple[int, Estimate]]], title: str, *, is_log: bool = True) -> str:
    """Shares in per cent with their intervals, a line for each memory."""
    return page.curve(lines, title, unit=" %", scale=100, is_log=is_log)


def strips(records: dict[str, dict[str, Any]]) -> str:
    """Trips that were kept: what was seen at first, and what is seen on return, by memory."""
    first = next(iter(records.values()))["shown"]
    parts = []
    for number, trip in enumerate(first):
        captions = ["first seen", *(f"back after {k}" for k in trip["drawn"])]
        seen = page.picture(np.array(trip["seen"], dtype=np.uint8))
        rows = {
            memory: [
                seen,
                *(
                    page.picture(np.array(frame, dtype=np.uint8))
                    for frame in record["shown"][number]["drawn"].values()
                ),
            ]
            for memory, record in records.items()
        }
        parts.append(page.lanes(rows, captions, trip["name"]))
    return "".join(parts)
