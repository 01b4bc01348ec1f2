"""LeRobot datasets come in and go out: bit by bit where they hold pictures, and never in part."""

import json
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import EpisodeDataset
from data.episode import encode_png
from data.lerobot import LeRobotReader, import_lerobot
from data.lerobot_export import export_lerobot
from data.prepare import main
from unified.actions import ActionSpace, ContinuousActions

BABYAI = Path(__file__).parents[2] / "tokenizers_cfg" / "actions" / "babyai.json"
FPS = 10
LENGTHS = (7, 5)
SHAPE = (32, 48, 3)


def picture(episode, step, camera):
    """A moving bar: whoever mixes up frames sees it."""
    frame = np.full(SHAPE, 30 + 60 * camera, np.uint8)
    frame[:, 4 * step : 4 * step + 8] = (200, 40 * episode, 90)
    return frame


def numbers(episode, length):
    rng = np.random.default_rng(episode)
    return rng.normal(size=(length, 3)).astype(np.float32)


def columns(episode, start):
    """Rows of an episode as LeRobot publishes them, without pictures."""
    length = LENGTHS[episode]
    return {
        "action": list(numbers(episode, length)),
        "observation.state": [[0.0, 1.0]] * length,
        "timestamp": np.arange(length, dtype=np.float32) / FPS,
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": start + np.arange(length),
        "task_index": np.full(length, episode),
    }


def info_of(version, cameras, dtype):
    features = {
        "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "grip"]},
        "observation.state": {"dtype": "float32", "shape": [2], "names": None},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")
        },
        **{
            camera: {"dtype": dtype, "shape": SHAPE, "names": ["height", "width", "channels"]}
            for camera in cameras
        },
    }
    return {
        "codebase_version": version,
        "fps": FPS,
        "features": features,
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": 2,
        "chunks_size": 1000,
    }


def write_video(path, frames, rate=FPS):
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = SHAPE[:2]
        stream.pix_fmt = "yuv444p"
        stream.options = {"qp": "0", "g": "3"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def filmed(tmp_path):
    """v3.0: two cameras, each with both episodes in one mp4."""
    folder = tmp_path / "filmed"
    cameras = ["observation.images.top", "observation.images.wrist"]
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    info = info_of("v3.0", cameras, "video")
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (folder / "meta/info.json").write_text(json.dumps(info))
    tasks = pandas.Index(["push it", "pull it"], name="task")
    pandas.DataFrame({"task_index": [0, 1]}, index=tasks).to_parquet(folder / "meta/tasks.parquet")
    rows = [columns(0, 0), columns(1, LENGTHS[0])]
    joined = {name: [x for row in rows for x in row[name]] for name in rows[0]}
    pq.write_table(pa.table(joined), folder / "data/chunk-000/file-000.parquet")
    episodes = []
    for index, length in enumerate(LENGTHS):
        start = sum(LENGTHS[:index])
        row = {"episode_index": index, "tasks": [tasks[index]], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        for camera in cameras:
            row |= {f"videos/{camera}/{key}": 0 for key in ("chunk_index", "file_index")}
            row[f"videos/{camera}/from_timestamp"] = start / FPS
            row[f"videos/{camera}/to_timestamp"] = (start + length) / FPS
        episodes.append(row)
    pq.write_table(
        pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet"
    )
    for number, camera in enumerate(cameras):
        frames = [picture(e, t, number) for e, length in enumerate(LENGTHS) for t in range(length)]
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", frames)
    return folder


@pytest.fixture
def pictured(tmp_path):
    """v2.1: one camera of PNGs, a file for each episode."""
    folder = tmp_path / "pictured"
    camera = "observation.images.top"
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    info = info_of("v2.1", [camera], "image")
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = None
    (folder / "meta/info.json").write_text(json.dumps(info))
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(("push it", "pull it"))]
    (folder / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    lines = []
    for index, length in enumerate(LENGTHS):
        rows = columns(index, sum(LENGTHS[:index]))
        rows[camera] = [
            {"bytes": encode_png(picture(index, t, 0)), "path": None} for t in range(length)
        ]
        path = folder / f"data/chunk-000/episode_{index:06d}.parquet"
        pq.write_table(pa.table(rows), path)
        lines.append(json.dumps({"episode_index": index, "tasks": [], "length": length}))
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines))
    return folder


def test_babyai_goes_out_and_comes_back_bit_by_bit(babyai_folder, tmp_path):
    export_lerobot(babyai_folder, tmp_path / "out", actions=ActionSpace.from_config(BABYAI))
    import_lerobot(tmp_path / "out", tmp_path / "back")
    ours, back = EpisodeDataset(babyai_folder), EpisodeDataset(tmp_path / "back")
    assert len(ours) == len(back)
    for index in range(len(ours)):
        assert back.pngs(index) == ours.pngs(index)
        for name in ("task", "actions", "outcomes"):
            assert getattr(back[index], name) == getattr(ours[index], name), name
    space = ActionSpace.from_config(tmp_path / "back" / "action_space.json")
    assert space.to_config() == ActionSpace.from_config(BABYAI).to_config()


def test_what_goes_out_has_the_published_layout(babyai_folder, tmp_path):
    export_lerobot(babyai_folder, tmp_path, actions=ActionSpace.from_config(BABYAI))
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    tasks = pandas.read_parquet(tmp_path / "meta/tasks.parquet")
    assert tasks.index.name == "task"
    table = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(info["features"])
    assert table["index"].to_pylist() == list(range(info["total_frames"]))
    episodes = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for row in episodes:
        part = table.slice(row["dataset_from_index"], row["length"])
        assert set(part["episode_index"].to_pylist()) == {row["episode_index"]}
        assert tasks.index[part["task_index"][0].as_py()] == row["tasks"][0]
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    assert np.shape(stats["observation.images.main"]["mean"]) == (3, 1, 1)
    assert stats["action"]["max"][0] <= 6


def test_pictures_of_version_2_1_come_in_bit_by_bit(pictured, tmp_path):
    import_lerobot(pictured, tmp_path / "data")
    dataset = EpisodeDataset(tmp_path / "data")
    space = ActionSpace.from_config(tmp_path / "data" / "action_space.json")
    assert isinstance(space, ContinuousActions)
    assert space.dimensions == ("x", "y", "grip")
    for index, length in enumerate(LENGTHS):
        expected = [picture(index, t, 0) for t in range(length)]
        np.testing.assert_array_equal(dataset.frames(index), expected)
        assert dataset[index].task == ("push it", "pull it")[index]
        actions = [json.loads(str(action)) for action in dataset[index].actions]
        np.testing.assert_array_equal(np.array(actions, np.float32), numbers(index, length)[:-1])
        for action in actions:
            back = np.array(space.decode(space.encode(action)))
            assert (np.abs(back - action) <= space.resolution + 1e-9).all()


def test_films_of_version_3_give_each_episode_its_own_frames_cameras_side_by_side(filmed, tmp_path):
    import_lerobot(filmed, tmp_path / "data")
    dataset = EpisodeDataset(tmp_path / "data")
    for index, length in enumerate(LENGTHS):
        frames = np.stack(dataset.frames(index)).astype(int)
        views = [[picture(index, t, camera) for t in range(length)] for camera in (0, 1)]
        expected = np.concatenate(views, axis=2)
        assert frames.shape == expected.shape
        assert abs(frames - expected).max() <= 8  # colours went through YUV
        assert dataset[index].outcomes[-1] is None  # nobody said


def test_one_camera_smaller_and_slower(filmed, tmp_path):
    import_lerobot(filmed, tmp_path / "data", cameras=["wrist"], size=(16, 24), fps=FPS / 2)
    dataset = EpisodeDataset(tmp_path / "data")
    space = ActionSpace.from_config(tmp_path / "data" / "action_space.json")
    assert isinstance(space, ContinuousActions)
    assert space.chunk == 2
    frames = dataset.frames(0)
    assert len(frames) == 4
    assert frames[0].shape == (16, 24, 3)
    chunks = [json.loads(str(action)) for action in dataset[0].actions]
    np.testing.assert_array_equal(np.array(chunks, np.float32), numbers(0, 7)[:6].reshape(3, 2, 3))
    assert space.encode(chunks[0])


def test_the_report_says_what_is_taken_and_what_is_not(filmed):
    report = LeRobotReader(filmed).report()
    assert "v3.0, 2 episodes, 12 frames at 10 a second, 2 tasks" in report
    assert "observation.images.top, observation.images.wrist" in report
    assert "left out: observation.state" in report


def change_info(folder, **changes):
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_video(folder):
    next((folder / "videos").rglob("*.mp4")).unlink()


def cut_video(folder):
    path = next((folder / "videos").rglob("*.mp4"))
    path.write_bytes(path.read_bytes()[:1500])


def shorten_video(folder):
    path = next((folder / "videos").rglob("*.mp4"))
    write_video(path, [picture(0, t, 0) for t in range(9)])


def speed_up_video(folder):
    path = next((folder / "videos").rglob("*.mp4"))
    write_video(path, [picture(0, t, 0) for t in range(12)], rate=30)


def edit_rows(folder, edit):
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(edit(pq.read_table(path)), path)


def spoil_action(table):
    actions = table["action"].to_pylist()
    actions[3][1] = float("nan")
    return table.set_column(table.column_names.index("action"), "action", pa.array(actions))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: change_info(f, codebase_version="v4.0"),
            "'v4.0'; this code reads v2.1 and v3.0",
        ),
        (lambda f: change_info(f, total_episodes=3), "lists 2 episodes, info.json says 3"),
        (lambda f: (f / "meta/info.json").write_text("{"), "info.json is damaged"),
        (lambda f: (f / "meta/info.json").unlink(), "info.json does not exist"),
        (drop_video, "mp4 is missing; copy the dataset with its videos"),
        (cut_video, "mp4 cannot be decoded"),
        (shorten_video, "mp4 ends after 2 of 5 frames"),
        (speed_up_video, "30 frames a second, the dataset says 10; mixed rates"),
        (lambda f: edit_rows(f, spoil_action), r"file-000.parquet: row 3 has action \[.*nan"),
        (lambda f: edit_rows(f, lambda t: t.drop(["task_index"])), "no column task_index, only"),
        (lambda f: edit_rows(f, lambda t: t.slice(0, 10)), "has 3 rows of episode 1, .* says 5"),
    ],
)
def test_a_broken_dataset_is_refused_by_name_and_never_passes_for_a_whole_one(
    spoil, message, filmed, tmp_path
):
    spoil(filmed)
    with pytest.raises(ValueError, match=message):
        import_lerobot(filmed, tmp_path / "data")
    with pytest.raises(ValueError, match=r"not complete|does not exist"):
        EpisodeDataset(tmp_path / "data")


def test_an_action_outside_of_its_own_space_is_refused_by_row(filmed, tmp_path):
    arm = ContinuousActions.between("arm", ["x", "y", "grip"], [-9, -9, -0.5], [9, 9, 0.5])
    change_info(filmed, unified={"action_space": arm.to_config()})
    first = int(np.argmax(np.abs(numbers(0, LENGTHS[0])[:, 2]) > 0.5))
    with pytest.raises(ValueError, match=rf"episode 0, row {first}: grip=.* is not between -0.5"):
        import_lerobot(filmed, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ["left"]}, "no camera observation.images.left; it has"),
        ({"fps": 4}, "fps=4 does not divide the dataset's 10"),
    ],
)
def test_what_the_dataset_does_not_have_is_refused(options, message, filmed, tmp_path):
    with pytest.raises(ValueError, match=message):
        import_lerobot(filmed, tmp_path / "data", **options)


def test_the_command_line_takes_it_in_and_out(babyai_folder, tmp_path, capsys):
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    command = ["export-lerobot", "--data", str(babyai_folder), "--out", out]
    assert main(command) == 2
    assert "No action space file" in capsys.readouterr().err
    assert main([*command, "--actions", str(BABYAI)]) == 0
    assert main(["lerobot", "--folder", out, "--out", back]) == 0
    assert "16 episodes" in capsys.readouterr().out
    assert main([*command, "--actions", str(BABYAI)]) == 2


def annotated(folder, rows):
    """The same dataset with the column that LeRobot broadcasts over an episode's frames."""
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    kind = pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("content", pa.string()),
            pa.field("style", pa.string()),
            pa.field("timestamp", pa.float32(), nullable=False),
            pa.field("camera", pa.string()),
            pa.field("tool_calls", pa.list_(pa.string())),
        ]
    )
    cells = [rows if e == 0 else [] for e in table["episode_index"].to_pylist()]
    column = pa.array(cells, pa.list_(kind))
    pq.write_table(table.append_column("language_persistent", column), path)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["language_persistent"] = {"dtype": "language", "shape": [1], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def row(style, content, timestamp, role="assistant"):
    told = {"role": role, "content": content, "style": style, "timestamp": timestamp}
    return {**told, "camera": None, "tool_calls": None}


WORDS = [
    row("subtask", "reach", 0.0),
    row("subtask", "grasp it", 0.3),
    row("plan", "reach, then grasp", 0.0),
    row("task_aug", "shove it", 0.0, role="user"),
]


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
    folder = annotated(filmed, WORDS)
    import_lerobot(folder, tmp_path / "out", **options)
    first, second = EpisodeDataset(tmp_path / "out")
    said = {i: [words.text for words in after] for i, after in enumerate(first.said) if after}
    assert said == {i: [words] for i, words in spoken.items()}
    assert not any(second.said)
    assert first.task == "push it"


def test_the_report_counts_words_and_what_is_left_of_them(filmed):
    report = LeRobotReader(annotated(filmed, WORDS)).report()
    assert "the agent says subtask (2); left out: plan (1), task_aug (1)" in report


def test_words_after_the_end_of_an_episode_are_refused(filmed, tmp_path):
    folder = annotated(filmed, [row("subtask", "wait", 9.0)])
    with pytest.raises(ValueError, match=r"'wait' of episode 0 begins at 9 s, after its end"):
        import_lerobot(folder, tmp_path / "out")
