"""What is to be done in each episode, from a file beside the recordings."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from data.json_text import read_json

COLUMNS = ("episode", "task")


def table_text(file: Path, fix: str) -> io.StringIO:
    """The text of a CSV as it is: a cell in quotes keeps its line breaks, whatever their kind.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); {fix}") from error


def read_tasks(file: Path) -> dict[str, str]:
    """Words for each episode.

    Args:
        file: CSV with the columns episode and task, or a JSON object from episodes to tasks.

    Raises:
        ValueError: If it cannot be read; names file and line.
    """
    fix = "give a CSV with the columns episode and task, or a JSON object"
    if file.suffix == ".json":
        content = read_json(file, fix)
        for episode, task in content.items():
            if not isinstance(task, str) or not task:
                raise ValueError(f"{file}: the task of {episode!r} is {task!r}; give words")
        return content
    reader = csv.DictReader(table_text(file, fix), strict=True)
    tasks: dict[str, str] = {}
    try:
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"{file} has the columns {reader.fieldnames}; {fix}")
        for row in reader:
            episode, task = row["episode"], row["task"]
            if not episode or not task or episode in tasks:
                raise ValueError(
                    f"{file}:{reader.line_num}: episode {episode!r} with the task {task!r}; every "
                    "episode has one line with words"
                )
            tasks[episode] = task
    except csv.Error as error:
        raise ValueError(f"{file}: not a table ({error}); {fix}") from error
    return tasks


def check_tasks(tasks: Mapping[str, str], episodes: Iterable[str], file: Path | None) -> None:
    """Refuses tasks of episodes that are not there: a slip of the pen would lose them.

    Raises:
        ValueError: Naming one of them.
    """
    known = list(episodes)
    unknown = [episode for episode in tasks if episode not in set(known)]
    if unknown:
        raise ValueError(
            f"{file}: there is no episode {unknown[0]!r}; they are {', '.join(known[:5])}"
            f"{', ...' * (len(known) > 5)}"
        )
