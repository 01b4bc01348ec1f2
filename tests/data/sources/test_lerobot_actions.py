"""Actions of every kind go to LeRobot and come back as they are, or are refused beforehand."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import EpisodeDataset
from data.episode import encode_png
from data.sources.jsonl import import_jsonl
from data.sources.lerobot import import_lerobot
from data.sources.lerobot_export import export_lerobot
from tests.data.lerobot_files import picture
from unified.media.action_space import ActionSpace
from unified.media.actions import NamedActions


def recorded(folder, config, actions):
    """A data folder of one episode with these actions."""
    folder.mkdir()
    (folder / "space.json").write_text(json.dumps(config))
    segments: list[Any] = [{"kind": "text", "role": "task", "text": "go"}]
    for step in range(len(actions) + 1):
        (folder / f"{step}.png").write_bytes(encode_png(picture(0, step, 0)))
        segments.append({"kind": "frame", "frame": f"{step}.png", "outcome": "ongoing"})
        segments += [{"kind": "action", "action": one} for one in actions[step : step + 1]]
    (folder / "e.jsonl").write_text(json.dumps({"segments": segments}))
    import_jsonl(folder / "e.jsonl", folder / "data", actions=folder / "space.json")
    return folder / "data"


KEYS = {"kind": "keyboard_mouse", "name": "k", "keys": ["w", "a"], "mouse": [5, 2]}
PARTS = {"kind": "multi_discrete", "name": "m", "parts": {"a": 2, "b": 3}, "starts": [-1, 5]}
NUMBERS = {"kind": "continuous", "name": "c", "dimensions": ["x", "y"], "edges": [[0, 0.5, 1]] * 2}
WHOLE = {**NUMBERS, "edges": [[0, 9], [-2, 2]], "dtype": "int8"}
NAMES = {"kind": "discrete", "name": "d", "actions": ["l", "r"], "start": -1}
KINDS = [
    (KEYS, [{"keys": ["w"], "mouse": [1.25, -2.0]}, {"keys": [], "mouse": [0.0, 0.0]}], 4),
    (PARTS, [[-1, 5], [0, 7]], 2),
    ({**PARTS, "parts": {"a": 3}, "starts": None}, [[2], [0]], 1),
    ({**NUMBERS, "chunk": 2}, [[[0.0, 1.0], [0.2, 0.3]], [[0.5, 0.5], [1.0, 0.0]]], 4),
    (NUMBERS, [[0.1, 0.9], [0.7, 0.2]], 2),
    (WHOLE, [[9, -2], [3, 0]], 2),
    (NAMES, [-1, 0], 1),
]


@pytest.mark.parametrize(("config", "actions", "width"), KINDS)
def test_each_kind_of_action_goes_out_and_comes_back_exactly(config, actions, width, tmp_path):
    ours = recorded(tmp_path / "made", config, actions)
    export_lerobot(ours, tmp_path / "out")
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    feature = info["features"]["action"]
    assert feature["shape"] == [width] == [len(feature["names"])]
    column = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")["action"]
    assert ("int64" in str(column.type)) == (feature["dtype"] == "int64")
    import_lerobot(tmp_path / "out", tmp_path / "back")
    space = ActionSpace.from_config(tmp_path / "back" / "action_space.json")
    assert space.to_config() == ActionSpace.from_config(config).to_config()
    told, back = EpisodeDataset(ours)[0].actions, EpisodeDataset(tmp_path / "back")[0].actions
    if isinstance(space, NamedActions):
        assert back == ["l", "r"]
    else:
        assert [json.loads(str(one)) for one in back] == actions
    assert [space.encode(one) for one in back] == [space.encode(one) for one in told]


def test_choices_that_stand_as_fractions_of_nothing_are_the_same_choices(tmp_path):
    export_lerobot(recorded(tmp_path / "made", PARTS, [[-1, 5], [0, 7]]), tmp_path / "out")
    file = tmp_path / "out/data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    floats = pa.array([[float(x) for x in one] for one in table["action"].to_pylist()])
    pq.write_table(table.set_column(1, "action", floats), file)
    import_lerobot(tmp_path / "out", tmp_path / "back")
    assert EpisodeDataset(tmp_path / "back")[0].actions == ["[-1, 5]", "[0, 7]"]


@pytest.mark.parametrize(
    ("config", "actions", "options", "message"),
    [
        (
            {"kind": "embodied", "name": "both", "spaces": {"pad": PARTS, "arm": NUMBERS}},
            [{"arm": [0.5, 0.5]}],
            {},
            r"the actions of 'both' \(embodied\) differ in length, and LeRobot has one length",
        ),
        (NUMBERS, [[0.5, 0.5], None], {}, "step 1: action None"),
        (NAMES, ["l"], {"fps": 0}, "fps=0 must be an integer of at least 1"),
    ],
)
def test_what_lerobot_cannot_hold_is_refused_before_anything_is_written(
    config, actions, options, message, tmp_path
):
    ours = recorded(tmp_path / "made", config, actions)
    with pytest.raises(ValueError, match=message):
        export_lerobot(ours, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_vectors_that_went_out_come_back_slower_as_chunks_and_choices_do_not(tmp_path):
    vectors = [[0.1, 0.9], [0.7, 0.2], [0.3, 0.3], [0.4, 0.5]]
    export_lerobot(recorded(tmp_path / "made", NUMBERS, vectors), tmp_path / "out")
    import_lerobot(tmp_path / "out", tmp_path / "back", fps=5)
    back = EpisodeDataset(tmp_path / "back")[0].actions
    assert [json.loads(str(one)) for one in back] == [vectors[:2], vectors[2:]]
    export_lerobot(recorded(tmp_path / "other", PARTS, [[0, 5]] * 2), tmp_path / "choices")
    with pytest.raises(ValueError, match="do not add up to one; leave fps as it is"):
        import_lerobot(tmp_path / "choices", tmp_path / "none", fps=5)
