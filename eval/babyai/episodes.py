"""Held-out episodes with their truth: what the environment showed, and what it would have shown."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np

from data.babyai.behaviours import random_action
from data.babyai.recorder import Recorder
from data.babyai.words import caption_of
from eval.babyai.truth import ACTIONS, TrueWorld, View
from eval.seeds import DEVELOPMENT_SEEDS

EVALUATION_SEED = DEVELOPMENT_SEEDS.start
SEARCHED_SEEDS = 20
"""Seeds that are tried for each episode that has to last."""
LEVELS = ("GoToRedBall", "GoToLocal", "PickupLoc", "OpenDoor")


@dataclass(frozen=True)
class TrueEpisode:
    """An episode of the real environment, T actions and T + 1 views.

    Attributes:
        level: Name of the level.
        seed: Environment seed, from `EVALUATION_SEED` up.
        task: The mission in words.
        views: What was seen; `views[t + 1].action` led from view t to view t + 1.
        captions: T + 1 descriptions, from the true state.
    """

    level: str
    seed: int
    task: str
    views: list[View]
    captions: list[str]

    @property
    def name(self) -> str:
        """Level and seed, by which an episode is counted."""
        return f"{self.level}/{self.seed}"

    @property
    def actions(self) -> list[str]:
        """The T actions that were taken."""
        return [view.action for view in self.views[1:] if view.action is not None]


def recorded_episodes(level: str, count: int, first_seed: int) -> list[TrueEpisode]:
    """Episodes of the mixture that training uses (expert, noisy, random), of other seeds."""
    recorder, world = Recorder(level), TrueWorld(level)
    episodes = []
    for seed in range(first_seed, first_seed + count):
        segments = recorder.record(seed).segments
        actions = [s.action for s in segments if s.kind == "action" and s.action is not None]
        episodes.append(_replay(world, seed, actions))
    return episodes


def wandering_episodes(level: str, count: int, first_seed: int, steps: int) -> list[TrueEpisode]:
    """Episodes of random actions, for rollouts that are longer than an expert needs."""
    world = TrueWorld(level)
    return [_wander(world, seed, steps) for seed in range(first_seed, first_seed + count)]


def lasting_episodes(level: str, count: int, first_seed: int, steps: int) -> list[TrueEpisode]:
    """The first `count` wandering episodes from a seed on that last all `steps`.

    Those that end before (random actions may solve the task) are passed over, so that figures at
    all frames of a rollout are of the same episodes.

    Raises:
        ValueError: If hardly any episode lasts so long.
    """
    world = TrueWorld(level)
    found: list[TrueEpisode] = []
    for seed in range(first_seed, first_seed + SEARCHED_SEEDS * count):
        episode = _wander(world, seed, steps)
        if len(episode.views) == steps + 1:
            found.append(episode)
        if len(found) == count:
            return found
    raise ValueError(
        f"only {len(found)} of {SEARCHED_SEEDS * count} episodes of {level} last {steps} steps; "
        "lower horizon"
    )


def _wander(world: TrueWorld, seed: int, steps: int) -> TrueEpisode:
    rng = np.random.default_rng([seed, steps])
    _reset(world, seed)
    actions = []
    for _ in range(steps):
        action = ACTIONS[random_action(world.env.gen_obs()["image"], rng)]
        actions.append(action)
        if world.step(action).outcome != "ongoing":
            break
    return _replay(world, seed, actions)


def _reset(world: TrueWorld, seed: int) -> View:
    with contextlib.redirect_stdout(io.StringIO()):  # the environment prints rejected layouts
        return world.reset(seed)


def _replay(world: TrueWorld, seed: int, actions: list[str]) -> TrueEpisode:
    views = [_reset(world, seed)]
    captions = [caption_of(world.env.gen_obs()["image"])]
    for action in actions:
        views.append(world.step(action))
        captions.append(caption_of(world.env.gen_obs()["image"]))
    return TrueEpisode(world.level, seed, world.mission, views, captions)
