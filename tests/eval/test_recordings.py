"""Recordings are evaluated without an environment: who is right is told, and what is seen."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from data.record import RecordArguments, record
from data.split import HELD_OUT_FOLDER, split_folder
from eval.comparison import (
    Comparison,
    Recording,
    compare_actions,
    compare_next,
    compare_rollouts,
    label,
)
from eval.game import Moment
from eval.recordings import RecordingsArguments, evaluate
from tests.unified.parts import babyai_parts
from unified.media.actions import ActionSpace, ContinuousActions, NamedActions

DOT = "tests.data.dot:Dot-v0"
SPACE = NamedActions("toy", ["left", "right"])


def walk(seed, actions):
    """A bright column that goes left or right, wherever the actions lead."""
    place, views = 8, []
    for action in [None, *actions]:
        place += {"left": -1, "right": 1}.get(action, 0)
        frame = np.zeros((16, 16, 3), np.uint8)
        frame[:, place % 16] = 255
        views.append(Moment(frame, action, "ongoing"))
    return Recording("walk", seed, views, list(actions))


class Knows:
    """A player that draws, names and chooses what truly came, or what `wrong` makes of it."""

    def __init__(self, wrong=False):
        self.wrong = wrong

    def begin(self, episodes, seed):
        return KnowsGame([(episode, 0) for episode in episodes], self.wrong)

    def code(self, frames):
        return frames


class KnowsGame:
    def __init__(self, rows, wrong):
        self.rows, self.wrong = rows, wrong

    def _next(self):
        return [episode.views[at + 1] for episode, at in self.rows]

    def _go_on(self):
        self.rows = [(episode, at + 1) for episode, at in self.rows]

    def tell(self, moments):
        assert all((a.frame == b.frame).all() for a, b in zip(moments, self._next(), strict=True))
        self._go_on()

    def draw(self, actions, num_inference_steps=None):
        views = self._next()
        self._go_on()
        if self.wrong:
            return [Moment(255 - view.frame, view.action, "success") for view in views]
        return [Moment(view.frame, view.action, view.outcome) for view in views]

    def name(self, moments):
        assert all(moment.action is None for moment in moments), "the truth is handed over"
        return self.choose()

    def reveal(self, actions):
        self._go_on()

    def choose(self):
        other = {"left": "right", "right": "left"}
        return [other[v.action] if self.wrong else str(v.action) for v in self._next()]

    def fork(self, rows=None):
        chosen = range(len(self.rows)) if rows is None else rows
        return KnowsGame([self.rows[row] for row in chosen], self.wrong)


RECORDINGS = [
    walk(0, ["left", "right", "right", "left", "right"]),
    walk(1, ["right", "right", "left"]),
    walk(2, ["right"] * 7),
]


@pytest.mark.parametrize(("wrong", "share"), [(False, 1.0), (True, 0.0)])
def test_who_knows_everything_has_full_marks_and_who_is_always_wrong_none(wrong, share):
    report = Comparison()
    compare_next(Knows(wrong), RECORDINGS, report, 1, 0)  # pyright: ignore[reportArgumentType]
    compare_rollouts(
        Knows(wrong),  # pyright: ignore[reportArgumentType]
        RECORDINGS,
        report,
        context_frames=2,
        horizon=4,
        num_inference_steps=1,
        seed=0,  # pyright: ignore[reportArgumentType]
    )
    compare_actions(Knows(wrong), RECORDINGS, report, SPACE, 0)  # pyright: ignore[reportArgumentType]
    found = report.estimates()
    for name in ("inverse", "policy", "outcome"):
        assert found[f"{name}/model/exact"].value == share
        assert found[f"{name}/model/balanced"].value == share
    best = found["next/codec/psnr"].value
    assert best == 60.0
    for figure in ("next", "rollout/1", "rollout/4"):
        assert (found[f"{figure}/model/psnr"].value == best) != wrong
        assert (found[f"{figure}/model/differing"].value == best) != wrong
    assert len(report.inverse.truth) == sum(len(r.views) - 1 for r in RECORDINGS)
    right = [a for r in RECORDINGS for a in r.targets].count("right") / len(report.policy.truth)
    assert found["policy/commonest/exact"].value == right


def test_a_rollout_is_of_the_same_episodes_at_all_frames():
    report = Comparison()
    compare_rollouts(
        Knows(),  # pyright: ignore[reportArgumentType]
        RECORDINGS,
        report,
        context_frames=2,
        horizon=4,
        num_inference_steps=1,
        seed=0,  # pyright: ignore[reportArgumentType]
    )
    for h in range(1, 5):
        assert len(report.quality[f"rollout/{h}/model/psnr"]) == 2
    assert [rollout.actions[0] for rollout in report.rollouts] == ["given", "given"]


def test_actions_that_are_not_learned_or_not_known_are_not_counted():
    told = walk(0, ["left", "right", "left"])
    first = told.views[:2]
    report = Comparison()
    compare_actions(Knows(), [Recording(None, 0, first, [None])], report, SPACE, 0)  # pyright: ignore[reportArgumentType]
    assert report.policy.truth == []
    assert report.inverse.truth == ["left"]
    unknown = [told.views[0], Moment(told.views[1].frame, None, "None")]
    compare_actions(Knows(), [Recording(None, 0, unknown, [None])], report, SPACE, 0)  # pyright: ignore[reportArgumentType]
    assert report.inverse.truth == ["left"]
    still = [told.views[0], Moment(told.views[0].frame, "left", "ongoing")]
    report = Comparison()
    compare_actions(Knows(), [Recording(None, 0, still, ["left"])], report, SPACE, 0)  # pyright: ignore[reportArgumentType]
    assert report.inverse.truth == []  # nobody can tell what changed nothing
    assert report.policy.truth == ["left"]


def test_numbers_agree_when_they_fall_into_one_bin():
    space = ContinuousActions.between("arm", ["x"], [-1.0], [1.0], bins=4)
    assert label(space, "[0.1]") == label(space, [0.4]) != label(space, "[0.6]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Episodes of the dot, split, and a random model that has its actions."""
    folder = tmp_path_factory.mktemp("dot")
    record(
        RecordArguments(
            env=DOT,
            out=folder / "all",
            policy="tests.data.dot:go_right",
            episodes=8,
            max_steps=9,
            outcome="info:won",
        )
    )
    split_folder(folder / "all", folder / "data", held_out=0.4)
    model, processor = babyai_parts()
    processor = processor.with_action_space(
        ActionSpace.from_config(folder / "all" / "action_space.json")
    )
    model.adopt(processor)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


def arguments(folder, out, **changes):
    options = {
        "model": str(folder / "model"),
        "data": folder / "data" / HELD_OUT_FOLDER,
        "out": out,
        "episodes": 2,
        "context_frames": 1,
        "horizon": 2,
        "num_inference_steps": 1,
    }
    return RecordingsArguments(**{**options, **changes})


def test_held_out_recordings_give_figures_pictures_a_video_and_a_page(folder, tmp_path):
    evaluate(arguments(folder, tmp_path))
    figures = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert {
        "next/model/psnr",
        "next/repeat/differing",
        "rollout/2/codec/ssim",
        "inverse/model/balanced",
        "policy/commonest/exact",
    } <= set(figures)
    page = (tmp_path / "index.html").read_text()
    for words in ("<svg", "<video", "recorded", "wrong by", "PSNR where frames differ"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")
    with Image.open(tmp_path / "frames.png") as sheet:
        assert min(sheet.size) > 96
    with av.open(str(tmp_path / "rollouts.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) % 3 == 0  # the last given frame and two more, of each
    assert frames[0].shape[1] == 2 * frames[0].shape[0]


def test_recordings_that_do_not_fit_are_refused_in_the_users_words(folder, tmp_path):
    with pytest.raises(ValueError, match="no episode has the 64 frames of a rollout"):
        evaluate(arguments(folder, tmp_path, horizon=63))
    with pytest.raises(ValueError, match="episodes=0 must be at least 1"):
        evaluate(arguments(folder, tmp_path, episodes=0))
    with pytest.raises(ValueError, match="device 'nosuch' cannot be used"):
        evaluate(arguments(folder, tmp_path, device="nosuch"))
    assert not (tmp_path / "report.json").exists()
