"""A self-contained page: pictures as data URLs, no script, no outside reference."""

import base64
import html
import io

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bad: #e5484d; --good: #30a46c; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.5rem; font-size: 1.2rem; }
p.lead { max-width: 48rem; } .task { font-style: italic; }
.strip { display: flex; gap: .6rem; overflow-x: auto; padding: .4rem 0 .8rem; }
figure { margin: 0; flex: none; width: 112px; }
figure img { width: 112px; height: 112px; image-rendering: pixelated; display: block;
  border: 1px solid var(--line); border-radius: 3px; }
figcaption { font-size: .78rem; line-height: 1.3; padding-top: .2rem; }
figure.small, figure.small img { width: 84px; } figure.small img { height: 84px; }
.label { font-size: .8rem; opacity: .7; margin: .4rem 0 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
code { background: var(--soft); padding: .1rem .3rem; border-radius: 3px; }
"""


def picture(pixels: np.ndarray) -> str:
    """An `(H, W, 3)` uint8 picture as an `<img>` with a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def figure(pixels: np.ndarray, caption: str = "", *, tone: str = "", small: bool = False) -> str:
    """A picture with words under it; `tone` is good, bad or nothing."""
    size = ' class="small"' if small else ""
    words = f'<span class="{tone}">{html.escape(caption)}</span>' if tone else html.escape(caption)
    return f"<figure{size}>{picture(pixels)}<figcaption>{words}</figcaption></figure>"


def strip(figures: list[str], label: str = "") -> str:
    """Figures side by side."""
    head = f'<p class="label">{html.escape(label)}</p>' if label else ""
    return f'{head}<div class="strip">{"".join(figures)}</div>'


def table(rows: list[tuple[str, str, str]]) -> str:
    """Figure, value, floor."""
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    head = "<tr><th>figure</th><th>value [95 % interval]</th><th>floor</th></tr>"
    return f"<table>{head}{body}</table>"


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
