"""A conversation to look at: as a contact sheet, a GIF or an MP4.

Words and actions stand under the frame that they answer.
"""

import io
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unified.media.pictures import read_picture
from unified.media.video import encode_mp4

FORMATS = {".gif": "gif", ".mp4": "mp4", ".png": "sheet"}
_LEAST_SIDE = 112
_LINE = 14
_MARGIN = 6


@dataclass
class Shot:
    """A frame, and what was said until the next one.

    Attributes:
        pixels: `(H, W, 3)` uint8.
        lines: Outcome, words and action, one a line.
    """

    pixels: np.ndarray
    lines: list[str] = field(default_factory=list)


@dataclass
class Reel:
    """The frames of a conversation or reply, in order.

    Attributes:
        lead: What was said before the first frame.
        shots: One for each frame.

    Example:
        >>> frame = Image.new("RGB", (56, 56))
        >>> dream = [
        ...     {"role": "agent", "content": [{"type": "action", "action": "left"}]},
        ...     {"role": "world", "content": [{"type": "frame", "frame": frame}]},
        ... ]
        >>> reel = Reel.of(dream)
        >>> reel.lead, len(reel.shots)
        (['left'], 1)
    """

    lead: list[str] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)

    @classmethod
    def of(cls, messages: list[dict[str, Any]]) -> "Reel":
        """Reads messages, as `UnifiedProcessor.decode` returns them.

        Raises:
            ValueError: If they hold no frame.
        """
        reel = cls()
        if not isinstance(messages, list | tuple) or not all(isinstance(m, dict) for m in messages):
            raise ValueError(
                "a reel is made of one list of messages, as processor.decode returns it for one "
                "row; for several rows make one of each"
            )
        for number, message in enumerate(messages):
            content = message["content"]
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for item in items:
                if item["type"] == "frame":
                    pixels = read_picture(item["frame"], f"message {number}")
                    reel.shots.append(Shot(pixels))
                    continue
                lines = reel.shots[-1].lines if reel.shots else reel.lead
                lines.append(str(item[item["type"]]))
        if not reel.shots:
            raise ValueError("the messages hold no frame to show; ask 'forward' or 'joint'")
        return reel

    def sheet(self, columns: int = 8, scale: int | None = None) -> Image.Image:
        """All frames side by side, with what was said under them.

        Args:
            columns: Frames in a row.
            scale: How often a pixel is repeated; None makes small frames large enough to see.

        Raises:
            ValueError: If there is no column.
        """
        if columns < 1:
            raise ValueError(f"columns={columns} must be at least 1")
        pictures = self._enlarged(scale)
        width, height = (max(sizes) for sizes in zip(*(p.size for p in pictures), strict=True))
        letters = max(8, width // 6)
        captions = [_wrapped(shot.lines, letters) for shot in self.shots]
        columns = min(columns, len(pictures))
        lead = _wrapped(self.lead, letters * columns)
        step = (width + _MARGIN, height + _LINE * max(map(len, captions)) + 2 * _MARGIN)
        rows = -(-len(pictures) // columns)
        top = _LINE * len(lead) + _MARGIN
        size = (columns * step[0] + _MARGIN, top + rows * step[1])
        page = Image.new("RGB", size, "white")
        pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)

        def write(lines: list[str], left: int, upper: int) -> None:
            for line, words in enumerate(lines):
                pen.text((left, upper + _LINE * line), words, fill="black", font=font)

        write(lead, _MARGIN, _MARGIN // 2)
        for place, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
            left = _MARGIN + place % columns * step[0]
            upper = top + place // columns * step[1]
            page.paste(picture, (left, upper))
            write(lines, left, upper + height)
        return page

    def gif(self, fps: float = 4.0, scale: int | None = None) -> bytes:
        """An endless GIF; its 256 colours are those of each frame."""
        pictures = self._enlarged(scale)
        buffer = io.BytesIO()
        options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
        duration = round(1000 / _checked_fps(fps))
        pictures[0].save(buffer, format="GIF", duration=duration, **options)
        return buffer.getvalue()

    def mp4(self, fps: float = 4.0, scale: int | None = None) -> bytes:
        """An H.264 video; needs the package `av`.

        Raises:
            ValueError: If frames differ in size, or `av` is not installed.
        """
        return encode_mp4(self._enlarged(scale), _checked_fps(fps))

    def save(self, path: str | Path, **options: Any) -> Path:
        """Writes the file that its name asks for: `.gif`, `.mp4`, or `.png` for a contact sheet.

        Args:
            path: File to write.
            **options: Of `gif`, `mp4` or `sheet`.

        Raises:
            ValueError: If the name ends otherwise.
        """
        from unified.files import atomic_path

        path = Path(path)
        kind = FORMATS.get(path.suffix.lower())
        if kind is None:
            raise ValueError(f"{path} ends in none of {', '.join(FORMATS)}; choose one of them")
        made = getattr(self, kind)(**options)
        with atomic_path(path) as temporary:
            if isinstance(made, bytes):
                temporary.write_bytes(made)
            else:
                made.save(temporary, format="PNG")
        return path

    def _enlarged(self, scale: int | None) -> list[Image.Image]:
        """The frames with every pixel repeated."""
        if scale is None:
            scale = max(1, -(-_LEAST_SIDE // max(shot.pixels.shape[1] for shot in self.shots)))
        if scale < 1:
            raise ValueError(f"scale={scale} must be at least 1")
        return [
            Image.fromarray(shot.pixels.repeat(scale, 0).repeat(scale, 1)) for shot in self.shots
        ]


def _checked_fps(fps: float) -> float:
    if not 0 < fps <= 100:
        raise ValueError(f"fps={fps} must be above 0, and at most 100")
    return fps


def _wrapped(lines: list[str], letters: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, letters) or [""]]
