"""Appends true episodes to a session, and reads its replies."""

import json
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import torch

from eval.game import Moment, Played, Seen
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import (
    Kind,
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.conversation.stream import TokenStream
from unified.modeling import UnifiedModel
from unified.roles.agent import Agent
from unified.sampling.generation import Generation, Session

BATCH = 64
"""Frames that are described in one call."""


class Player:
    """The model as a player: tells episodes to a session, in latents, and reads its replies."""

    def __init__(self, model: UnifiedModel, processor: UnifiedProcessor):
        """Keeps model and processor."""
        self.model = model
        self.processor = processor

    def stream(self, *segments: Segment) -> TokenStream:
        """Segments as tokens."""
        return self.processor.stream(Sequence(list(segments)))

    def encode(self, views: Rows[Seen]) -> list[Segment]:
        """Views as frame segments that hold latents and the outcome."""
        latents = self.processor.encode_pixels(np.stack([view.frame for view in views]))
        return [
            frame_segment(latents=z, outcome=view.outcome)
            for z, view in zip(latents, views, strict=True)
        ]

    def start(self, episodes: Rows[Played], seed: int) -> Session:
        """A session that begins with the tasks and the first frames."""
        frames = self.encode([episode.views[0] for episode in episodes])
        tasks = [[text_segment(e.task, "task")] if e.task else [] for e in episodes]
        inputs = self.processor.encode(
            [Sequence([*task, frame]) for task, frame in zip(tasks, frames, strict=True)]
        )
        generators = [torch.Generator().manual_seed(seed + e.seed) for e in episodes]
        return self.model.start(**inputs, generator=generators)

    def begin(self, episodes: Rows[Played], seed: int) -> "ModelGame":
        """A game that knows the tasks and the first frames."""
        return ModelGame(self, self.start(episodes, seed))

    def code(self, frames: np.ndarray) -> np.ndarray:
        """Frames as they come back from the codec."""
        return self.processor.decode_latents(self.processor.encode_pixels(frames))

    def describe(self, frames: Rows[np.ndarray]) -> list[str]:
        """Each frame in words."""
        agent = Agent(self.model, self.processor)
        words: list[str] = []
        for start in range(0, len(frames), BATCH):
            words += agent.describe(list(frames[start : start + BATCH]))
        return words

    def hindsight(self, action: Segment) -> TokenStream:
        """An action named in hindsight: the tokens that follow a frame that was appended."""
        ids = self.processor.ids["inverse"], *self.processor.action_ids(action.action)
        tokens = torch.tensor(ids)
        return TokenStream(
            input_ids=tokens,
            targets=tokens,
            weights=torch.zeros(len(ids)),
            latents=torch.zeros(0, 0, 0),
            frame_weights=torch.zeros(0),
            motions=torch.full((len(ids), 3), torch.nan),
        )

    def replies(self, generation: Generation) -> list[list[Segment]]:
        """What a run added to each row."""
        config = self.model.config
        return [self.processor.segments(ids, z, config) for ids, z in generation.rows()]

    def pixels(self, frames: list[Segment]) -> np.ndarray:
        """FRAME segments as `(N, H, W, 3)` uint8."""
        return self.processor.decode_latents(
            torch.stack([torch.as_tensor(f.latents) for f in frames])
        )


class ModelGame:
    """Episodes under way in a session of the model."""

    def __init__(self, player: Player, session: Session):
        """Goes on from where the session stands."""
        self.player = player
        self.session = session

    def tell(self, moments: Rows[Moment]) -> None:
        """Says what truly followed in each row."""
        frames = self.player.encode(moments)
        turns = zip(moments, frames, strict=True)
        self.session.append(
            [self.player.stream(action_segment(moment.action), frame) for moment, frame in turns]
        )

    def draw(
        self, actions: Rows[str | None], num_inference_steps: int | None = None
    ) -> list[Moment]:
        """The frame that each action leads to."""
        self.session.append([self.player.stream(action_segment(action)) for action in actions])
        run = self.session.run("forward", num_inference_steps=num_inference_steps)
        frames = first_frames(self.player.replies(run))
        drawn = zip(self.player.pixels(frames), actions, frames, strict=True)
        return [Moment(pixels, action, str(frame.outcome)) for pixels, action, frame in drawn]

    def name(self, moments: Rows[Moment]) -> list[str]:
        """Which action led to each of these."""
        frames = self.player.encode(moments)
        self.session.append([self.player.stream(action_segment(None), f) for f in frames])
        replies = self.player.replies(self.session.fork().run("inverse"))
        return [_written(reply[-1].action) for reply in replies]

    def reveal(self, actions: Rows[str | None]) -> None:
        """Says which actions it was."""
        self.session.append(
            [
                None if action is None else self.player.hindsight(action_segment(action))
                for action in actions
            ]
        )

    def choose(self) -> list[str]:
        """What to do now; the likeliest action."""
        replies = self.player.replies(self.session.fork().run("policy", think=False))
        acted = [[s.action for s in reply if s.kind is Kind.ACTION] for reply in replies]
        return [_written(actions[0]) if actions else "" for actions in acted]

    def imagine(
        self, max_turns: int, temperature: float, num_inference_steps: int | None = None
    ) -> list[list[Moment]]:
        """Actions and frames of its own."""
        run = self.session.run(
            "joint",
            max_turns=max_turns,
            temperature=temperature,
            num_inference_steps=num_inference_steps,
        )
        rows = []
        for reply in self.player.replies(run):
            actions = [s for s in reply if s.kind is Kind.ACTION]
            frames = [s for s in reply if s.kind is Kind.FRAME]
            pixels = list(self.player.pixels(frames)) if frames else []
            turns = zip(pixels, actions, frames, strict=False)
            rows.append([Moment(p, str(a.action), str(f.outcome)) for p, a, f in turns])
        return rows

    def fork(self, rows: list[int] | None = None) -> "ModelGame":
        """A copy of these rows."""
        return ModelGame(self.player, self.session.fork(rows))


def _written(action: Any) -> str:
    """An action as a file holds it: a name, or JSON."""
    return action if isinstance(action, str) else json.dumps(action)


def first_frames(replies: list[list[Segment]]) -> list[Segment]:
    """The first frame of each reply."""
    return [next(s for s in reply if s.kind is Kind.FRAME) for reply in replies]
