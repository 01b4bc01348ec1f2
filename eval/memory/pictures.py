"""Curves and strips of frames for the page of `eval.memory`."""

from typing import Any

import numpy as np

from eval.babyai.tiles import read_frame, sprites
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


GAP = 8
"""Pixels between the pictures of a sheet."""


def sheet(records: dict[str, dict[str, Any]]) -> np.ndarray:
    """One trip as a picture: the first view, then the returns that all memories have, a row each.

    It is the trip with the most things in its first view.

    Returns:
        `(H, W, 3)` uint8, twice as large as the frames.
    """
    trips = next(iter(records.values()))["shown"]
    kinds = np.array([sprite.kind in ("ball", "box", "key") for sprite in sprites()])
    seen = read_frame(np.array([trip["seen"] for trip in trips], dtype=np.uint8))[0]
    chosen = int(kinds[seen].sum((1, 2)).argmax())
    shown = [record["shown"][chosen] for record in records.values()]
    common = [k for k in shown[0]["drawn"] if all(k in trip["drawn"] for trip in shown)]
    rows = []
    for trip in shown:
        frames = [trip["seen"], *(trip["drawn"][k] for k in common)]
        cells = [np.array(frame, dtype=np.uint8).repeat(2, 0).repeat(2, 1) for frame in frames]
        gap = np.full((len(cells[0]), GAP, 3), 255, dtype=np.uint8)
        parts = [part for cell in cells for part in (cell, gap)][:-1]
        rows.append(np.concatenate(parts, 1))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1], 0)
