"""LeRobot datasets come in and go out: bit by bit where they hold pictures, and never in part."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.dataset import EpisodeDataset
from data.episode import decode_png
from data.sources import lerobot_export
from data.sources.lerobot import LeRobotReader, import_lerobot
from data.sources.lerobot_export import export_lerobot
from tests.data.lerobot_files import FPS, LENGTHS, numbers, picture, write_video
from tests.data.preparing import prepare
from unified.media.action_space import ActionSpace
from unified.media.actions import ContinuousActions

BABYAI = Path(__file__).parents[3] / "tokenizers_cfg" / "actions" / "babyai.json"


def test_babyai_goes_out_and_comes_back_bit_by_bit(babyai_folder, tmp_path):
    export_lerobot(babyai_folder, tmp_path / "out", actions=BABYAI)
    import_lerobot(tmp_path / "out", tmp_path / "back")
    ours, back = EpisodeDataset(babyai_folder), EpisodeDataset(tmp_path / "back")
    assert len(ours) == len(back)
    for index in range(len(ours)):
        assert back.pngs(index) == ours.pngs(index)
        for name in ("task", "actions", "outcomes", "said"):
            assert getattr(back[index], name) == getattr(ours[index], name), name
    space = ActionSpace.from_config(tmp_path / "back" / "action_space.json")
    assert space.to_config() == ActionSpace.from_config(BABYAI).to_config()


def test_what_goes_out_has_the_published_layout(babyai_folder, tmp_path):
    export_lerobot(babyai_folder, tmp_path, actions=BABYAI)
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


TOP = "observation.images.top"
TASKS, EPISODES = "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"


def edit_table(path, edit):
    pq.write_table(edit(pq.read_table(path)), path)


def edit_rows(folder, edit):
    edit_table(folder / "data/chunk-000/file-000.parquet", edit)


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
        (
            lambda f: edit_rows(f, set_column("task_index", [*[0] * 9, 3, 0, 0])),
            r"file-000.parquet: episode 1, row 2 has task_index 3, which meta/tasks does not list",
        ),
        (
            lambda f: edit_rows(f, set_column("task_index", [*[0] * 9, None, 0, 0])),
            r"file-000.parquet: episode 1, row 2 has no task_index",
        ),
        (
            lambda f: edit_rows(f, set_column("task_index", ["0"] * 12)),
            "column task_index holds string, not integers",
        ),
        (
            lambda f: edit_rows(f, set_column("timestamp", ["0"] * 12)),
            "column timestamp holds string, not numbers",
        ),
        (
            lambda f: edit_rows(f, set_column("timestamp", [0.0] * 12)),
            "episode 0, row 1 has timestamp 0; times must rise",
        ),
        (
            lambda f: edit_rows(f, set_column("episode_index", [b"0"] * 12)),
            "column episode_index holds binary, not integers",
        ),
        (
            lambda f: edit_rows(f, set_column("frame_index", [*range(6), 5, *range(5)])),
            "frame_index of episode 0 does not count from 0 to 6",
        ),
        (
            lambda f: edit_rows(f, set_column("action", ["left"] * 12)),
            "file-000.parquet: actions are string, not numbers",
        ),
        (
            lambda f: edit_rows(f, set_column("action", [0] * 11 + [2**62])),
            "integers from 0 to 4611686018427387904, which is no choice of a few",
        ),
        (
            lambda f: edit_rows(f, set_column("action", [[1.0]] * 11 + [[]])),
            "actions differ in length or are empty",
        ),
        (lambda f: change_info(f, fps=0), "fps is 0, not a positive number"),
        (lambda f: change_info(f, features=[]), "features is no table of columns"),
        (lambda f: change_info(f, data_path=None), "data_path is None, not str"),
        (
            lambda f: (f / "meta/info.json").write_text("[" * 10_000),
            "info.json is damaged .*nested too deeply",
        ),
        (
            lambda f: (f / "meta/info.json").write_text('{"fps": 1' + "0" * 5000 + "}"),
            "does not fit into 64 bits",
        ),
        (lambda f: change_info(f, data_path="{foo}"), "data_path '{foo}' names no file .*'foo'"),
        (lambda f: change_info(f, data_path="{"), "data_path '{' names no file"),
        (lambda f: change_info(f, data_path="{}"), "data_path '{}' names no file"),
        (lambda f: change_info(f, data_path="../x"), "data_path '../x' names no file .*outside"),
        (lambda f: change_info(f, video_path="/x"), "video_path '/x' names no file .*outside"),
        (lambda f: change_info(f, video_path="{video_key[a]}"), "video_path .* names no file"),
        (lambda f: change_info(f, chunks_size=0), "chunks_size is 0, and a chunk holds episodes"),
        (lambda f: change_info(f, chunks_size=True), "chunks_size is True, not int"),
        (lambda f: change_info(f, unified=5), "unified is 5, not an object"),
        (
            lambda f: edit_table(f / TASKS, set_column("task_index", [1, 1])),
            "tasks.parquet: task_index 1 is listed twice",
        ),
        (
            lambda f: edit_table(f / EPISODES, set_column("episode_index", [1, 1])),
            "lists episode 1 twice",
        ),
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


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("tasks", lambda lines: [lines[0], lines[0]], "task_index 0 is listed twice"),
        ("episodes", lambda lines: [lines[1], lines[1]], "lists episode 1 twice"),
        ("episodes", lambda lines: lines[:1], "lists 1 episodes, info.json says 2"),
        ("episodes", lambda lines: [lines[0].replace("0", "true", 1)], "lacks episode_index or"),
    ],
)
def test_lists_of_version_2_1_are_held_against_each_other(file, edit, message, pictured, tmp_path):
    path = pictured / f"meta/{file}.jsonl"
    path.write_text("\n".join(edit(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        import_lerobot(pictured, tmp_path / "data")


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def show(folder, pictures):
    """Puts pictures into the last rows of the second episode of version 2.1."""

    def edit(table):
        cells = table[TOP].to_pylist()
        cells[-len(pictures) :] = [{"bytes": one, "path": None} for one in pictures]
        return table.set_column(table.column_names.index(TOP), TOP, pa.array(cells))

    edit_table(folder / "data/chunk-000/episode_000001.parquet", edit)


def test_pictures_of_sixteen_bits_and_transparent_ones_come_in_as_they_look(pictured, tmp_path):
    wide = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    hidden = Image.fromarray(np.zeros((32, 48, 4), np.uint8))
    show(pictured, [saved(Image.fromarray(wide)), saved(hidden)])
    import_lerobot(pictured, tmp_path / "data")
    frames = EpisodeDataset(tmp_path / "data").frames(1)
    levels = np.repeat(np.rint(wide / 257).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(frames[-2], levels)
    assert (frames[-1] == 255).all()


FLAT = Image.fromarray(np.full((32, 48, 3), 90, np.uint8))


@pytest.mark.parametrize(
    ("png", "size", "message"),
    [
        (saved(FLAT)[:60], None, "the picture cannot be read as a picture"),
        (saved(Image.fromarray(np.ones((32, 48), np.float32)), "TIFF"), None, "pixels of 32 bits"),
        (saved(FLAT, save_all=True, append_images=[FLAT.rotate(180)]), None, "holds 2 pictures"),
        (saved(FLAT.resize((7, 7))), None, "is 7 x 7 pixels, which is no picture"),
        (saved(FLAT.resize((7, 7))), (32, 48), "is 7 x 7 pixels, which is no picture"),
        (None, None, "the picture is missing"),
    ],
)
def test_a_picture_that_is_none_is_refused_by_file_episode_and_row(
    png, size, message, pictured, tmp_path
):
    show(pictured, [png, saved(FLAT)])
    where = rf"episode_000001.parquet: episode 1, row 3: {TOP}"
    with pytest.raises(ValueError, match=rf"{where}.*{message}"):
        import_lerobot(pictured, tmp_path / "data", size=size)


def test_pictures_and_films_of_several_sizes_are_refused_unless_a_size_is_given(
    pictured, filmed, tmp_path
):
    show(pictured, [saved(FLAT.resize((48, 40)))] * LENGTHS[1])
    with pytest.raises(ValueError, match=r"differ in size \(.* is 32 x 48, .* is 40 x 48\); give"):
        import_lerobot(pictured, tmp_path / "sizes")
    import_lerobot(pictured, tmp_path / "one", size=(20, 24))
    assert {f.shape for i in (0, 1) for f in EpisodeDataset(tmp_path / "one").frames(i)} == {
        (20, 24, 3)
    }
    tall = [np.full((48, 48, 3), 90, np.uint8)] * sum(LENGTHS)
    write_video(next((filmed / "videos").rglob("*wrist*")) / "chunk-000/file-000.mp4", tall)
    message = r"episode 0, row 0: cameras differ in height \(\S*top: 32 x 48, \S*wrist: 48 x 48\)"
    with pytest.raises(ValueError, match=message):
        import_lerobot(filmed, tmp_path / "cameras")
    import_lerobot(filmed, tmp_path / "even", size=(16, 16))
    assert EpisodeDataset(tmp_path / "even").frames(0)[0].shape == (16, 32, 3)


def lose_frame(folder):
    """Both films lack the frame at 0.3 s, the fourth of the first episode."""
    for number, path in enumerate(sorted((folder / "videos").rglob("*.mp4"))):
        frames = [picture(e, t, number) for e, n in enumerate(LENGTHS) for t in range(n)]
        times = [place for place in range(len(frames)) if place != 3]
        write_video(path, [frames[place] for place in times], times=times)


def test_a_film_that_lacks_a_frame_never_shifts_the_others(filmed, tmp_path):
    lose_frame(filmed)
    with pytest.raises(ValueError, match=r"episode 0: .*has no frame for row 3, at 0.300 s"):
        import_lerobot(filmed, tmp_path / "data")
    reader = LeRobotReader(filmed)
    shown = [decode_png(s.frame).astype(int) for s in reader.record(1).segments if s.frame]
    views = [[picture(1, t, camera) for t in range(LENGTHS[1])] for camera in (0, 1)]
    assert abs(np.stack(shown) - np.concatenate(views, axis=2)).max() <= 8


@pytest.mark.parametrize(
    ("times", "row", "step"),
    [
        ([0, 0.02, 0.2, 0.3, 0.4, 0.5, 0.6], 1, "0.020"),
        ([0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2], 1, "0.200"),
        ([0, 0.1, 0.5, 0.6, 0.7, 0.8, 0.9], 2, "0.400"),
    ],
)
@pytest.mark.parametrize("kind", ["filmed", "pictured"])
def test_rows_that_are_not_a_frame_apart_are_refused(kind, times, row, step, request, tmp_path):
    folder = request.getfixturevalue(kind)
    path = sorted((folder / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    count = table.num_rows - len(times)
    values = pa.array([*times, *(place / FPS for place in range(count))])
    place = table.column_names.index("timestamp")
    pq.write_table(table.set_column(place, "timestamp", values), path)
    with pytest.raises(ValueError, match=rf"episode 0, row {row} comes {step} s after the one"):
        import_lerobot(folder, tmp_path / "data")


def set_column(name, values):
    def edit(table):
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return edit


def test_a_task_that_changes_within_an_episode_is_told_at_its_row(filmed, tmp_path):
    edit_rows(filmed, set_column("task_index", [0, 0, 0, 1, 1, 1, 1, *[1] * 5]))
    import_lerobot(filmed, tmp_path / "data")
    first, second = EpisodeDataset(tmp_path / "data")
    assert (first.task, second.task) == ("push it", "pull it")
    told = {
        place: [(w.role, w.text) for w in said] for place, said in enumerate(first.said) if said
    }
    assert told == {3: [("task", "pull it")]}
    assert not any(second.said)
    import_lerobot(filmed, tmp_path / "slower", fps=5)
    slower = EpisodeDataset(tmp_path / "slower")[0]
    assert [[w.text for w in said] for said in slower.said] == [[], [], ["pull it"], []]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([0, 0, 0, 1, 0, 0, 0], [[], [], [], []]),  # gone again before a frame is shown
        ([1, 1, 1, 2, 0, 0, 0], [[], [], ["push it"], []]),
        ([0, 0, 0, 2, 1, 1, 1], [[], [], ["pull it"], []]),
        ([0, 1, 1, 1, 1, 1, 2], [[], ["pull it"], [], ["wait"]]),
    ],
)
def test_of_tasks_that_change_between_two_frames_the_last_is_told(changes, told, filmed, tmp_path):
    names = pandas.Index(["push it", "pull it", "wait"], name="task")
    frame = pandas.DataFrame({"task_index": [0, 1, 2]}, index=names)
    frame.to_parquet(filmed / "meta/tasks.parquet")
    edit_rows(filmed, set_column("task_index", [*changes, *[1] * 5]))
    import_lerobot(filmed, tmp_path / "slower", fps=5)
    slower = EpisodeDataset(tmp_path / "slower")[0]
    assert [[w.text for w in said] for said in slower.said] == told


def test_integers_below_zero_come_in_as_the_datasets_own_numbers(filmed, tmp_path):
    edit_rows(filmed, set_column("action", [-1, 0, 1, 1, 0, -1, 0, 1, 1, -1, 0, 0]))
    import_lerobot(filmed, tmp_path / "data")
    space = ActionSpace.from_config(tmp_path / "data" / "action_space.json")
    dataset = EpisodeDataset(tmp_path / "data")
    assert [space.to_environment(a) for a in dataset[0].actions] == [-1, 0, 1, 1, 0, -1]
    assert [space.to_environment(a) for a in dataset[1].actions] == [1, 1, -1, 0]
    export_lerobot(tmp_path / "data", tmp_path / "out")
    column = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")["action"]
    assert column.to_pylist() == [-1, 0, 1, 1, 0, -1, -1, 1, 1, -1, 0, 0]


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
    bare = tmp_path / "bare"
    shutil.copytree(babyai_folder, bare)
    (bare / "action_space.json").unlink()
    assert prepare(["export-lerobot", "--data", str(bare), "--out", out]) == 2
    assert "has no action_space.json, which says how" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    command = ["export-lerobot", "--data", str(babyai_folder), "--out", out]
    assert prepare([*command, "--actions", str(BABYAI)]) == 0
    assert prepare(["lerobot", "--folder", out, "--out", back]) == 0
    assert "16 episodes" in capsys.readouterr().out
    assert prepare([*command, "--actions", str(BABYAI), "--fps", "5"]) == 2
    assert "was begun with" in capsys.readouterr().err


def test_an_export_that_was_cut_off_is_no_dataset_and_goes_on(babyai_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_export, "EPISODES_PER_FILE", 6)
    export_lerobot(babyai_folder, tmp_path / "whole", actions=BABYAI)
    pngs, out = EpisodeDataset.pngs, tmp_path / "out"

    def cut_off(self, index):
        if index == 8:
            raise KeyboardInterrupt
        return pngs(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeDataset, "pngs", cut_off)
        with pytest.raises(KeyboardInterrupt):
            export_lerobot(babyai_folder, out, actions=BABYAI)
    with pytest.raises(ValueError, match=r"info.json does not exist"):
        LeRobotReader(out)
    first = out / "data/chunk-000/file-000.parquet"
    written = first.stat().st_mtime_ns
    export_lerobot(babyai_folder, out, actions=BABYAI)
    assert first.stat().st_mtime_ns == written
    for path in (tmp_path / "whole").rglob("*.*"):
        other = out / path.relative_to(tmp_path / "whole")
        if path.suffix == ".parquet":
            assert pq.read_table(path).equals(pq.read_table(other))
        else:
            assert path.read_text() == other.read_text()
