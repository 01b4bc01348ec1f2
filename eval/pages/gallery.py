"""What a comparison looks like: labelled pictures, curves, a video, and one page with all of it."""

import base64
import html
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from eval.comparison import DIFFERENCE, MEASURES, Comparison, Rollout
from eval.pages import page
from unified.files import atomic_path

ROWS = ("environment", "model", "wrong by")
FRAMES_PER_SECOND = 4
SMALLEST = 96
"""Pixels that a frame is enlarged to, at least."""


def errors(frame: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where two frames differ, bright where they do most: `(H, W, 3)` uint8."""
    gap = np.abs(frame.astype(int) - truth.astype(int)).max(-1)
    return (
        np.where(gap > DIFFERENCE, np.minimum(255, 2 * gap), 0)
        .astype(np.uint8)[..., None]
        .repeat(3, -1)
    )


def enlarged(frame: np.ndarray) -> np.ndarray:
    """A small frame enlarged by a whole factor."""
    factor = max(1, -(-SMALLEST // min(frame.shape[:2])))
    return frame.repeat(factor, 0).repeat(factor, 1)


def sheet(rollouts: list[Rollout]) -> Image.Image:
    """Truth, model and difference of each rollout, with what was said and done over them."""
    blocks = [_block(rollout) for rollout in rollouts]
    canvas = Image.new(
        "RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), (24, 24, 24)
    )
    top = 0
    for block in blocks:
        canvas.paste(block, (0, top))
        top += block.height
    return canvas


def _block(rollout: Rollout) -> Image.Image:
    pairs = list(zip(rollout.truth, rollout.model, strict=True))
    rows = [
        [enlarged(truth) for truth, _ in pairs],
        [enlarged(model) for _, model in pairs],
        [enlarged(errors(model, truth)) for truth, model in pairs],
    ]
    height, width = rows[0][0].shape[:2]
    margin, line = 84, 14
    size = (margin + width * len(pairs), 2 * line + height * len(rows))
    canvas = Image.new("RGB", size, (24, 24, 24))
    pen = ImageDraw.Draw(canvas)
    pen.text((2, 1), _plain(rollout.name), fill=(255, 255, 255))
    for column, action in enumerate(rollout.actions):
        words = f"{column} {_plain(action)}"[: max(3, width // 6)]
        pen.text((margin + column * width + 2, line), words, fill=(190, 190, 190))
    for row, (label, frames) in enumerate(zip(ROWS, rows, strict=True)):
        top = 2 * line + row * height
        pen.text((2, top + height // 2), label, fill=(190, 190, 190))
        canvas.paste(Image.fromarray(np.concatenate(frames, axis=1)), (margin, top))
    return canvas


def _plain(words: str) -> str:
    return words.encode("ascii", "replace").decode()


def write_video(path: Path, rollouts: list[Rollout]) -> None:
    """The rollouts one after the other as MP4: truth on the left, model on the right."""
    import av

    pairs = [
        np.concatenate([enlarged(truth), enlarged(model)], axis=1)
        for rollout in rollouts
        for truth, model in zip(rollout.truth, rollout.model, strict=True)
    ]
    height, width = (side - side % 2 for side in pairs[0].shape[:2])
    with (
        atomic_path(path) as draft,
        av.open(str(draft), "w", format="mp4") as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in pairs:
            frame = av.VideoFrame.from_ndarray(pixels[:height, :width].copy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def curves(comparison: Comparison) -> str:
    """Each measure over the frame of the rollout: model, floor and ceiling."""
    found, drawn = comparison.estimates(), []
    for measure, words in MEASURES.items():
        lines = {
            way: [
                (h, found[f"rollout/{h}/{way}/{measure}"])
                for h in comparison.horizons()
                if f"rollout/{h}/{way}/{measure}" in found
            ]
            for way in ("model", "repeat", "codec")
        }
        drawn.append(page.curve(lines, f"{words} over the frames of a rollout"))
    return "".join(drawn)


def write_gallery(folder: Path, title: str, comparison: Comparison, table: str) -> None:
    """Writes frames.png, rollouts.mp4 and index.html, each whole or not at all."""
    sections = [("Figures", markdown_table(table))]
    if comparison.rollouts:
        with atomic_path(folder / "frames.png") as draft:
            sheet(comparison.rollouts).save(draft, format="PNG")
        write_video(folder / "rollouts.mp4", comparison.rollouts)
        film = base64.b64encode((folder / "rollouts.mp4").read_bytes()).decode()
        video = (
            '<video autoplay muted loop playsinline controls src="data:video/mp4;base64,'
            f'{film}"></video><p>Left the recording, right the model under the same actions.</p>'
        )
        strips = [
            page.lanes(
                {
                    "recorded": [page.picture(frame) for frame in rollout.truth],
                    "model": [page.picture(frame) for frame in rollout.model],
                    "wrong by": [
                        page.picture(errors(model, truth))
                        for truth, model in zip(rollout.truth, rollout.model, strict=True)
                    ],
                },
                rollout.actions,
                rollout.name,
            )
            for rollout in comparison.rollouts
        ]
        sections[:0] = [("Rollouts", video)]
        sections += [("Over time", curves(comparison)), ("Frame by frame", "".join(strips))]
    lead = (
        "Given the task, some true frames and the recorded actions, the model draws every later "
        "frame. The floor repeats the last true frame; the codec is what could be drawn at best."
    )
    with atomic_path(folder / "index.html") as draft:
        draft.write_text(page.document(title, lead, sections))


def markdown_table(text: str) -> str:
    """Simple Markdown tables and paragraphs as HTML."""
    parts: list[str] = []
    rows: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|---"):
            continue
        if line.startswith("|"):
            kind = "td" if rows else "th"
            cells = [html.escape(cell.strip(" *")) for cell in line.strip("|").split("|")]
            rows.append("<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>")
            continue
        if rows:
            parts.append(f'<div class="wide"><table>{"".join(rows)}</table></div>')
            rows = []
        if line:
            parts.append(f"<p>{html.escape(line)}</p>")
    return "".join(parts)
