"""What is said in a LeRobot dataset beside its tasks: its two language columns.

Rows of `language_persistent` hold from a time on and are repeated at every frame of an episode:
`subtask`, `plan`, `memory`, `motion`, and `task_aug`, the task in other words. Rows of
`language_events` stand at their frame alone: `interjection` of the user, `vqa`, `trace`, and what a
robot says by the tool `say`, which has no style of its own.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.episode import SegmentRecord
from data.sources.lerobot_tables import read_table
from unified.files import atomic_path

if TYPE_CHECKING:  # waits for torch, which no import needs
    from unified.conversation.sequence import Segment

PERSISTENT, EVENTS = "language_persistent", "language_events"
SAY, TASK_AUG = "say", "task_aug"
DEFAULT_STYLES = ("subtask", "interjection", SAY)
STYLES = ("subtask", "plan", "memory", "motion", TASK_AUG, "interjection", "vqa", "trace", SAY)
_IN_ORDER = ("vqa", "trace", "interjection", SAY)  # at one frame: who asks is answered last
_SPEAKERS = {"user": "task", "assistant": "agent"}
_TOOL_CALL = pa.struct(
    [
        ("type", pa.string()),
        (
            "function",
            pa.struct([("name", pa.string()), ("arguments", pa.struct([("text", pa.string())]))]),
        ),
    ]
)
EVENTS_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("content", pa.string()),
            pa.field("style", pa.string()),
            pa.field("camera", pa.string()),
            pa.field("tool_calls", pa.list_(_TOOL_CALL)),
        ]
    )
)
FEATURE = {"dtype": "language", "shape": [1], "names": None}
WORDS_FILE = "meta/unified_words.parquet"
"""What is said in an export of ours, where no column holds it: LeRobot skips the file."""


def style_of(row: dict[str, Any]) -> str:
    """Its style, `say` for what is said by the tool."""
    return row["style"] or (SAY if row["tool_calls"] else "none")


def count_styles(cells: Iterable[list[dict[str, Any]] | None]) -> Counter[str]:
    """How many rows of each style there are."""
    return Counter(style_of(row) for cell in cells for row in cell or ())


def words_of(row: dict[str, Any]) -> str:
    """Content, and what the tool `say` was called with."""
    said = [row["content"] or ""]
    for call in row["tool_calls"] or ():
        call = json.loads(call) if isinstance(call, str) else call
        function = call.get("function") or {}
        arguments = function.get("arguments") or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if function.get("name") == SAY:
            said.append(arguments.get("text") or "")
    return " ".join(filter(None, said))


def task_words(task: str, cell: list[dict[str, Any]] | None, episode: int) -> str:
    """The task, or one of its rephrasings, another one for each episode in turn."""
    rows = [row for row in cell or () if row["style"] == TASK_AUG and row["content"]]
    phrases = list(dict.fromkeys([task, *(row["content"] for row in rows)]))
    return phrases[episode % len(phrases)]


def persistent_words(
    cell: list[dict[str, Any]] | None, styles: Sequence[str], *, fps: float, length: int
) -> dict[int, list[SegmentRecord]]:
    """What the agent says at which row of an episode.

    Raises:
        ValueError: If something begins after the episode's end.
    """
    said: dict[int, list[SegmentRecord]] = {}
    for row in cell or ():
        if row["style"] not in styles or row["role"] != "assistant" or not row["content"]:
            continue
        begins = round(float(row["timestamp"]) * fps)
        if not 0 <= begins < length:
            raise ValueError(
                f"{row['style']} {row['content']!r} begins at {row['timestamp']:g} s, after its "
                "end; write the annotations again"
            )
        said.setdefault(begins, []).append(_segment(row))
    return said


def event_words(
    cell: list[dict[str, Any]] | None,
    styles: Sequence[str],
    *,
    cameras: Sequence[str],
    is_ordered: bool,
) -> list[SegmentRecord]:
    """What is said at one frame, in an order in which questions come before answers.

    Args:
        cell: Cell of the column `language_events`.
        styles: Which are taken.
        cameras: What is said about a view of another one is left out.
        is_ordered: Whether the rows are in the order in which they were said. LeRobot's own are
            sorted by name.
    """

    def turn(row: dict[str, Any]) -> tuple[int, int, bool]:
        style, camera = style_of(row), row["camera"]
        place = _IN_ORDER.index(style) if style in _IN_ORDER else 0
        return place, cameras.index(camera) if camera else 0, row["role"] != "user"

    rows = [
        row
        for row in cell or ()
        if style_of(row) in styles
        and row["role"] in _SPEAKERS
        and (row["camera"] is None or row["camera"] in cameras)
        and words_of(row)
    ]
    return [_segment(row) for row in (rows if is_ordered else sorted(rows, key=turn))]


def joined(said: Iterable[SegmentRecord]) -> list[SegmentRecord]:
    """The same, with what one says in several pieces in a row as one."""
    turns: list[SegmentRecord] = []
    for words in said:
        if turns and turns[-1].role == words.role:
            turns[-1] = replace(turns[-1], text=f"{turns[-1].text} {words.text}")
        else:
            turns.append(words)
    return turns


def events_of(said: "Iterable[Segment]") -> list[dict[str, Any]]:
    """A cell of `language_events`: the inverse of `event_words`."""
    return [
        {
            "role": "user" if words.role == "task" else "assistant",
            "content": words.text if words.role == "task" else None,
            "style": "interjection" if words.role == "task" else None,
            "camera": None,
            "tool_calls": None if words.role == "task" else [_call(words.text or "")],
        }
        for words in said
    ]


def write_words(folder: Path, said: "Iterable[Sequence[list[Segment]]]") -> None:
    """Writes what is said in an export: for each episode and frame a cell of `language_events`.

    Args:
        folder: Of the dataset.
        said: What is said after each frame of each episode.
    """
    rows = [
        {"episode_index": index, "frame_index": place, EVENTS: events_of(words)}
        for index, episode in enumerate(said)
        for place, words in enumerate(episode)
        if words
    ]
    schema = pa.schema(
        [("episode_index", pa.int64()), ("frame_index", pa.int64()), (EVENTS, EVENTS_TYPE)]
    )
    with atomic_path(folder / WORDS_FILE) as draft:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), draft)


def read_words(folder: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """What `write_words` wrote: cells of `language_events` by episode and frame.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / WORDS_FILE
    if not path.exists():
        return {}
    rows = read_table(path, ["episode_index", "frame_index", EVENTS]).to_pylist()
    return {(row["episode_index"], row["frame_index"]): row[EVENTS] for row in rows}


def _call(text: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": SAY, "arguments": {"text": text}}}


def _segment(row: dict[str, Any]) -> SegmentRecord:
    role = _SPEAKERS[row["role"]]
    weight = float(role == "agent")
    return SegmentRecord(kind="text", role=role, text=words_of(row), weight=weight)
