"""Documents of a training row: a part of an episode as the segments that one query teaches."""

from dataclasses import dataclass, replace

import numpy as np

from data.dataset import Episode
from unified.conversation.sequence import Segment, action_segment, frame_segment, text_segment
from unified.roles.agent import DESCRIBE

OPENINGS = ("i see", "you see", "there is", "here is")
"""How the world may begin to say what a frame shows; captions begin with the first."""


def retell(caption: str, rng: np.random.Generator) -> str:
    """A caption as somebody else might say it: other first words, some things left out, any order.

    Args:
        caption: As recorded: "i see", then things and their places, set off by commas.
        rng: Source of randomness.
    """
    things = caption.removeprefix(OPENINGS[0]).strip().split(", ")
    if len(things) > 1 and rng.random() < 0.5:
        kept = rng.choice(len(things), size=int(rng.integers(1, len(things))), replace=False)
        things = [things[i] for i in sorted(kept)]
    if rng.random() < 0.3:
        things = [things[i] for i in rng.permutation(len(things))]
    return f"{rng.choice(OPENINGS)} {', '.join(things)}"


@dataclass(frozen=True, kw_only=True)
class Document:
    """Frames `first` to `last` of an episode, and the words that it opens with.

    Attributes:
        episode: The episode.
        first: Its first frame.
        last: The frame behind its last.
        task: What the agent is told to do; None where it is told nothing.
        is_true_task: Whoever acted was told this task, so that actions and outcomes can be learned.
        opening: What the world says before the first frame.
        action_weight: Loss weight of an action.
        outcome_weight: Loss weight of a frame's marker and outcome.
    """

    episode: Episode
    first: int
    last: int
    task: str | None
    is_true_task: bool
    opening: str | None = None
    action_weight: float = 1.0
    outcome_weight: float = 1.0

    def segments(self, query: str, rng: np.random.Generator) -> list[Segment]:
        """What is said and shown.

        Args:
            query: "policy", "joint", "inverse", "describe" or "imagine".
            rng: Source of randomness.
        """
        if query == "inverse":
            return self._inverse(with_task=self.task is not None and rng.random() < 0.5)
        if query == "describe":
            return self._describe()
        if query == "imagine":
            opening = [] if self.opening is None else [text_segment(self.opening, "world")]
            return [*opening, self._frame(self.first, self.outcome_weight)[-1]]
        return self._policy()

    def _policy(self) -> list[Segment]:
        """The episode as it happened; the expert's action is learned, the taken one is shown.

        Without its task, nobody knows why anything is done or thought: only answers are learned.
        """
        episode = self.episode
        segments = self._task()
        if self.opening is not None:
            segments.append(text_segment(self.opening, "world"))
        for i in range(self.first, self.last):
            segments += self._frame(i, self.outcome_weight)
            said = list(episode.said[i]) if self.is_true_task else _answers(episode.said[i])
            is_cut = i == self.last - 1
            if is_cut and i < len(episode.actions):
                # Who was about to act does not stop after these words.
                while said and said[-1].role == "agent":
                    said.pop()
            segments += said
            if is_cut:
                break
            weight = episode.action_weights[i] if self.is_true_task else 0.0
            segments.append(
                action_segment(
                    episode.actions[i],
                    target=episode.targets[i],
                    weight=weight * self.action_weight,
                    motion=episode.motions[i],
                )
            )
        return segments

    def _inverse(self, *, with_task: bool) -> list[Segment]:
        """Actions unknown when they are taken, and told after the frame that they led to."""
        episode = self.episode
        segments = self._task() if with_task else []
        for i in range(self.first, self.last):
            if i > self.first:
                segments.append(action_segment(None, weight=0.0))
            segments += self._frame(i, self.outcome_weight)
            if segments[-1].outcome is None:  # the agent is asked behind it; it is not learned
                segments[-1] = replace(segments[-1], outcome="ongoing", weight=0.0)
            if i > self.first:
                action, motion = episode.actions[i - 1], episode.motions[i - 1]
                weight = self.action_weight if action is not None else 0.0
                segments.append(
                    action_segment(action, hindsight=True, weight=weight, motion=motion)
                )
        return segments

    def _describe(self) -> list[Segment]:
        """Each captioned frame is described; the actions between are shown, not learned."""
        episode = self.episode
        segments = [text_segment(DESCRIBE, "task", weight=0.0)]
        for i in range(self.first, self.last):
            caption = episode.captions[i]
            # Whoever is asked to speak has the floor, so an ending is left untold (unlearned).
            is_ending = caption is not None and episode.outcomes[i] != "ongoing"
            segments += self._frame(i, 0.0 if is_ending else self.outcome_weight)
            if is_ending:
                segments[-1] = replace(segments[-1], outcome="ongoing")
            if caption:
                segments.append(text_segment(caption))
            if i < self.last - 1:
                motion = episode.motions[i]
                segments.append(action_segment(episode.actions[i], weight=0.0, motion=motion))
        return segments

    def _task(self) -> list[Segment]:
        return [] if self.task is None else [text_segment(self.task, "task", weight=0.0)]

    def _frame(self, i: int, weight: float) -> list[Segment]:
        """Frame i, behind what the world said before it."""
        episode = self.episode
        assert episode.latents is not None
        told = episode.told[i]
        words = [] if told is None else [text_segment(told, "world")]
        outcome = episode.outcomes[i]
        return [*words, frame_segment(latents=episode.latents[i], outcome=outcome, weight=weight)]


def _answers(said: list[Segment]) -> list[Segment]:
    """Of what was said after a frame: questions, and the words right behind them."""
    is_asked = [words.role == "task" and (words.text or "").endswith("?") for words in said]
    return [words for i, words in enumerate(said) if is_asked[i] or (i > 0 and is_asked[i - 1])]
