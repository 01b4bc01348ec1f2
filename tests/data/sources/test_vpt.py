"""Keyboard, mouse and video become episodes; what was pressed at a frame leads to the next one."""

import json
import re

import numpy as np
import pytest

from data.dataset import EpisodeDataset
from data.sources.vpt import import_vpt, read_recording
from tests.data.preparing import prepare
from tests.data.sources.test_lerobot import write_video
from unified.media.action_space import ActionSpace
from unified.media.actions import KeyboardMouseActions

COUNT = 9


def picture(step):
    frame = np.full((32, 48, 3), 40, np.uint8)
    frame[:, 4 * step : 4 * step + 8] = (220, 120, 60)
    return frame


def line(step, **changes):
    mouse = {"dx": 2.0 * step, "dy": -1.0, "buttons": [], "newButtons": []}
    keys = ["key.keyboard.w"] if step % 2 else ["key.keyboard.left.shift"]
    content = {"mouse": mouse, "keyboard": {"keys": keys, "newKeys": []}, "hotbar": 0}
    mouse.update(changes.pop("mouse", {}))
    return {**content, **changes}


@pytest.fixture
def folder(tmp_path):
    """Two recordings of nine frames."""
    for name in ("a", "b"):
        write_video(tmp_path / "vpt" / f"{name}.mp4", map(picture, range(COUNT)), rate=20)
        save_lines(tmp_path / "vpt" / f"{name}.jsonl", [line(t) for t in range(COUNT)])
    return tmp_path / "vpt"


def save_lines(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)))


def test_what_was_pressed_at_a_frame_leads_to_the_next(folder, tmp_path):
    import_vpt(folder, tmp_path / "data", task="chop a tree", frames=5)
    dataset = EpisodeDataset(tmp_path / "data")
    assert len(dataset) == 4
    assert dataset.lengths.tolist() == [5, 5, 5, 5]
    for index in range(4):
        start = 4 * (index % 2)
        frames = np.stack(dataset.frames(index)).astype(int)
        expected = np.stack([picture(t) for t in range(start, start + 5)])
        assert abs(frames - expected).max() <= 8
        actions = [json.loads(str(action)) for action in dataset[index].actions]
        assert [a["mouse"] for a in actions] == [[2.0 * t, -1.0] for t in range(start, start + 4)]
        keys = [["w"] if t % 2 else ["left.shift"] for t in range(start, start + 4)]
        assert [a["keys"] for a in actions] == keys
        assert dataset[index].task == "chop a tree"
    space = ActionSpace.from_config(tmp_path / "data" / "action_space.json")
    assert isinstance(space, KeyboardMouseActions)
    assert space.keys == ("left.shift", "w")
    back = space.decode(space.encode(dataset[0].actions[1]))
    assert back["keys"] == ["w"]
    assert abs(back["mouse"][0] - 2.0) <= space.resolution[0]


def test_an_attack_that_was_held_before_the_recording_began_is_not_believed(folder):
    mice = [{"buttons": [0]}, {"buttons": [0]}, {"buttons": []}, {"buttons": [0]}]
    mice += [{"buttons": [0], "newButtons": [0]}]
    save_lines(folder / "a.jsonl", [line(t, mouse=m) for t, m in enumerate(mice)])
    attacks = ["mouse.0" in a["keys"] for a in read_recording(folder / "a.mp4").actions]
    assert attacks == [False, False, False, True, True]
    mice = [{"buttons": [0]}, {"buttons": [0]}, {"buttons": [0], "newButtons": [0]}]
    save_lines(folder / "a.jsonl", [line(t, mouse=m) for t, m in enumerate(mice)])
    attacks = ["mouse.0" in a["keys"] for a in read_recording(folder / "a.mp4").actions]
    assert attacks == [False, False, True]


def test_a_turn_of_the_wheel_counts_as_the_key_of_its_slot(folder):
    save_lines(folder / "a.jsonl", [line(0, hotbar=0), line(1, hotbar=3), line(2, hotbar=3)])
    keys = [a["keys"] for a in read_recording(folder / "a.mp4").actions]
    assert keys == [["left.shift"], ["4", "w"], ["left.shift"]]


def test_one_slip_of_the_mouse_does_not_take_all_bins(folder, tmp_path, capsys):
    moved = [0.4, 1.0, 3.0, 0.8, 2.0, 1.2, 0.6, 2.5, -180.0]
    for name in ("a", "b"):
        lines = [line(t, mouse={"dx": x, "dy": x / 10}) for t, x in enumerate(moved)]
        if name == "a":
            lines[8]["mouse"] |= {"dx": 0.4, "dy": 0.1}
        save_lines(folder / f"{name}.jsonl", [*lines[1:], lines[0]])
    import_vpt(folder, tmp_path / "data")
    report = capsys.readouterr().out
    assert re.search(
        r"right within 0.\d+ of 3, 1 of 18 movements clipped to it \(farthest 180\)", report
    )
    assert re.search(r"down within 0.\d+ of 0.3, 1 of 18 movements clipped to it", report)
    space = ActionSpace.from_config(tmp_path / "data" / "action_space.json")
    assert isinstance(space, KeyboardMouseActions)
    assert space.mouse[0] == 3.0
    for episode in EpisodeDataset(tmp_path / "data"):
        told = [json.loads(str(action))["mouse"] for action in episode.actions]
        back = [space.decode(space.encode(action))["mouse"] for action in episode.actions]
        assert (np.abs(np.array(back) - told) <= space.resolution + 1e-9).all()
        assert [pair[0] for pair in told][:7] == moved[1:8]
        assert any(back_x != 0 for back_x, _ in back)
    import_vpt(folder, tmp_path / "given", mouse=(200, 20))
    given = ActionSpace.from_config(tmp_path / "given" / "action_space.json")
    assert isinstance(given, KeyboardMouseActions)
    assert given.mouse == (200.0, 20.0)


def test_a_film_that_lacks_a_frame_is_refused(folder, tmp_path):
    left = [t for t in range(COUNT) if t != 4]
    write_video(folder / "b.mp4", map(picture, left), rate=20, times=left)
    save_lines(folder / "b.jsonl", [line(t) for t in left])
    with pytest.raises(ValueError, match=r"b.mp4: frame 4 comes 0.100 s after .* a frame was lost"):
        import_vpt(folder, tmp_path / "data")


def test_recordings_of_one_name_in_two_folders_stay_two(folder, tmp_path):
    (folder / "again").mkdir()
    for ending in ("mp4", "jsonl"):
        (folder / f"a.{ending}").rename(folder / "again" / f"b.{ending}")
    import_vpt(folder, tmp_path / "data")
    assert [episode.id for episode in EpisodeDataset(tmp_path / "data")] == ["again/b/0", "b/0"]


def spoil_line(folder):
    path = folder / "b.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{", *lines[4:]]))


def spoil_mouse(folder):
    lines = [line(t) for t in range(COUNT)]
    lines[5]["mouse"]["dx"] = float("nan")
    save_lines(folder / "b.jsonl", lines)


def spoil_keys(folder):
    save_lines(folder / "b.jsonl", [{"mouse": {"dx": 0, "dy": 0, "buttons": []}}] * COUNT)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "b.jsonl").unlink(), "b.jsonl is missing; every mp4 needs"),
        (spoil_line, r"b.jsonl:4: not JSON"),
        (spoil_keys, r"b.jsonl:1: KeyError 'keyboard'"),
        (spoil_mouse, r"b.jsonl:6: NaN is no number; .*mend them"),
        (
            lambda f: save_lines(f / "b.jsonl", [line(t) for t in range(COUNT - 1)]),
            "has more than 8 frames, its jsonl 8 lines",
        ),
        (
            lambda f: save_lines(f / "b.jsonl", [line(t) for t in range(COUNT + 2)]),
            "has 9 frames, its jsonl 11 lines",
        ),
        (lambda f: (f / "b.mp4").write_bytes(b"no video"), "b.mp4 cannot be decoded"),
        (
            lambda f: write_video(f / "b.mp4", map(picture, range(COUNT)), rate=30),
            "30 frames a second, the dataset says 20",
        ),
    ],
)
def test_a_broken_recording_is_refused_by_name(spoil, message, folder, tmp_path):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        import_vpt(folder, tmp_path / "data")
    with pytest.raises(ValueError, match=r"not complete|does not exist"):
        EpisodeDataset(tmp_path / "data")


def test_the_command_line_takes_recordings_in(folder, tmp_path, capsys):
    command = [
        "vpt",
        "--folder",
        str(folder),
        "--out",
        str(tmp_path / "data"),
        "--size",
        "16",
        "24",
    ]
    assert prepare(command) == 0
    assert "2 recordings, 18 frames; keys: left.shift, w" in capsys.readouterr().out
    assert EpisodeDataset(tmp_path / "data").frames(0)[0].shape == (16, 24, 3)
    assert prepare(["vpt", "--folder", str(tmp_path / "data"), "--out", str(tmp_path / "x")]) == 2
    assert "has no mp4" in capsys.readouterr().err
