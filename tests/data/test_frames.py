"""What stands in a data folder as a frame is a picture, whoever recorded it."""

import numpy as np
import pytest

from data.dataset import EpisodeDataset
from data.episode import EpisodeRecord, SegmentRecord, encode_png
from data.frames import check_pictures, is_blank_end
from data.record import RecordArguments, record
from data.sources.gymnasium import GymnasiumRecorder
from tests.data.dot import SIDE
from unified.files import path_inside

DARK, DOT = np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE, 3), 20, np.uint8)
DOT[8:16, 8:16] = (250, 60, 60)


def episode(*frames):
    shown = [SegmentRecord(kind="frame", role="world", frame=encode_png(f)) for f in frames]
    act = SegmentRecord(kind="action", role="agent")
    segments = [part for frame in shown for part in (frame, act)][:-1]
    return EpisodeRecord(
        id="a/3", source="x", level="x", seed=-1, behaviour="recorded", segments=segments
    )


def test_a_grid_of_codes_is_no_picture_and_the_wrapper_is_named(tmp_path):
    codes = np.zeros((7, 7, 3), np.uint8)
    with pytest.raises(ValueError, match=r"'a/3', frame 1 is 7 x 7 .*RGBImgPartialObsWrapper"):
        check_pictures(episode(DOT, codes))
    with pytest.raises(ValueError, match=r"15 x 300 pixels, which is no picture"):
        check_pictures(episode(np.full((15, 300, 3), 99, np.uint8)))
    large = np.full((28, 28, 3), 15, np.uint8)
    with pytest.raises(ValueError, match=r"stay below 16 of 255, as codes do"):
        check_pictures(episode(large, large))
    for number, size in enumerate((None, (56, 56))):  # enlarging does not make it a picture
        out = tmp_path / str(number)
        arguments = RecordArguments(env="tests.data.dot:CodeDot-v0", out=out, episodes=1, size=size)
        with pytest.raises(ValueError, match=r"CodeDot-v0 renders is 7 x 7 pixels, .*Wrapper"):
            record(arguments)
    assert not list(tmp_path.rglob("*.parquet"))


def test_frames_of_several_sizes_are_refused_within_an_episode_and_in_a_folder(
    tmp_path, monkeypatch
):
    large = np.full((SIDE + 1, SIDE, 3), 20, np.uint8)
    message = rf"frame 0 is {SIDE} x {SIDE}, episode 'a/3', frame 1 is {SIDE + 1} x {SIDE}\)"
    with pytest.raises(ValueError, match=message):
        check_pictures(episode(DOT, large))
    view = GymnasiumRecorder.view

    def changed(self):
        is_late = self.environment.unwrapped.np_random_seed > 2
        return np.pad(view(self), ((0, int(is_late)), (0, 0), (0, 0)))

    monkeypatch.setattr(GymnasiumRecorder, "view", changed)
    for shard in (1, 5):
        arguments = RecordArguments(
            env="tests.data.dot:Dot-v0",
            out=tmp_path / str(shard),
            episodes=5,
            max_steps=2,
            episodes_per_shard=shard,
        )
        with pytest.raises(ValueError, match=r"frames differ in size \(.*; give --size HEIGHT"):
            record(arguments)
        with pytest.raises(ValueError, match="not complete"):
            EpisodeDataset(tmp_path / str(shard))


def test_a_dark_moment_of_a_bright_episode_is_a_picture():
    check_pictures(episode(DARK, DOT, DARK))
    check_pictures(episode(np.full((16, 16, 3), 16, np.uint8)))


def test_only_an_end_that_shows_nothing_and_breaks_off_is_blank():
    assert is_blank_end(DOT, DARK)
    assert is_blank_end(DOT, np.full_like(DOT, 255))
    assert not is_blank_end(DARK, DARK)
    assert not is_blank_end(DOT, DOT)
    assert not is_blank_end(np.full_like(DOT, 40), DARK)  # a plain world grew dark


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("name", ["DarkDot-v0", "ReusingDot-v0"])  # the second has one array only
def test_a_frame_that_is_rendered_black_after_the_end_is_told_and_may_be_left_out(
    name, keeps, capsys
):
    policy = "tests.data.dot:go_right"
    dark = GymnasiumRecorder(f"tests.data.dot:{name}", policy, keep_last_frame=keeps)
    plain = GymnasiumRecorder("tests.data.dot:Dot-v0", policy)
    frames, real = (
        [s.frame for s in one.record(3).segments if s.frame is not None] for one in (dark, plain)
    )
    dark.record(4)
    assert capsys.readouterr().err.count("renders a blank frame after its end (seed 3)") == 1
    assert frames[:-1] == real[:-1]
    assert frames[-1] == (real[-2] if keeps else encode_png(DARK))


def test_a_path_that_leaves_its_folder_is_refused(tmp_path):
    inside = tmp_path / "mine"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(ValueError, match=r"lies outside of .*--allow-outside"):
            path_inside(inside, inside / name)
        assert path_inside(inside, inside / name, allow_outside=True) == inside / name
    assert path_inside(inside, inside / "a/../b.png") == inside / "a/../b.png"
    with pytest.raises(ValueError, match="is no path"):
        path_inside(inside, inside / "a\0b")
