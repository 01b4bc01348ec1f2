"""What is to be done in each episode, from a file beside the recordings."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from data.json_text import read_json

COLUMNS = ("episode", "task")


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
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); {fix}") from error
    reader = csv.DictReader(text.splitlines())
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise ValueError(f"{file} has the columns {reader.fieldnames}; {fix}")
    tasks: dict[str, str] = {}
    for row in reader:
        episode, task = row["episode"], row["task"]
        if not episode or not task or episode in tasks:
            raise ValueError(
                f"{file}:{reader.line_num}: episode {episode!r} with the task {task!r}; every "
                "episode has one line with words"
            )
        tasks[episode] = task
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
