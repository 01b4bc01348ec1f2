"""Columns of LeRobot's Parquet files, and pictures in them: of the promised type, or refused."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unified.conversation.turns import OUTCOMES
from unified.files import atomic_path, path_inside
from unified.media.action_space import ActionSpace, parsed_action
from unified.media.actions import (
    ContinuousActions,
    KeyboardMouseActions,
    MultiDiscreteActions,
    NamedActions,
)
from unified.media.numbers import is_whole
from unified.media.pictures import read_picture

FIX = "copy the dataset again"
_INTEGERS = ("_index", "length", "task_index")
_NUMBERS = ("timestamp",)
OUTCOMES_FILE = "meta/unified_outcomes.parquet"
"""How frames of an export of ours stand that `next.success` cannot tell: LeRobot skips the file."""


def read_table(path: Path, columns: Sequence[str], *, is_whole: bool = False) -> pa.Table:
    """Columns of a file, each of the type that its name promises.

    Args:
        path: Parquet file.
        columns: Names of those that have to be there.
        is_whole: Whether all others are read, too.

    Raises:
        ValueError: If the file is missing or damaged, or lacks a column.
    """
    _check(path, columns)
    try:
        return pq.read_table(path, columns=None if is_whole else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {FIX}") from error


def read_episode(path: Path, columns: Sequence[str], episode: int) -> pa.Table:
    """The rows of one episode, in the order of their frames.

    Raises:
        ValueError: If the file is missing or damaged, lacks a column, or has gaps in the frames.
    """
    names = list(dict.fromkeys([*columns, "frame_index", "episode_index"]))
    _check(path, names)
    try:
        filters = pc.field("episode_index") == episode
        return pq.read_table(path, columns=names, filters=filters).sort_by("frame_index")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {FIX}") from error


def _check(path: Path, columns: Sequence[str]) -> None:
    if not path.exists():
        raise ValueError(f"{path} is missing; {FIX}")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {FIX}") from error
    lacking = [name for name in columns if name not in schema.names]
    if lacking:
        listed = ", ".join(schema.names)
        raise ValueError(f"{path} has no column {', '.join(lacking)}, only {listed}")
    for name in columns:
        kind = schema.field(name).type
        is_integer, is_float = pa.types.is_integer(kind), pa.types.is_floating(kind)
        wanted = None
        if name.endswith(_INTEGERS) and not is_integer:
            wanted = "integers"
        elif name.endswith(_NUMBERS) and not (is_integer or is_float):
            wanted = "numbers"
        if wanted is not None:
            raise ValueError(f"{path}: column {name} holds {kind}, not {wanted}; {FIX}")


def integers(table: pa.Table, name: str, where: Path | str) -> list[int]:
    """A column of integers without gaps.

    Args:
        table: Rows of a file.
        name: Of the column.
        where: File, and episode if its rows alone are meant.

    Raises:
        ValueError: If a row is empty; names it.
    """
    values = table[name].to_pylist()
    if None in values:
        raise ValueError(f"{where}, row {values.index(None)} has no {name}; {FIX}")
    return [int(value) for value in values]


def booleans(table: pa.Table, name: str, where: str) -> list[bool | None]:
    """A column of yes and no, None where a row is empty.

    Numbers count if they are 0 or 1, and so does a list of one such value.

    Args:
        table: Rows of an episode.
        name: Of the column.
        where: File and episode.

    Raises:
        ValueError: If a row holds anything else; names it.
    """
    found: list[bool | None] = []
    for row, cell in enumerate(table[name].to_pylist()):
        value = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        if value is not None and not (isinstance(value, bool | int | float) and value in (0, 1)):
            raise ValueError(
                f"{where}, row {row} has {name} {cell!r}, not true or false; mend the column, or "
                "leave it out: the ends are unknown then"
            )
        found.append(None if value is None else bool(value))
    return found


def write_outcomes(folder: Path, outcomes: Iterable[Sequence[str | None]]) -> None:
    """Writes how those frames of an export stand that are neither ongoing nor led to by a success.

    Args:
        folder: Of the dataset.
        outcomes: For each episode, of each frame.
    """
    rows = [
        {"episode_index": index, "frame_index": place, "outcome": outcome}
        for index, episode in enumerate(outcomes)
        for place, outcome in enumerate(episode)
        if outcome != ("success" if place and outcome == "success" else "ongoing")
    ]
    if rows:
        schema = pa.schema(
            [("episode_index", pa.int64()), ("frame_index", pa.int64()), ("outcome", pa.string())]
        )
        with atomic_path(folder / OUTCOMES_FILE) as draft:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), draft)


def read_outcomes(folder: Path) -> dict[tuple[int, int], str | None]:
    """What `write_outcomes` wrote: outcomes by episode and frame.

    Raises:
        ValueError: If the file is damaged, or holds an unknown outcome.
    """
    path = folder / OUTCOMES_FILE
    if not path.exists():
        return {}
    rows = read_table(path, ["episode_index", "frame_index", "outcome"]).to_pylist()
    for number, row in enumerate(rows):
        if row["outcome"] not in (*OUTCOMES, None):
            raise ValueError(
                f"{path}: row {number} has outcome {row['outcome']!r}; use one of "
                f"{', '.join(OUTCOMES)} or null"
            )
    return {(row["episode_index"], row["frame_index"]): row["outcome"] for row in rows}


def vectors(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """A column of numbers, or of lists of equal length, as `(N, D)`.

    Raises:
        ValueError: If they differ in length, or are no numbers.
    """
    try:
        values = np.array(column.to_pylist())
    except (ValueError, OverflowError):
        values = np.array(None)
    if values.dtype == object:
        raise ValueError(
            f"{path}: actions differ in length or are empty; one dataset holds one action space"
        )
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{path}: actions are {column.type}, not numbers; convert the column")
    return values.reshape(len(values), -1)


def check_columns(space: ActionSpace) -> None:
    """Refuses an action space whose actions are no column of one number of numbers.

    Raises:
        ValueError: Naming the space and what to do.
    """
    if not isinstance(
        space, NamedActions | MultiDiscreteActions | ContinuousActions | KeyboardMouseActions
    ):
        raise ValueError(
            f"the actions of {space.name!r} ({space.kind}) differ in length, and LeRobot has one "
            "length for all; export each embodiment from a folder of its own"
        )


def number_names(space: ActionSpace) -> list[str]:
    """What each number of an action is, as `numbers_of` writes it."""
    if isinstance(space, MultiDiscreteActions):
        return list(space.parts)
    if isinstance(space, KeyboardMouseActions):
        return [*space.keys, "mouse_right", "mouse_down"]
    if not isinstance(space, ContinuousActions):
        return ["action"]
    if space.chunk == 1:
        return list(space.dimensions)
    return [f"{name}_{step}" for step in range(space.chunk) for name in space.dimensions]


def are_integers(space: ActionSpace) -> bool:
    """Whether the numbers of an action are integers."""
    if isinstance(space, ContinuousActions):
        return is_whole(space.dtype)
    return isinstance(space, NamedActions | MultiDiscreteActions)


def numbers_of(space: ActionSpace, action: Any) -> list[Any]:
    """An action of a data folder as the numbers of a row, exactly.

    Raises:
        ValueError: If it is no action of the space, or unknown.
    """
    space.encode(action)
    if isinstance(space, NamedActions):
        return [space.to_environment(action)]
    if isinstance(space, MultiDiscreteActions):
        return space.to_environment(action).tolist()
    told = parsed_action(action)
    if isinstance(space, KeyboardMouseActions):
        held = space.to_environment(action)["keys"].tolist()
        return [float(number) for number in (*held, *told["mouse"])]
    return np.asarray(told, dtype=np.int64 if are_integers(space) else float).ravel().tolist()


def action_of(space: ActionSpace, numbers: np.ndarray) -> Any:
    """The action that `numbers_of` wrote as these `(N,)`; of a chunk, `(N, D)` or all in a row.

    Raises:
        ValueError: If it is none of the space.
    """
    if are_integers(space):
        if (numbers != np.rint(numbers)).any():
            raise ValueError(f"{numbers.tolist()} are no integers, as {space.name!r} has them")
        numbers = numbers.astype(np.int64)
    if isinstance(space, NamedActions):
        return space.decode(space.encode(numbers.ravel()[0].item()))
    if isinstance(space, KeyboardMouseActions):
        keys = len(space.keys)
        action: Any = {"keys": numbers[:keys].tolist(), "mouse": numbers[keys:].tolist()}
    elif isinstance(space, ContinuousActions) and space.chunk > 1:
        action = numbers.reshape(space.chunk, -1).tolist()
    else:
        action = numbers.tolist()
    space.encode(action)
    if isinstance(space, KeyboardMouseActions):
        action["keys"] = [key for key, held in zip(space.keys, action["keys"], strict=True) if held]
    return json.dumps(action)


def picture(cell: Any, file: Path, folder: Path, name: str) -> np.ndarray:
    """A picture that a row holds, or names, `(H, W, 3)` uint8.

    Args:
        cell: Of the column.
        file: Parquet file.
        folder: Of the dataset, which no path leaves.
        name: What an error calls it.

    Raises:
        ValueError: If it cannot be read.
    """
    held = cell if isinstance(cell, dict) else {}
    path = held.get("path")
    try:
        source = held.get("bytes") or (path and path_inside(folder, file.parent / path))
        return read_picture(source or None, "the picture")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


@dataclass(frozen=True)
class Part:
    """Where an episode lies.

    Attributes:
        index: Its number.
        file: Parquet file that has its rows.
        length: Its number of rows.
        videos: For each camera with videos, the file and where in it the episode begins, seconds.
    """

    index: int
    file: Path
    length: int
    videos: dict[str, tuple[Path, float]]

    @property
    def name(self) -> str:
        """File and episode, for an error."""
        return f"{self.file}: episode {self.index}"
