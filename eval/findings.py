"""Findings: figures with interval, floor and worst cell, and pictures of what went wrong."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from eval.pages import page
from eval.statistics import Estimate, ratio_over_episodes, wilson_interval
from unified.files import atomic_path, write_json

Counts = Mapping[str, list[bool]]
"""Verdicts of independent cases, by cell."""
MOST_PICTURES = 12


@dataclass(frozen=True)
class Row:
    """One figure of a table, with its floors.

    Attributes:
        label: What was measured.
        value: The figure with its interval.
        count: Of how many cases.
        floor: What one reaches without understanding; None where there is no such thing.
        worst: The cell in which the figure is lowest, with its own value.
        is_share: Whether values are shares, and printed in per cent.
    """

    label: str
    value: Estimate
    count: int
    floor: Estimate | None = None
    worst: tuple[str, Estimate] | None = None
    is_share: bool = True

    def texts(self) -> tuple[str, str, str, str, str]:
        """The columns of a table."""
        worst = f"{self.worst[0]}: {self._text(self.worst[1])}" if self.worst else ""
        floor = "" if self.floor is None else self._text(self.floor, short=True)
        return self.label, f"{self.count:,}", self._text(self.value), worst, floor

    def _text(self, estimate: Estimate, *, short: bool = False) -> str:
        if self.is_share:
            return f"{100 * estimate.value:.1f} %" if short else _percent(estimate)
        value = f"{estimate.value:.2f}"
        return value if short else f"{value} [{estimate.low:.2f}, {estimate.high:.2f}]"


HEADS = ("figure", "of", "value [95 % interval]", "worst cell", "floor")


@dataclass(frozen=True)
class Failure:
    """A case that went wrong, to look at."""

    words: str
    seen: list[np.ndarray]
    truth: np.ndarray
    drawn: np.ndarray
    wrong: np.ndarray
    open_tiles: np.ndarray


@dataclass
class Section:
    """One part of the findings.

    Attributes:
        title: What it is about.
        rows: The table.
        note: How to read it.
        cells: Every cell's value by figure, for the JSON and the list of the worst.
        failures: Pictures.
        words: Wrong words: what was asked, said, and true.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    note: str = ""
    cells: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Title, note, table, and the worst cells."""
        lines = [f"## {self.title}", "", self.note, ""]
        if self.rows:
            lines += [f"| {' | '.join(HEADS)} |", "|---|---|---|---|---|"]
            lines += [f"| {' | '.join(row.texts())} |" for row in self.rows]
        for figure, cells in self.cells.items():
            lowest = _lowest(cells)
            if lowest:
                lines += ["", f"Lowest cells of *{figure}* ({len(cells)} cells):", ""]
                lines += [f"- {name}: {_percent(value)}" for name, value in lowest]
        lines += [f"- {words}" for words in self.words[:MOST_PICTURES]]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """The same as a part of a page, with pictures."""
        head = "".join(f"<th>{escape(name)}</th>" for name in HEADS)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row.texts()) + "</tr>"
            for row in self.rows
        )
        parts = [f"<p>{escape(self.note)}</p>", f"<table><tr>{head}</tr>{body}</table>"]
        for figure, cells in self.cells.items():
            items = "".join(f"<li>{escape(n)}: {_percent(v)}</li>" for n, v in _lowest(cells))
            if items:
                parts.append(f"<p>Lowest cells of {escape(figure)}:</p><ul>{items}</ul>")
        for failure in self.failures[:MOST_PICTURES]:
            pictures = [page.figure(frame, "seen", small=True) for frame in failure.seen]
            wrong = page.difference(failure.drawn, failure.wrong, failure.open_tiles)
            pictures += [
                page.figure(failure.truth, "true", tone="good"),
                page.figure(failure.drawn, "drawn", tone="bad"),
                page.figure(wrong, "wrong in red, open in blue"),
            ]
            parts.append(page.strip(pictures, failure.words))
        said = "".join(f"<li>{escape(words)}</li>" for words in self.words[:MOST_PICTURES])
        return "".join(parts) + (f"<ul>{said}</ul>" if said else "")


@dataclass
class Findings:
    """All parts of one run."""

    settings: dict[str, Any]
    sections: dict[str, Section] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def markdown(self) -> str:
        """Every section."""
        return "\n".join(section.markdown() for section in self.sections.values())

    def save(self, folder: Path) -> None:
        """Writes `truth.json`, `truth.md` and `truth.html`, each whole or not at all."""
        write_json(folder / "truth.json", self.figures())
        with atomic_path(folder / "truth.md") as draft:
            draft.write_text(self.markdown())
        parts = [(section.title, section.html()) for section in self.sections.values()]
        lead = (
            f"The model <code>{escape(str(self.settings.get('model')))}</code> against the real "
            "environment, on seeds it never saw. The worst cell stands beside every mean."
        )
        with atomic_path(folder / "truth.html") as draft:
            draft.write_text(page.document("Is the world true?", lead, parts))

    def figures(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "settings": self.settings,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "parts": {
                name: {
                    "title": section.title,
                    "note": section.note,
                    "rows": [asdict(row) for row in section.rows],
                    "cells": {
                        figure: {cell: asdict(value) for cell, value in cells.items()}
                        for figure, cells in section.cells.items()
                    },
                    "words": section.words,
                }
                for name, section in self.sections.items()
            },
        }


def row_of_cells(label: str, verdicts: Counts, floor: Counts | None = None) -> Row:
    """The mean of cells, each weighing the same, with the worst of them beside it."""
    values = cell_values(verdicts)
    count = sum(len(found) for found in verdicts.values())
    return Row(
        label,
        mean_of_cells(verdicts),
        count,
        None if floor is None else mean_of_cells(floor),
        min(values.items(), key=lambda item: (item[1].value, item[1].low))
        if len(values) > 1
        else None,
    )


def cell_values(verdicts: Counts) -> dict[str, Estimate]:
    """Each cell's share with Wilson's interval."""
    return {cell: wilson_interval(sum(v), len(v)) for cell, v in verdicts.items() if v}


def mean_of_cells(verdicts: Counts) -> Estimate:
    """The mean of cells' shares; the interval is Wilson's on all cases, which are independent."""
    shares = [float(np.mean(found)) for found in verdicts.values() if found]
    count = sum(len(found) for found in verdicts.values())
    if not shares:
        raise ValueError("no case was counted; evaluate more cases")
    pooled = wilson_interval(round(float(np.mean(shares)) * count), count)
    return Estimate(float(np.mean(shares)), pooled.low, pooled.high)


def row_of_tiles(
    label: str,
    counts: list[tuple[int, int]],
    floor: list[tuple[int, int]] | None = None,
    worst: tuple[str, Estimate] | None = None,
) -> Row:
    """A share of tiles or things; (right, all) of each case, which are resampled as a whole."""
    total = sum(count for _, count in counts)
    return Row(
        label, tile_share(counts), total, None if floor is None else tile_share(floor), worst
    )


def tile_share(counts: list[tuple[int, int]]) -> Estimate:
    """Share of tiles; see `row_of_tiles`."""
    hits, totals = np.array(counts).reshape(-1, 2).T
    return ratio_over_episodes(hits, totals)


def _lowest(cells: dict[str, Estimate], count: int = 12) -> list[tuple[str, Estimate]]:
    ordered = sorted(cells.items(), key=lambda item: item[1].value)
    return [item for item in ordered[:count] if item[1].value < 1]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
