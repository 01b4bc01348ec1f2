"""A self-contained page: pictures as data URLs, no script, no outside reference."""

import base64
import html
import io
import math

import numpy as np
from PIL import Image

from eval.statistics import Estimate

STYLE = """
:root { color-scheme: light dark; --paper: #f7f6f3; --ink: #1d1d1b; --accent: #4f5bd5;
  --line: #8884; --soft: #8882; --bad: #d6453d; --good: #2b8a5b; }
@media (prefers-color-scheme: dark) { :root { --paper: #151514; --ink: #ecebe6; --accent: #8d97ff;
  --bad: #ff7b72; --good: #5cc28e; } }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  max-width: 72rem; margin: 2rem auto; padding: 0 1.2rem; background: var(--paper);
  color: var(--ink); }
h1 { font-size: 1.6rem; margin-bottom: .2rem; letter-spacing: -.01em; } a { color: var(--accent); }
h2 { margin-top: 2.5rem; font-size: 1.2rem; letter-spacing: -.01em; }
p.lead { max-width: 48rem; } .task { font-style: italic; }
.label { font-size: .8rem; opacity: .7; margin: .4rem 0 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
figure.curve { width: 100%; max-width: 640px; margin: .6rem 0; }
figure.curve svg { width: 100%; height: auto; } figure.curve text { font-size: 12px; }
figure.curve figcaption { font-size: .85rem; }
img.hero { width: 100%; max-width: 572px; border-radius: 6px; display: block; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; } .strip figure { margin: 0; }
.strip img { width: 112px; image-rendering: pixelated; display: block; border-radius: 3px; }
.strip figure.small img { width: 56px; }
.strip figcaption { font-size: .78rem; max-width: 112px; }
.legend { font-size: .85rem; background: var(--soft); border-radius: 6px; padding: .2rem .9rem; }
.legend span { display: inline-flex; align-items: center; margin: .15rem .9rem .15rem 0; }
.legend img, .legend i { width: 24px; height: 24px; margin-right: .4rem; flex: none;
  box-sizing: border-box; image-rendering: pixelated; }
.legend i.wrong { border: 3px solid #ff4646; } .legend i.open { border: 3px solid #5078ff; }
.pairs { display: flex; flex-wrap: wrap; gap: 1rem; } .pair p { margin: 0 0 .2rem; }
.pair b { font-weight: 600; }
.pair img { width: 96px; image-rendering: pixelated; margin-right: 4px; border-radius: 3px;
  border: 1px solid var(--line); }
pre { background: var(--soft); padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: break-word; }
video { max-width: 100%; image-rendering: pixelated; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
table.figures { font-size: .9rem; } table.figures td { vertical-align: top; }
table.figures td:first-child { min-width: 15rem; }
table.figures td:nth-child(2), table.figures span { white-space: nowrap; }
table.figures span { display: inline-block; margin-right: 1.2rem; opacity: .8; }
table.lanes { width: min-content; }
table.lanes td, table.lanes th { border: 0; padding: 1px 2px; font-weight: normal;
  font-size: .78rem; vertical-align: bottom; min-width: 4.2rem; white-space: pre-line; }
table.lanes th[scope=row] { vertical-align: middle; min-width: 3.6rem; white-space: nowrap; }
table.lanes th[scope=row], table.lanes th:empty { position: sticky; left: 0;
  background: var(--paper); padding-right: .5rem; }
table.lanes img { width: 84px; image-rendering: pixelated; display: block; border-radius: 3px;
  border: 1px solid var(--line); }
code { background: var(--soft); padding: .1rem .3rem; border-radius: 3px; }
@media (max-width: 500px) {
  figure.curve text { font-size: 19px; } td, th { font-size: .85rem; }
  table.lanes th[scope=row] { min-width: 0; } table.lanes img { width: 72px; }
  .pair img { width: 74px; } .pairs { gap: .8rem; }
  table.figures tr:first-child { display: none; } table.figures td { display: block; border: 0;
    padding: 0; }
  table.figures tr { display: block; padding: .45rem 0; border-bottom: 1px solid var(--line); }
  table.figures td:first-child { opacity: .75; } table.figures span { display: block; }
}
"""


def picture(pixels: np.ndarray) -> str:
    """An `(H, W, 3)` uint8 picture as an `<img>` with a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return data_picture(buffer.getvalue(), "image/png")


def data_picture(content: bytes, kind: str, words: str = "", style: str = "") -> str:
    """The content of a picture file as an `<img>` with a data URL."""
    data = base64.b64encode(content).decode()
    named = f' class="{style}"' if style else ""
    return f'<img{named} alt="{html.escape(words)}" src="data:{kind};base64,{data}">'


def figure(pixels: np.ndarray, caption: str = "", *, tone: str = "", small: bool = False) -> str:
    """A picture with words under it; `tone` is good, bad or nothing."""
    size = ' class="small"' if small else ""
    words = f'<span class="{tone}">{html.escape(caption)}</span>' if tone else html.escape(caption)
    return f"<figure{size}>{picture(pixels)}<figcaption>{words}</figcaption></figure>"


def strip(figures: list[str], label: str = "") -> str:
    """Figures side by side."""
    head = f'<p class="label">{html.escape(label)}</p>' if label else ""
    return f'{head}<div class="strip">{"".join(figures)}</div>'


def lanes(rows: dict[str, list[str]], captions: list[str], label: str = "") -> str:
    """Rows of pictures that belong together, one above the other, in one scroll.

    Args:
        rows: Name of a row -> its pictures as HTML. A single row needs no name ("").
        captions: Of each column, above it; a line break is one.
        label: Above all.
    """
    head = f'<p class="label">{html.escape(label)}</p>' if label else ""
    is_named = any(rows)
    corner = "<th></th>" if is_named else ""
    top = "".join(f"<th>{html.escape(words)}</th>" for words in captions)
    body = "".join(
        (f'<tr><th scope="row">{html.escape(name)}</th>' if is_named else "<tr>")
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f'{head}<div class="wide"><table class="lanes"><tr>{corner}{top}</tr>{body}</table></div>'
    )


def table(rows: list[tuple[str, str, str]]) -> str:
    """Figure, value, floors (with semicolons between); values in asterisks are bold."""
    body = "".join(
        f"<tr>{_cell(name)}{_cell(value)}<td>{_apart(floors)}</td></tr>"
        for name, value, floors in rows
    )
    head = "<tr><th>figure</th><th>value [95 % interval]</th><th>floors</th></tr>"
    return f'<div class="wide"><table class="figures">{head}{body}</table></div>'


def _apart(floors: str) -> str:
    """Floors that break between each other, not within."""
    return " ".join(f"<span>{html.escape(one)}</span>" for one in floors.split("; ") if one)


def _cell(text: str) -> str:
    words = html.escape(text.strip("*"))
    return f"<td><b>{words}</b></td>" if text.startswith("**") else f"<td>{words}</td>"


PALETTE = ("#3b82f6", "#e5484d", "#30a46c", "#f59e0b", "#8b5cf6", "#0ea5e9", "#d946ef")
"""Of lines whose names have no colour of their own."""
NAME_HEIGHT = 18.0
"""Least distance of the names of two lines, in units of the drawing."""
COLOURS = {
    "map": "#8b5cf6",
    "model": "#3b82f6",
    "codec": "#30a46c",
    "repeat": "#e5484d",
    "shift": "#f59e0b",
}
"""Of the lines of a curve."""


def curve(
    lines: dict[str, list[tuple[int, Estimate]]],
    title: str,
    unit: str = "",
    scale: float = 1.0,
    *,
    is_log: bool = False,
) -> str:
    """Lines with their 95 % intervals over the frame of a rollout, as SVG.

    Args:
        lines: Name -> frame number and value.
        title: What is measured.
        unit: Behind the numbers of the axis.
        scale: Factor of the values, 100 for shares in per cent.
        is_log: Whether frame numbers are as far apart as their logarithms.
    """
    points = [(x, scale * e.value) for line in lines.values() for x, e in line]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    low, high = (low - 0.05 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9))
    if scale == 100:
        low, high = 20.0 * (max(0.0, min(low, 90.0)) // 20), 100.0
    width, height, left, top, bottom = 640, 226, 62, 14, 28

    def at(x: float, y: float) -> str:
        place = math.log2 if is_log else float
        along = (place(x) - place(min(xs))) / max(1, place(max(xs)) - place(min(xs)))
        up = (min(max(y, low), high) - low) / max(1e-9, high - low)
        down = top + (1 - up) * (height - bottom - top)
        return f"{left + along * (width - left - 90):.1f},{down:.1f}"

    drawn = []
    for i in range(5):
        y = low + i * (high - low) / 4
        place = at(min(xs), y).split(",")[1]
        drawn.append(
            f'<line x1="{left}" x2="{width - 90}" y1="{place}" y2="{place}" stroke="#8884"/>'
            f'<text x="{left - 6}" y="{place}" text-anchor="end" dy="4" fill="gray">'
            f"{y:.4g}{unit}</text>"
        )
    for x in sorted({min(xs), max(xs), *(x for x in xs if x & (x - 1) == 0)}):
        place = at(x, low).split(",")[0]
        drawn.append(
            f'<text x="{place}" y="{height - 8}" text-anchor="middle" fill="gray">{x}</text>'
        )
    ends: list[tuple[float, float, str, str]] = []
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS.get(name.split()[0], PALETTE[number % len(PALETTE)])
        if not line:
            continue
        below = [at(x, scale * e.low) for x, e in line]
        above = [at(x, scale * e.high) for x, e in line]
        middle = [at(x, scale * e.value) for x, e in line]
        drawn.append(
            f'<polygon points="{" ".join(above + below[::-1])}" fill="{colour}" opacity=".15"/>'
            f'<polyline points="{" ".join(middle)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        x, y = map(float, middle[-1].split(","))
        ends.append((y, x, name, colour))
    lowest = 0.0
    for y, x, name, colour in sorted(ends):  # names of lines that meet stand one below the other
        lowest = max(y, lowest + NAME_HEIGHT) if lowest else y
        words = html.escape(name)
        drawn.append(f'<text x="{x + 6}" y="{lowest:.1f}" dy="4" fill="{colour}">{words}</text>')
    return (
        f'<figure class="curve"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def difference(pixels: np.ndarray, wrong: np.ndarray, open_tiles: np.ndarray) -> np.ndarray:
    """The picture, faded, with wrong tiles framed in red and unknowable ones in blue.

    Args:
        pixels: `(56, 56, 3)` uint8.
        wrong: `(7, 7)` bool.
        open_tiles: `(7, 7)` bool, tiles that the context leaves open.

    Returns:
        `(112, 112, 3)` uint8.
    """
    faded = (pixels * 0.5).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    size = faded.shape[0] // wrong.shape[0]
    for mask, colour in ((open_tiles, (80, 120, 255)), (wrong, (255, 70, 70))):
        for row, column in np.argwhere(mask):
            tile = faded[row * size : (row + 1) * size, column * size : (column + 1) * size]
            tile[:2], tile[-2:], tile[:, :2], tile[:, -2:] = colour, colour, colour, colour
    return faded


def document(title: str, lead: str, sections: list[tuple[str, str]]) -> str:
    """The whole page."""
    body = "".join(f"<h2>{html.escape(name)}</h2>{content}" for name, content in sections)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{lead}</p>{body}</html>'
    )
