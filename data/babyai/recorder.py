"""Episodes of one level: the real environment, who acts in it, and words from the true state."""

import contextlib
import io
import math
import zlib
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from data.babyai.behaviours import Handler, Wanderer, random_action
from data.babyai.events import happen
from data.babyai.expert import Expert
from data.babyai.levels import CLUTTER, WORKSHOP
from data.babyai.questions import Witness, ask
from data.babyai.views import ACTIONS, render_view
from data.babyai.words import caption_of
from data.episode import EpisodeRecord, SegmentRecord, encode_png

BEHAVIOURS = {"expert": 0.45, "noisy": 0.25, "random": 0.05, "handle": 0.25}
"""Who acts in an episode, with its share; our own levels have behaviours of their own."""
EVALUATION_SEEDS = 1_000_000
"""Environment seeds from here on are never trained on."""
MAX_STEPS = {"noisy": 24, "random": 20, "wander": 24, "handle": 24}
"""Most steps of an episode; the expert has what its level allows."""
NOISE_RANGE = (0.1, 0.5)
THOUGHT_SHARE = 0.6
CAPTION_SHARE = 0.5
QUESTION_SHARE = 0.2
"""Frames after which the task asks something."""
EVENT_SHARE = 0.25
"""Steps after which the world does something by itself; never in the bot's way."""


@dataclass
class Recorder:
    """Records episodes of one BabyAI level.

    Args:
        level: For example "GoToRedBall" (minigrid's "BabyAI-GoToRedBall-v0").
    """

    level: str

    def __post_init__(self) -> None:
        name = f"BabyAI-{self.level}-v0"
        if name not in gymnasium.registry:
            known = sorted(key[7:-3] for key in gymnasium.registry if key.startswith("BabyAI-"))
            raise ValueError(f"level {self.level!r} is unknown; use one of {', '.join(known)}")
        self.env: Any = gymnasium.make(name, disable_env_checker=True).unwrapped

    def record(self, seed: int) -> EpisodeRecord:
        """Record the episode of an environment seed: the same for the same level and seed."""
        # The environment prints when it rejects a random layout.
        with contextlib.redirect_stdout(io.StringIO()):
            view = self.env.reset(seed=seed)[0]["image"]
        rng = np.random.default_rng([seed, zlib.crc32(self.level.encode())])
        behaviour = str(rng.choice(list(BEHAVIOURS), p=list(BEHAVIOURS.values())))
        noise = rng.uniform(*NOISE_RANGE) if behaviour == "noisy" else 0.0
        behaviour = {CLUTTER: "wander", WORKSHOP: "handle"}.get(self.level, behaviour)
        actor = {"wander": Wanderer, "handle": Handler}.get(behaviour)
        player = actor(rng) if actor is not None else None
        expert = Expert(self.env)
        witness = Witness(self.env, view)
        segments = [
            SegmentRecord(kind="text", role="task", text=self.env.mission),
            _frame(view, "ongoing", rng),
        ]
        previous = None
        for _ in range(MAX_STEPS.get(behaviour, int(self.env.max_steps))):
            target, thought = (None, None) if player else expert.suggest(view, previous)
            if target is None and behaviour == "expert":
                break
            speaks = rng.random() < THOUGHT_SHARE
            said = [thought] if thought is not None and speaks else []
            asked = ask(witness, rng) if rng.random() < QUESTION_SHARE else None
            if asked is not None:
                _, question, answer = asked
                segments.append(SegmentRecord(kind="text", role="task", text=question))
                said = [answer]
            segments += [SegmentRecord(kind="text", role="agent", text=words) for words in said]
            if player:
                action = player.act(view)
            elif target is None or behaviour == "random" or rng.random() < noise:
                action = random_action(view, rng)
            else:
                action = ACTIONS.index(target)
            before = self.env.agent_pos, self.env.agent_dir
            observation, reward, terminated, truncated, _ = self.env.step(action)
            view = observation["image"]
            ended = terminated or truncated
            # A mission that is fulfilled is rewarded, and nothing else; its time is part of it.
            outcome = "success" if reward > 0 else "failure" if ended else "ongoing"
            segments.append(
                SegmentRecord(
                    kind="action",
                    role="agent",
                    action=ACTIONS[action],
                    target=target,
                    weight=float(target is not None),
                    motion=self._motion(*before),
                )
            )
            event = None
            if (player or behaviour == "random") and not ended and rng.random() < EVENT_SHARE:
                event = happen(self.env, view, rng)
            if event is not None:
                view = self.env.gen_obs()["image"]
                segments.append(SegmentRecord(kind="text", role="world", text=event[1]))
            reason = thought if target == ACTIONS[action] else None
            witness.see(view, ACTIONS[action], reason, is_told=event is not None)
            segments.append(_frame(view, outcome, rng))
            previous = action
            if ended:
                break
        return EpisodeRecord(
            id=f"babyai/{self.level}/{seed}",
            source="babyai",
            level=self.level,
            seed=seed,
            behaviour=behaviour,
            segments=segments,
        )

    def _motion(self, position: Any, direction: int) -> tuple[float, float, float]:
        """Motion since a position and direction: turn, then tiles ahead and to the right."""
        env = self.env
        quarters = (env.agent_dir - direction + 1) % 4 - 1
        moved = np.subtract(env.agent_pos, position)
        return (
            float(quarters * math.pi / 2),
            float(moved @ env.dir_vec),
            float(moved @ env.right_vec),
        )


def _frame(view: np.ndarray, outcome: str, rng: np.random.Generator) -> SegmentRecord:
    caption = caption_of(view) if rng.random() < CAPTION_SHARE else None
    return SegmentRecord(
        kind="frame",
        role="world",
        frame=encode_png(render_view(view)),
        caption=caption,
        outcome=outcome,
    )
