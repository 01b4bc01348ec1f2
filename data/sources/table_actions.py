"""What the action columns of a table mean: names, choices, vectors, or keyboard and mouse."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.json_text import INT64
from data.sources.gymnasium import check_names
from data.sources.mouse import MouseRange
from unified.media.action_space import ActionSpace
from unified.media.actions import (
    ContinuousActions,
    KeyboardMouseActions,
    MultiDiscreteActions,
    NamedActions,
)

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MOST_CHOICES = 1000
"""Of one integer: more are numbers."""


class TableActions:
    """The actions of one or more tables.

    Args:
        actions: Columns of what is done; or
        keys: columns of keys, with
        mouse: none or the two of the mouse's movement.
    """

    def __init__(self, actions: Sequence[str], keys: Sequence[str], mouse: Sequence[str]) -> None:
        self.actions, self.keys, self.mouse = tuple(actions), tuple(keys), tuple(mouse)
        self.rows: list[tuple[Path, int, dict[str, str]]] = []

    def take(self, table: Path, rows: Sequence[tuple[int, dict[str, str]]]) -> None:
        """Looks at the rows of a table, `(line, cells)` each."""
        self.rows += [(table, line, cells) for line, cells in rows]

    def space(
        self,
        name: str,
        names: Sequence[str],
        mouse_range: Sequence[float] | None,
        bins: int | None,
    ) -> tuple[ActionSpace, MouseRange | None]:
        """The action space of all rows, and how far the mouse moves in it.

        Raises:
            ValueError: If a cell fits no kind of action; names file and line.
        """
        if self.keys:
            if names:
                raise ValueError(
                    f"--action-names {' '.join(names)} names actions of --actions; keys have the "
                    "names of their columns, leave it out"
                )
            for row in self.rows:
                self._pressed(*row)
            if not self.mouse:
                return MultiDiscreteActions(name, {key: ("up", "down") for key in self.keys}), None
            moved = [self._moved(*row) for row in self.rows]
            reach = MouseRange.of(moved, mouse_range)
            return KeyboardMouseActions(name, self.keys, reach.farthest, bins or 11), reach
        known = [row for row in self.rows if self._is_known(*row)]
        if not known:
            raise ValueError(f"the columns {', '.join(self.actions)} are empty in all tables")
        numbers = [[read_number(cells[column]) for column in self.actions] for _, _, cells in known]
        is_number = [all(x is not None for x in column) for column in zip(*numbers, strict=True)]
        if all(is_number):
            return self._of_numbers(name, names, np.array(numbers, dtype=float), bins or 256), None
        if any(x is not None for row in numbers for x in row):
            column = self.actions[is_number.index(False)]
            table, line, cells = next(row for row in known if read_number(row[2][column]) is None)
            raise ValueError(
                f"{table}:{line}: {column} is {cells[column]!r}, and other cells of the action "
                "columns are numbers; mend the line, or give columns of one kind"
            )
        options = {
            column: list(dict.fromkeys(cells[column] for _, _, cells in known))
            for column in self.actions
        }
        if len(options) > 1:
            if names:
                raise ValueError(
                    f"--action-names {' '.join(names)} names the actions of one column, and there "
                    f"are {len(options)} ({', '.join(options)}); leave it out"
                )
            return MultiDiscreteActions(name, options), None
        (found,) = options.values()
        check_names(names, len(names), name)
        for table, line, cells in known if names else ():
            if cells[self.actions[0]] not in names:
                raise ValueError(
                    f"{table}:{line}: {self.actions[0]} is {cells[self.actions[0]]!r}, which is "
                    f"none of --action-names {' '.join(names)}; add it, or mend the line"
                )
        return NamedActions(name, list(names) or found), None

    def _of_numbers(
        self, name: str, names: Sequence[str], values: np.ndarray, bins: int
    ) -> ActionSpace:
        if values.shape[1] == 1 and (values == values.round()).all():
            least, most = int(values.min()), int(values.max())
            if most - least >= MOST_CHOICES:
                raise ValueError(
                    f"{self.actions[0]} holds integers from {least} to {most}, which is no choice "
                    "of a few; write them with a fraction, such as 3.5, and they get bins"
                )
            if names and len(names) < most - least + 1:
                check_names(names, most - least + 1, name)
            check_names(names, len(names), name)
            given = list(names) or [f"action{i}" for i in range(least, most + 1)]
            return NamedActions(name, given, least)
        check_names(names, values.shape[1], name)
        return ContinuousActions.fit(name, list(names) or self.actions, values, bins=bins)

    def _is_known(self, table: Path, line: int, cells: Mapping[str, str]) -> bool:
        empty = [column for column in self.actions if not cells[column]]
        if empty and len(empty) < len(self.actions):
            raise ValueError(
                f"{table}:{line}: {empty[0]} is empty, other actions are not; fill all, or none"
            )
        return not empty

    def _pressed(self, table: Path, line: int, cells: Mapping[str, str]) -> list[str]:
        for key in self.keys:
            if cells[key].lower() not in ("0", "1", "", "true", "false"):
                raise ValueError(
                    f"{table}:{line}: {key} is {cells[key]!r}; give 1 where it is held"
                )
        return [key for key in self.keys if cells[key].lower() in ("1", "true")]

    def _moved(self, table: Path, line: int, cells: Mapping[str, str]) -> list[float]:
        moved = [read_number(cells[column] or "0") for column in self.mouse]
        if None in moved:
            place = moved.index(None)
            raise ValueError(
                f"{table}:{line}: {self.mouse[place]} is {cells[self.mouse[place]]!r}, no number"
            )
        return [float(x or 0) for x in moved]

    def written(
        self,
        table: Path,
        line: int,
        cells: Mapping[str, str],
        space: ActionSpace,
        mouse: MouseRange | None,
    ) -> str | None:
        """The action of a row as a data folder holds it; None if nobody knows it.

        Raises:
            ValueError: If it is none of the space; names file and line.
        """
        action: Any
        if self.keys:
            held = self._pressed(table, line, cells)
            if mouse is None:
                action = [int(key in held) for key in self.keys]
            else:
                action = {"keys": held, "mouse": mouse.clip(self._moved(table, line, cells))}
        elif not self._is_known(table, line, cells):
            return None
        elif isinstance(space, ContinuousActions):
            action = [read_number(cells[column]) for column in self.actions]
        elif isinstance(space, MultiDiscreteActions):
            action = {column: cells[column] for column in self.actions}
        else:
            number = read_number(cells[self.actions[0]])
            action = cells[self.actions[0]] if number is None else int(number)
        try:
            tokens = space.encode(action)
        except ValueError as error:
            raise ValueError(f"{table}:{line}: {error}") from error
        return space.decode(tokens) if isinstance(space, NamedActions) else json.dumps(action)

    def report(self, space: ActionSpace, mouse: MouseRange | None) -> str:
        """What is done, in a line or two."""
        line = f"  actions: {type(space).__name__}, {space.num_tokens} tokens"
        if isinstance(space, NamedActions):
            told = [self.written(*row, space, None) for row in self.rows]
            count = Counter(action or "(unknown)" for action in told)
            line += f": {', '.join(f'{name} ({n})' for name, n in count.most_common())}"
        elif isinstance(space, ContinuousActions):
            worst = zip(space.dimensions, space.resolution, strict=True)
            line += f"; {', '.join(f'{name} comes back within {x:.3g}' for name, x in worst)}"
        if isinstance(space, KeyboardMouseActions) and mouse is not None:
            line += f"\n  mouse: {mouse.report(space)}"
        return line


def read_number(text: str) -> float | None:
    """A finite number, as a table writes it: digits, a point, an exponent; None if it is none."""
    if _NUMBER.fullmatch(text) is None:  # Python takes 1_0, too
        return None
    value = float(text)
    if not math.isfinite(value) or (value.is_integer() and int(value) not in INT64):
        return None
    return value
