"""The schema of recorded episodes: one Parquet row per episode, frames as lossless PNG."""

import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from unified.conversation.turns import OUTCOMES, ROLES, check_turns
from unified.files import atomic_path
from unified.media.pictures import read_picture

KINDS = ("text", "action", "frame")
SPEAKERS = {"text": ("task", "agent", "world"), "action": ("agent",), "frame": ("world",)}
UNKNOWN = "unknown"
"""What an end is called that nobody told the outcome of."""
EPISODES_FOLDER = "episodes"
INFO_FILE = "info.json"
LATENTS_INFO_FILE = "latents.json"
FORMAT_VERSION = 2
ROWS_PER_GROUP = 50
"""Episodes per Parquet row group: what is read from disk to decode the frames of one episode."""

_LARGEST = float(np.finfo(np.float32).max)  # that a file holds
_FRAME_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SEGMENT_TYPE = pa.struct(
    [
        ("kind", pa.string()),
        ("role", pa.string()),
        ("text", pa.string()),
        ("action", pa.string()),
        ("target", pa.string()),
        ("hindsight", pa.bool_()),
        ("frame", _FRAME_TYPE),
        ("caption", pa.string()),
        ("outcome", pa.string()),
        ("weight", pa.float32()),
        ("motion", pa.list_(pa.float32())),
    ]
)


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}


# What `datasets` reads to show the frames as PIL images; written by hand so that recording
# needs pyarrow only.
_FEATURES = {
    "id": _value("string"),
    "source": _value("string"),
    "level": _value("string"),
    "seed": _value("int64"),
    "behaviour": _value("string"),
    "segments": {
        "feature": {
            "kind": _value("string"),
            "role": _value("string"),
            "text": _value("string"),
            "action": _value("string"),
            "target": _value("string"),
            "hindsight": _value("bool"),
            "frame": {"_type": "Image"},
            "caption": _value("string"),
            "outcome": _value("string"),
            "weight": _value("float32"),
            "motion": {"feature": _value("float32"), "_type": "List"},
        },
        "_type": "List",
    },
}

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("level", pa.string()),
        ("seed", pa.int64()),
        ("behaviour", pa.string()),
        ("segments", pa.list_(_SEGMENT_TYPE)),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
"""Arrow schema of a row, with the `datasets` features in its metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """One recorded segment of a conversation: a text, an action or a frame.

    Attributes:
        kind: "text", "action" or "frame".
        role: Who speaks: "task", "agent" or "world".
        text: The words (text segments only).
        action: Name of the action taken, None when unknown (action segments only).
        target: Name of the action to learn instead of the one taken, None for the one taken.
        hindsight: The action is named after the frame it led to.
        frame: PNG bytes (frame segments only).
        caption: Words that describe the frame, from the true state.
        outcome: "ongoing", "success" or "failure" (frame segments only), None when untold.
        weight: Loss weight, >= 0; 0 means the segment is shown and not learned.
        motion: What the action did to where the view is: a turn in radians to the right, then how
            far it moved ahead and to the right (tiles); None when unmeasured, or no action.
    """

    kind: str
    role: str
    text: str | None = None
    action: str | None = None
    target: str | None = None
    hindsight: bool = False
    frame: bytes | None = None
    caption: str | None = None
    outcome: str | None = None
    weight: float = 1.0
    motion: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"segment kind {self.kind!r} is unknown; use one of {KINDS}")
        if self.role not in ROLES:
            raise ValueError(f"segment role {self.role!r} is unknown; use one of {ROLES}")
        if not 0.0 <= self.weight <= _LARGEST:
            raise ValueError(
                f"segment weight {self.weight} must be a number >= 0 that fits into 32 bits"
            )
        if (self.kind == "text") != (self.text is not None):
            raise ValueError(f"a {self.kind} segment has text {self.text!r}; only text has, always")
        if (self.kind == "frame") != (self.frame is not None):
            raise ValueError(f"a {self.kind} segment: frames, and only frames, have an image")
        if self.role not in SPEAKERS[self.kind]:
            raise ValueError(
                f"a {self.kind} cannot be spoken by {self.role!r}; use {SPEAKERS[self.kind]}"
            )
        if self.outcome is not None and self.outcome not in OUTCOMES:
            raise ValueError(f"frame outcome {self.outcome!r} is unknown; use one of {OUTCOMES}")
        if self.kind != "frame" and (self.outcome is not None or self.caption is not None):
            raise ValueError(f"a {self.kind} segment has no outcome and no caption; frames have")
        if self.kind != "action" and (self.action is not None or self.target is not None):
            raise ValueError(f"a {self.kind} segment names an action; only action segments do")
        if self.motion is not None:
            if self.kind != "action" or len(self.motion) != 3:
                raise ValueError(
                    f"a {self.kind} segment has motion {self.motion}; give it to actions, as three "
                    "numbers: turn, ahead, right"
                )
            if not all(abs(number) <= _LARGEST for number in self.motion):
                raise ValueError(
                    f"motion {self.motion} must be finite and fit into 32 bits; leave it out if "
                    "unknown"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One recorded episode.

    Attributes:
        id: Unique within a data folder.
        source: Where it comes from, for example "babyai" or "jsonl".
        level: Name of the level or data set.
        seed: Environment seed, -1 when there is none.
        behaviour: Who acted: for BabyAI "expert", "noisy", "random" or "wander".
        segments: The conversation, in order.

    Raises:
        ValueError: If somebody speaks out of turn, see `check_turns`.
    """

    id: str
    source: str
    level: str
    seed: int
    behaviour: str
    segments: list[SegmentRecord]

    def __post_init__(self) -> None:
        try:
            check_turns(self.segments, is_whole=True)
        except ValueError as error:
            raise ValueError(f"episode {self.id!r}: {error}") from error

    @property
    def num_frames(self) -> int:
        """Number of frame segments."""
        return sum(segment.kind == "frame" for segment in self.segments)

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "EpisodeRecord":
        """The inverse of `row`."""
        segments = [
            SegmentRecord(
                **{
                    **segment,
                    "frame": segment["frame"] and segment["frame"]["bytes"],
                    "motion": None if segment["motion"] is None else tuple(segment["motion"]),
                }
            )
            for segment in row["segments"]
        ]
        return cls(**{**row, "segments": segments})

    def row(self) -> dict[str, Any]:
        """Return the episode as a row of `SCHEMA`."""
        return {
            "id": self.id,
            "source": self.source,
            "level": self.level,
            "seed": self.seed,
            "behaviour": self.behaviour,
            "segments": [
                {
                    "kind": segment.kind,
                    "role": segment.role,
                    "text": segment.text,
                    "action": segment.action,
                    "target": segment.target,
                    "hindsight": segment.hindsight,
                    "frame": (
                        None if segment.frame is None else {"bytes": segment.frame, "path": None}
                    ),
                    "caption": segment.caption,
                    "outcome": segment.outcome,
                    "weight": segment.weight,
                    "motion": segment.motion,
                }
                for segment in self.segments
            ],
        }


def encode_png(frame: np.ndarray) -> bytes:
    """Encode a uint8 frame (H, W, 3) as PNG, losslessly."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frame is {frame.dtype} {frame.shape}; give uint8 of shape (H, W, 3)")
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(png: bytes) -> np.ndarray:
    """Decode PNG bytes to a uint8 frame (H, W, 3).

    Raises:
        ValueError: If they are damaged.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            return np.array(image) if image.mode == "RGB" else read_picture(image)
    except Exception as error:  # PIL's readers raise whatever a broken file leads them to
        raise ValueError(f"a picture of {len(png)} bytes is no PNG ({error})") from error


def write_shard(path: Path, episodes: Iterable[EpisodeRecord]) -> None:
    """Write episodes as one Parquet file, atomically."""
    table = pa.Table.from_pylist([episode.row() for episode in episodes], schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROWS_PER_GROUP, compression="zstd")


def read_shard(path: Path) -> list[EpisodeRecord]:
    """Read the episodes of one Parquet file."""
    return [EpisodeRecord.of_row(row) for row in pq.read_table(path).to_pylist()]


def first_frame(path: Path) -> bytes | None:
    """PNG of the first frame of one Parquet file, None if it has none."""
    column = "segments.list.element.frame.bytes"
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1, columns=[column]):
        for segment in batch["segments"].flatten():
            frame = segment["frame"].as_py()
            if frame and frame["bytes"]:
                return frame["bytes"]
    return None


def check_schema(file: pq.ParquetFile) -> None:
    """Refuses a Parquet file whose columns are not those of `SCHEMA`.

    Raises:
        ValueError: Naming the column and its types.
    """
    found = file.schema_arrow
    for field in SCHEMA:
        kind = found.field(field.name).type if field.name in found.names else "missing"
        if kind != field.type:
            raise ValueError(f"column {field.name} is {str(kind)[:80]}, not {str(field.type)[:80]}")


@dataclass(frozen=True, slots=True)
class ShardCount:
    """What one Parquet file holds."""

    episodes: int
    frames: int
    ends: Counter[str]
    """How many episodes end with which outcome, "unknown" where nobody told."""


def count_shard(path: Path) -> ShardCount:
    """Count the episodes and frames of one Parquet file, and how its episodes end."""
    columns = [f"segments.list.element.{name}" for name in ("kind", "outcome")]
    rows = pq.ParquetFile(path).read(columns=columns)["segments"].to_pylist()
    shown = [[one["outcome"] for one in row if one["kind"] == "frame"] for row in rows]
    ends = Counter(str(outcomes[-1] or UNKNOWN) for outcomes in shown if outcomes)
    return ShardCount(len(rows), sum(map(len, shown)), ends)
