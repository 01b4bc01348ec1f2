"""How LeRobot's episodes end is what their rows say: nothing is believed, lost or made up."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import EpisodeDataset
from data.episode import encode_png
from data.sources.jsonl import import_jsonl
from data.sources.lerobot import import_lerobot
from data.sources.lerobot_export import export_lerobot

ENDS = [
    ["ongoing", "ongoing", "failure"],
    ["ongoing", "ongoing", None],
    ["ongoing", "ongoing", "success"],
    ["ongoing", "ongoing", "ongoing"],
    ["ongoing", None, "ongoing"],
    ["success", "ongoing", "failure"],
    [None, "success", "ongoing"],
]


def own_folder(folder, ends):
    """A data folder with an episode for each list of outcomes."""
    folder.mkdir()
    lines = []
    for episode in ends:
        segments = []
        for step, outcome in enumerate(episode):
            if step:
                segments.append({"kind": "action", "action": "go"})
            (folder / f"{step}.png").write_bytes(
                encode_png(np.full((24, 24, 3), 40 * step + 20, np.uint8))
            )
            segments.append({"kind": "frame", "frame": f"{step}.png", "outcome": outcome})
        lines.append(json.dumps({"segments": segments}))
    (folder / "e.jsonl").write_text("\n".join(lines))
    import_jsonl(folder / "e.jsonl", folder / "data")
    return folder / "data"


def outcomes(folder):
    return [episode.outcomes for episode in EpisodeDataset(folder)]


def test_every_outcome_goes_out_and_comes_back(tmp_path):
    export_lerobot(own_folder(tmp_path / "own", ENDS), tmp_path / "out")
    import_lerobot(tmp_path / "out", tmp_path / "back")
    assert outcomes(tmp_path / "back") == ENDS


def test_a_damaged_outcome_of_an_export_is_refused(tmp_path):
    export_lerobot(own_folder(tmp_path / "own", ENDS), tmp_path / "out")
    path = tmp_path / "out/meta/unified_outcomes.parquet"
    table = pq.read_table(path)
    values = pa.array(["won"] * table.num_rows)
    pq.write_table(table.set_column(2, "outcome", values), path)
    with pytest.raises(ValueError, match=r"row 0 has outcome 'won'; use one of ongoing, success"):
        import_lerobot(tmp_path / "out", tmp_path / "back")


def with_success(folder, values):
    """Gives all twelve rows of a dataset a `next.success`."""
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path).append_column("next.success", pa.array(values))
    pq.write_table(table, path)
    return folder


@pytest.mark.parametrize(
    "wrap", [bool, int, float, lambda x: [x]], ids=["bool", "int", "float", "list"]
)
def test_a_success_stands_where_its_row_led_to_and_counts_on_the_last_row(wrap, filmed, tmp_path):
    values = [wrap(row in (2, 11)) for row in range(12)]
    import_lerobot(with_success(filmed, values), tmp_path / "data")
    assert outcomes(tmp_path / "data") == [
        ["ongoing", "ongoing", "ongoing", "success", "ongoing", "ongoing", "ongoing"],
        ["ongoing", "ongoing", "ongoing", "ongoing", "success"],
    ]


def test_rows_that_say_nothing_are_unknown(filmed, tmp_path):
    values = [False, None, *[False] * 9, None]
    import_lerobot(with_success(filmed, values), tmp_path / "data")
    assert outcomes(tmp_path / "data") == [
        ["ongoing", "ongoing", None, "ongoing", "ongoing", "ongoing", "ongoing"],
        ["ongoing", "ongoing", "ongoing", "ongoing", None],
    ]


@pytest.mark.parametrize(
    ("value", "named"), [(float("nan"), "nan"), ("false", "'false'"), ([], r"\[\]"), (0.5, "0.5")]
)
def test_what_is_neither_yes_nor_no_is_refused_by_its_row(value, named, filmed, tmp_path):
    other = {str: "true", list: [True], float: 0.0}[type(value)]
    values = [other, value, *[other] * 10] if value != "false" else [value] * 12
    row = 0 if value == "false" else 1
    message = rf"file-000.parquet: episode 0, row {row} has next.success {named}, not true or false"
    with pytest.raises(ValueError, match=message):
        import_lerobot(with_success(filmed, values), tmp_path / "data")
