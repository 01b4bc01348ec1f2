"""Films with a table become episodes: each row goes to its own frame, or is refused by its line."""

import csv
import json
from typing import Any

import numpy as np
import pytest

from data.dataset import EpisodeDataset
from data.sources.table import import_table
from data.sources.tasks import read_tasks
from tests.data.lerobot_files import SHAPE, write_video
from tests.data.preparing import prepare
from unified.media.action_space import ActionSpace
from unified.media.actions import (
    ContinuousActions,
    KeyboardMouseActions,
    MultiDiscreteActions,
    NamedActions,
)

COUNT, FPS = 9, 10


def picture(step):
    frame = np.full(SHAPE, 40, np.uint8)
    frame[:, 4 * step : 4 * step + 8] = (220, 120, 60)
    return frame


def row(step, **changes):
    move = ("left", "right")[step % 2]
    content = {"t": f"{step / FPS:.3f}", "n": step, "move": move, "gas": step / 8, "w": step % 2}
    content |= {"dx": 2 * step, "dy": -1, "code": step % 3 - 1, "said": "", "todo": "", "won": ""}
    return {**content, **changes}


def save(folder, rows, name="a"):
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """One film of nine frames."""
    made = tmp_path / "films"
    write_video(made / "a.mp4", map(picture, range(COUNT)), rate=FPS)
    save(made, [row(t) for t in range(COUNT)])
    return made


def near(frames, steps):
    expected = np.stack([picture(t) for t in steps])
    assert abs(np.stack(frames).astype(int) - expected).max() <= 8  # colours went through YUV


def written(folder):
    dataset = EpisodeDataset(folder)
    return dataset, ActionSpace.from_config(folder / "action_space.json")


@pytest.mark.parametrize("match", [{"time": "t"}, {"index": "n"}])
def test_the_action_of_a_row_leads_to_the_frame_of_the_next(match, folder, tmp_path):
    import_table(folder, tmp_path / "data", actions=["move"], task="go on", frames=5, **match)
    dataset, space = written(tmp_path / "data")
    assert isinstance(space, NamedActions)
    assert dataset.lengths.tolist() == [5, 5]
    for index in range(2):
        start = 4 * index
        near(dataset.frames(index), range(start, start + 5))
        expected = [("left", "right")[t % 2] for t in range(start, start + 4)]
        assert dataset[index].actions == expected
        assert dataset[index].task == "go on"
    assert dataset[1].outcomes[-1] is None  # nobody says how it ended


@pytest.mark.parametrize(
    ("options", "kind", "first"),
    [
        ({"actions": ["gas", "dx"]}, ContinuousActions, "[0.125, 2.0]"),
        ({"actions": ["code"]}, NamedActions, "action0"),
        ({"actions": ["code"], "action_names": ["l", "s", "r"]}, NamedActions, "s"),
        ({"actions": ["move", "won"]}, MultiDiscreteActions, '{"move": "right", "won": "no"}'),
        ({"keys": ["w"]}, MultiDiscreteActions, "[1]"),
        (
            {"keys": ["w"], "mouse": ["dx", "dy"]},
            KeyboardMouseActions,
            '{"keys": ["w"], "mouse": [2.0, -1.0]}',
        ),
    ],
)
def test_columns_tell_their_own_action_space(options, kind, first, folder, tmp_path):
    save(folder, [row(t, won="no") for t in range(COUNT)])
    import_table(folder, tmp_path / "data", time="t", **options)
    dataset, space = written(tmp_path / "data")
    assert isinstance(space, kind)
    assert dataset[0].actions[1] == first
    for action in dataset[0].actions:
        assert space.encode(action)
    if isinstance(space, NamedActions):
        assert [space.to_environment(a) for a in dataset[0].actions[:3]] == [-1, 0, 1]


def test_words_tasks_unknown_actions_and_successes_stand_at_their_rows(folder, tmp_path):
    rows = [row(t, todo="open" if t < 4 else "shut") for t in range(COUNT)]
    rows[2] |= {"said": "i see it", "move": ""}
    rows[8]["won"] = 1
    save(folder, rows)
    columns: dict[str, Any] = {"words": "said", "task_column": "todo", "success": "won"}
    import_table(folder, tmp_path / "data", index="n", actions=["move"], **columns)
    (episode,) = EpisodeDataset(tmp_path / "data")
    assert episode.task == "open"
    said = {i: [(w.role, w.text) for w in words] for i, words in enumerate(episode.said) if words}
    assert said == {2: [("agent", "i see it")], 4: [("task", "shut")]}
    assert episode.actions[2] is None
    assert episode.outcomes == ["ongoing"] * 8 + ["success"]


def test_a_film_that_lacks_a_frame_is_refused_by_the_line_of_its_row(folder, tmp_path):
    left = [t for t in range(COUNT) if t != 5]
    write_video(folder / "a.mp4", map(picture, left), rate=FPS, times=left)
    with pytest.raises(ValueError, match=r"a.csv:7: .*a.mp4 has no frame at 0.5 s"):
        import_table(folder, tmp_path / "data", time="t", actions=["move"])
    with pytest.raises(ValueError, match=r"frame 5 comes 0.200 s after .* match by --time"):
        import_table(folder, tmp_path / "numbers", index="n", actions=["move"])
    # Without the row of the lost frame the rest is matched rightly.
    save(folder, [row(t) for t in left])
    import_table(folder, tmp_path / "rest", time="t", actions=["move"])
    near(EpisodeDataset(tmp_path / "rest").frames(0), left)


def test_names_of_actions_may_be_given_with_their_order_and_those_that_were_never_taken(
    folder, tmp_path
):
    names = ["stay", "right", "left"]
    import_table(folder, tmp_path / "data", time="t", actions=["move"], action_names=names)
    dataset, space = written(tmp_path / "data")
    assert [space.to_environment(a) for a in dataset[0].actions[:2]] == [2, 1]
    assert space.tokens == ("<stay>", "<right>", "<left>")


def test_what_is_said_at_the_last_frame_ends_the_recording(folder, tmp_path):
    save(folder, [row(t, said={0: "hm", COUNT - 1: "there"}.get(t, "")) for t in range(COUNT)])
    import_table(folder, tmp_path / "data", time="t", actions=["move"], words="said", frames=5)
    dataset, _ = written(tmp_path / "data")
    assert [[(w.role, w.text) for w in words] for words in dataset[0].said] == [
        [("agent", "hm")],
        *[[]] * 4,
    ]
    assert [(w.role, w.text) for w in dataset[1].said[-1]] == [("agent", "there")]
    last = dataset.sequence(1, pixels=True).segments[-1]
    assert (last.text, last.weight) == ("there", 1.0)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([row(t) for t in range(COUNT + 2)], {}, r"a.csv:11: .*a.mp4 has no frame at 0.9 s"),
        ([row(t) for t in range(COUNT) if t != 3], {}, r"a.csv:5: no row for frame 3 of"),
        ([row(0), row(1, t="0.05")], {}, r"a.csv:3: .* has no frame at 0.05 s"),
        ([row(0), row(1, t="x")], {}, r"a.csv:3: t is 'x', not a number of seconds"),
        ([row(0), row(0)], {}, r"a.csv:3: t is 0 after 0; it has to rise"),
        ([row(0)], {}, "a.csv has 1 rows; a recording has at least two"),
        ([row(0), row(1, move="")], {"actions": ["move", "code"]}, "a.csv:3: move is empty, other"),
        (
            [row(t, gas=x) for t, x in enumerate(("0.5", "nan", "1"))],
            {"actions": ["gas"]},
            "a.csv:3: gas is 'nan', and other cells of the action columns are numbers",
        ),
        ([row(0), row(1)], {"actions": ["brake"]}, "a.csv has no column 'brake'; it has t, n"),
        ([row(0), row(1)], {"time": None}, "say what matches a row to its frame"),
        ([row(0), row(1)], {"actions": []}, "say which columns are actions"),
        ([row(0), row(1, w=7)], {"actions": [], "keys": ["w"]}, "a.csv:3: w is '7'; give 1 where"),
        ([row(0, code=10**6), row(1)], {"actions": ["code"]}, "which is no choice of a few"),
        (
            [row(t) for t in range(3)],
            {"action_names": ["left", "up"]},
            "a.csv:3: move is 'right', which is none of --action-names left up; add it",
        ),
        (
            [row(0, won="no"), row(1, won="no")],
            {"actions": ["move", "won"], "action_names": ["left", "right"]},
            r"names the actions of one column, and there are 2 \(move, won\)",
        ),
        (
            [row(0), row(1)],
            {"actions": [], "keys": ["w"], "action_names": ["up"]},
            "keys have the names of their columns, leave it out",
        ),
        ([row(0), row(1, t="1_0")], {}, "a.csv:3: t is '1_0', not a number of seconds"),
        ([row(0), row(1, n="1_0")], {"time": None, "index": "n"}, "a.csv:3: n is '1_0', not the"),
        (
            [row(t, gas=x) for t, x in enumerate(("0.5", "1_0", "1"))],
            {"actions": ["gas"]},
            "a.csv:3: gas is '1_0', and other cells",
        ),
        (
            [row(t) for t in range(3)],
            {"actions": ["code"], "action_names": ["l", "r"]},
            r"2 different names \(l, r\) for 3 actions",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_its_line(rows, options, message, folder, tmp_path):
    save(folder, rows)
    with pytest.raises(ValueError, match=message):
        import_table(folder, tmp_path / "data", **{"time": "t", "actions": ["move"], **options})
    with pytest.raises(ValueError, match=r"not complete|does not exist"):
        EpisodeDataset(tmp_path / "data")


def test_the_command_line_takes_tasks_of_recordings_from_a_file(folder, tmp_path, capsys):
    (tmp_path / "tasks.csv").write_text("episode,task\na,find the door\n")
    command = ["table", "--folder", str(folder), "--time", "t", "--actions", "move"]
    command += ["--tasks", str(tmp_path / "tasks.csv")]
    assert prepare([*command, "--out", str(tmp_path / "data")]) == 0
    assert "NamedActions, 1 tokens: left (5), right (4)" in capsys.readouterr().out
    assert EpisodeDataset(tmp_path / "data")[0].task == "find the door"
    (tmp_path / "tasks.csv").write_text("episode,task\nb,find the door\n")
    assert prepare([*command, "--out", str(tmp_path / "other")]) == 2
    assert "there is no episode 'b'; they are a" in capsys.readouterr().err
    assert json.loads((tmp_path / "data" / "info.json").read_text())["source"] == "table"


WORDS = "go\nleft", "go\r\nleft", "go\u2028left", "go,\u2028left", "go\x0bleft \u0085 on"


@pytest.mark.parametrize("words", WORDS)
def test_a_cell_keeps_its_line_breaks_whatever_their_kind(words, folder, tmp_path):
    save(folder, [row(t, said=words if t == 2 else "") for t in range(COUNT)])
    import_table(folder, tmp_path / "data", time="t", actions=["move"], words="said")
    episode = EpisodeDataset(tmp_path / "data")[0]
    assert [[one.text for one in said] for said in episode.said] == [
        [words] if place == 2 else [] for place in range(COUNT)
    ]


@pytest.mark.parametrize("words", WORDS)
def test_tasks_of_a_file_keep_their_line_breaks_too(words, tmp_path):
    with (tmp_path / "tasks.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["episode", "task"], ["a", words], ["b", "stop"]])
    assert read_tasks(tmp_path / "tasks.csv") == {"a": words, "b": "stop"}


def test_a_cell_of_tasks_that_never_ends_is_refused_and_swallows_no_line(tmp_path):
    (tmp_path / "tasks.csv").write_text('episode,task\na,"go\nb,stop\n')
    with pytest.raises(ValueError, match=r"tasks.csv: not a table \(.*; give a CSV with"):
        read_tasks(tmp_path / "tasks.csv")
