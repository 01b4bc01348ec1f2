"""Players that know everything, or cheat: what every evaluation must tell apart."""

import contextlib
import io

import numpy as np

from data.babyai.words import caption_of
from eval.babyai.tiles import draw_frame, read_frame, sprites
from eval.babyai.truth import ACTIONS, TrueWorld
from eval.game import Moment

LOOK = {"ongoing": "success", "success": "failure", "failure": "ongoing"}


def wrong_frame(frame):
    """A frame of which no tile is right."""
    return draw_frame((read_frame(frame)[0] + 1) % len(sprites()))


def quiet_reset(world, seed):
    with contextlib.redirect_stdout(io.StringIO()):
        return world.reset(seed)


class Oracle:
    """Plays by the real environment; `spoil` says what is made of each true answer."""

    def begin(self, episodes, seed):
        worlds = [TrueWorld(episode.level) for episode in episodes]
        for world, episode in zip(worlds, episodes, strict=True):
            quiet_reset(world, episode.seed)
        return OracleGame(worlds, self)

    def code(self, frames):
        return frames

    def describe(self, frames):
        return [self.words(frame) for frame in frames]

    # What a cheat changes:

    def frame(self, before, truth):
        return truth.frame

    def outcome(self, truth):
        return truth.outcome

    def action(self, truth):
        return truth

    def words(self, frame):
        from eval.babyai.scripted import symbolic

        return caption_of(symbolic(frame))

    def plan(self, world, dice):
        """What it does in its imagination."""
        return str(dice.choice(["left", "right", "forward"]))


class OracleGame:
    """Rows of real environments."""

    def __init__(self, worlds, player):
        self.worlds, self.player = worlds, player

    def tell(self, moments):
        for world, moment in zip(self.worlds, moments, strict=True):
            world.step(moment.action)

    def draw(self, actions, num_inference_steps=None):
        drawn = []
        for world, action in zip(self.worlds, actions, strict=True):
            before, truth = world.view, world.step(action)
            outcome = self.player.outcome(truth)
            drawn.append(Moment(self.player.frame(before, truth), action, outcome))
        return drawn

    def name(self, moments):
        """Tries every action: which one shows this?"""
        assert all(moment.action is None for moment in moments), "the truth is handed over"
        return [
            self.player.action(self.cause(world, moment.frame))
            for world, moment in zip(self.worlds, moments, strict=True)
        ]

    @staticmethod
    def cause(world, frame):
        moment = world.snapshot()
        for action in ACTIONS:
            world.restore(moment)
            if (world.step(action).frame == frame).all():
                world.restore(moment)
                return action
        world.restore(moment)
        return "done"

    def reveal(self, actions):
        for world, action in zip(self.worlds, actions, strict=True):
            world.step(action)

    def choose(self):
        raise NotImplementedError

    def imagine(self, max_turns, temperature, num_inference_steps=None):
        rows = []
        for row, world in enumerate(self.worlds):
            dice, moments = np.random.default_rng(row), []
            while len(moments) < max_turns and world.view.outcome == "ongoing":
                action = self.player.plan(world, dice)
                before, truth = world.view, world.step(action)
                frame = self.player.frame(before, truth)
                moments.append(Moment(frame, action, self.player.outcome(truth)))
            rows.append(moments)
        return rows

    def fork(self, rows=None):
        chosen = range(len(self.worlds)) if rows is None else rows
        copies = []
        for row in chosen:
            twin = TrueWorld(self.worlds[row].level)
            twin.restore(self.worlds[row].snapshot())
            copies.append(twin)
        return OracleGame(copies, self.player)


class AntiOracle(Oracle):
    """Wrong in everything that it is asked."""

    def code(self, frames):
        return np.stack([wrong_frame(frame) for frame in frames])

    def frame(self, before, truth):
        return wrong_frame(truth.frame)

    def outcome(self, truth):
        return LOOK[truth.outcome]

    def action(self, truth):
        return "left" if truth == "right" else "right"

    def words(self, frame):
        return super().words(frame) + " "  # all but the last letter


class StandsStill(Oracle):
    """Imagines that it drops what it does not carry, and shows the first frame for ever."""

    def frame(self, before, truth):
        return before.frame

    def outcome(self, truth):
        return "ongoing"

    def plan(self, world, dice):
        return "drop"


class Boaster(Oracle):
    """Imagines that everything succeeds at once."""

    def outcome(self, truth):
        return "success"


class EchoGame:
    """Shows the last frame that it knows of, told or drawn, and counts its turns in a corner."""

    def __init__(self, frames):
        self.frames = frames

    def tell(self, moments):
        self.frames = [moment.frame for moment in moments]

    def draw(self, actions, num_inference_steps=None):
        return [Moment(f, a, "ongoing") for f, a in zip(self.frames, actions, strict=True)]

    def fork(self, rows=None):
        chosen = range(len(self.frames)) if rows is None else rows
        return EchoGame([self.frames[row] for row in chosen])


class Echo(Oracle):
    """See `EchoGame`."""

    def begin(self, episodes, seed):  # pyright: ignore[reportIncompatibleMethodOverride]
        return EchoGame([episode.views[0].frame for episode in episodes])


class ScriptOf:
    """An agent that repeats recorded actions, or does nothing."""

    def __init__(self, scripts):
        self.scripts = [list(script) for script in scripts]

    def act(self, observation, task):
        return [script.pop(0) if script else "done" for script in self.scripts]

    def keep(self, rows):
        self.scripts = [self.scripts[row] for row in rows]
