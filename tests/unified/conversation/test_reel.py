import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from unified.conversation.reel import Reel


def picture(value):
    return np.full((56, 56, 3), value, np.uint8)


def world(value):
    frame = {"type": "frame", "frame": Image.fromarray(picture(value))}
    return {"role": "world", "content": [frame, {"type": "outcome", "outcome": "ongoing"}]}


def agent(action, words=None):
    said = [] if words is None else [{"type": "text", "text": words}]
    return {"role": "agent", "content": [*said, {"type": "action", "action": action}]}


DREAM = [agent("left"), world(60), agent("right", "go on"), world(200), agent("done")]


def test_words_and_actions_stand_under_the_frame_that_they_answer():
    reel = Reel.of(DREAM)
    assert reel.lead == ["left"]
    lines = [["ongoing", "go on", "right"], ["ongoing", "done"]]
    assert [shot.lines for shot in reel.shots] == lines


def test_a_sheet_shows_every_frame_with_its_pixels_repeated():
    sheet = np.asarray(Reel.of(DREAM).sheet(scale=2))
    for value in (60, 200):
        is_shown = (sheet == value).all(-1)  # here and there in the letters, too
        rows, columns = (np.flatnonzero(is_shown.sum(axis) >= 112) for axis in (1, 0))
        assert (len(rows), len(columns)) == (112, 112)
        assert is_shown[np.ix_(rows, columns)].all()
    assert Reel.of(DREAM).sheet(columns=1).size[1] > sheet.shape[0]


def test_a_gif_has_the_frames_in_order():
    image = Image.open(io.BytesIO(Reel.of(DREAM).gif(fps=10)))
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    assert [int(frame[0, 0, 0]) for frame in frames] == [60, 200]
    assert image.info["duration"] == 100


def test_an_mp4_has_the_frames_in_order(tmp_path):
    av = pytest.importorskip("av")
    path = Reel.of(DREAM).save(tmp_path / "dream.mp4")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [abs(int(f.mean()) - v) <= 4 for f, v in zip(frames, (60, 200), strict=True)]


def test_a_name_chooses_the_format(tmp_path):
    with Image.open(Reel.of(DREAM).save(tmp_path / "a.png")) as image:
        assert image.size == Reel.of(DREAM).sheet().size
    with pytest.raises(ValueError, match=r"a.webm ends in none of .gif, .mp4, .png"):
        Reel.of(DREAM).save(tmp_path / "a.webm")
    with pytest.raises(ValueError, match="hold no frame to show; ask 'forward'"):
        Reel.of(DREAM[:1])
    with pytest.raises(ValueError, match="fps=0 must be above 0"):
        Reel.of(DREAM).gif(fps=0)
