"""The language columns of LeRobot: who says what, when, and that our own come back."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import EpisodeDataset
from data.sources.lerobot import LeRobotReader, import_lerobot
from data.sources.lerobot_export import export_lerobot
from data.sources.lerobot_words import EVENTS, EVENTS_TYPE, PERSISTENT
from unified.media.actions import ContinuousActions

PERSISTENT_TYPE = pa.list_(
    pa.struct([*EVENTS_TYPE.value_type, pa.field("timestamp", pa.float32(), nullable=False)])
)


def row(style, content, role="assistant", camera=None, **changes):
    message = {"role": role, "content": content, "style": style, "camera": camera}
    return {**message, "tool_calls": None, **changes}


def said_by_tool(text):
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": text}}}
    return row(None, None, tool_calls=[call])


def annotated(folder, persistent=(), events=None):
    """The first episode with words: those that last in all of its rows, events at theirs."""
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    episodes, frames = table["episode_index"].to_pylist(), table["frame_index"].to_pylist()
    lasting = [list(persistent) if e == 0 else [] for e in episodes]
    table = table.append_column(PERSISTENT, pa.array(lasting, PERSISTENT_TYPE))
    cells = [
        (events or {}).get(i, []) if e == 0 else [] for e, i in zip(episodes, frames, strict=True)
    ]
    if events is not None:
        table = table.append_column(EVENTS, pa.array(cells, EVENTS_TYPE))
    pq.write_table(table, path)
    info = json.loads((folder / "meta/info.json").read_text())
    for name in (PERSISTENT, EVENTS)[: 1 + (events is not None)]:
        info["features"][name] = {"dtype": "language", "shape": [1], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


LASTING = [
    row("subtask", "reach", timestamp=0.0),
    row("subtask", "grasp it", timestamp=0.3),
    row("plan", "reach, then grasp", timestamp=0.0),
    row("task_aug", "shove it", role="user", timestamp=0.0),
]
TOP, WRIST = "observation.images.top", "observation.images.wrist"
EVENTS_AT = {  # as LeRobot sorts them: by style, then by role
    0: [
        row("vqa", "a cup", camera=TOP),
        row("vqa", "what is it?", "user", TOP),
        row("vqa", "a gripper", camera=WRIST),
        row("vqa", "and here?", "user", WRIST),
    ],
    3: [said_by_tool("sure"), row("interjection", "now the lid", "user")],
    6: [said_by_tool("done")],
}


def told(episode):
    return {
        place: [(words.role, words.text) for words in said]
        for place, said in enumerate(episode.said)
        if said
    }


@pytest.mark.parametrize(
    ("options", "spoken"),
    [
        ({}, {0: "reach", 3: "grasp it"}),
        ({"styles": ["plan", "subtask"]}, {0: "reach reach, then grasp", 3: "grasp it"}),
        ({"styles": []}, {}),
        ({"fps": 5}, {0: "reach", 2: "grasp it"}),
    ],
)
def test_subtasks_are_said_when_they_begin(options, spoken, filmed, tmp_path):
    import_lerobot(annotated(filmed, LASTING), tmp_path / "out", **options)
    first, second = EpisodeDataset(tmp_path / "out")
    assert told(first) == {place: [("agent", words)] for place, words in spoken.items()}
    assert not any(second.said)
    assert first.task == "push it"


@pytest.mark.parametrize(
    ("options", "spoken"),
    [
        (
            {},
            {
                0: [("agent", "reach")],
                3: [("task", "now the lid"), ("agent", "sure grasp it")],
                6: [("agent", "done")],
            },
        ),
        (
            {"styles": ["vqa"], "cameras": ["top"]},
            {0: [("task", "what is it?"), ("agent", "a cup")]},
        ),
        (
            {"styles": ["vqa", "say"], "fps": 2.5},
            {
                0: [
                    ("task", "what is it?"),
                    ("agent", "a cup"),
                    ("task", "and here?"),
                    ("agent", "a gripper"),
                ],
                1: [("agent", "sure done")],
            },
        ),
    ],
)
def test_questions_come_before_answers_and_speech_at_its_frame(options, spoken, filmed, tmp_path):
    import_lerobot(annotated(filmed, LASTING, EVENTS_AT), tmp_path / "out", **options)
    assert told(EpisodeDataset(tmp_path / "out")[0]) == spoken


def test_tasks_are_told_in_other_words_on_demand(filmed, tmp_path):
    folder = annotated(filmed, LASTING[3:])
    phrases = [
        LeRobotReader(folder, styles=["task_aug"]).record(i).segments[0].text for i in (0, 1)
    ]
    assert phrases == ["push it", "pull it"]
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    moved = [1 - e for e in table["episode_index"].to_pylist()]
    lasting = [LASTING[3:] if e == 0 else [] for e in moved]
    column = pa.array(lasting, PERSISTENT_TYPE)
    pq.write_table(table.set_column(table.column_names.index(PERSISTENT), PERSISTENT, column), path)
    assert LeRobotReader(folder, styles=["task_aug"]).record(1).segments[0].text == "shove it"
    assert LeRobotReader(folder).record(1).segments[0].text == "pull it"


def test_a_style_that_nobody_knows_is_refused(filmed):
    with pytest.raises(ValueError, match=r"style 'subtasks' is unknown; use subtask, plan, "):
        LeRobotReader(filmed, styles=["subtasks"])


def test_the_report_counts_words_and_what_is_left_of_them(filmed):
    report = LeRobotReader(annotated(filmed, LASTING, EVENTS_AT)).report()
    assert "tasks, subtask (2), interjection (1), say (2); left out: plan (1)" in report
    assert "task_aug (1), vqa (4)" in report


def test_words_after_the_end_of_an_episode_are_refused(filmed, tmp_path):
    folder = annotated(filmed, [row("subtask", "wait", timestamp=9.0)])
    message = r"file-000.parquet: episode 0: subtask 'wait' begins at 9 s, after its end"
    with pytest.raises(ValueError, match=message):
        import_lerobot(folder, tmp_path / "out")


@pytest.mark.parametrize("language_columns", [False, True])
def test_all_that_was_said_goes_out_and_comes_back(language_columns, filmed, tmp_path):
    styles = ["vqa", "interjection", "say", "subtask"]
    import_lerobot(annotated(filmed, LASTING, EVENTS_AT), tmp_path / "in", styles=styles)
    ours = EpisodeDataset(tmp_path / "in")
    export_lerobot(tmp_path / "in", tmp_path / "out", language_columns=language_columns)
    features = json.loads((tmp_path / "out/meta/info.json").read_text())["features"]
    dtypes = {feature["dtype"] for feature in features.values()}
    assert ("language" in dtypes) == (EVENTS in features) == language_columns
    import_lerobot(tmp_path / "out", tmp_path / "back")
    back = EpisodeDataset(tmp_path / "back")
    assert [told(episode) for episode in back] == [told(episode) for episode in ours]
    assert any(told(episode) for episode in back)
    assert isinstance(LeRobotReader(tmp_path / "out").actions, ContinuousActions)
