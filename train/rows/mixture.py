"""Training rows drawn from recorded episodes: which query, which frames, which noise.

Row i is a pure function of (seed, i), so a resumed run sees the very rows it would have seen.
"""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.dataset import Episode, EpisodeDataset
from train.rows.documents import Document, retell
from train.rows.recall import Seen, last_seen, places_in_world
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence
from unified.conversation.stream import patchify
from unified.model.flow import NoiseSchedule
from unified.model.plan import TrainingRow, pack, plan_training, span_ranges
from unified.roles.simulation import PROMISE

LONGEST_SKIP = 2000
"""Of time, in tokens."""
MOST_MISSES = 1000
"""Attempts to draw the first document of a row; after these, none is assumed to fit."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Composition of a training row; shares are probabilities per document."""

    levels: tuple[str, ...] | None = None
    """Levels whose episodes are drawn; None is all."""
    num_episodes: int | None = None
    """Only the first so many of their episodes; None is all."""
    row_length: int = 768
    """Tokens of a row; documents are packed into it."""
    policy_share: float = 0.25
    """Episodes with their task, to act in: no frame is noised, so that many fit."""
    joint_share: float = 0.5
    """Episodes with their task, to act in and to draw."""
    inverse_share: float = 0.08
    """Unknown actions that are named in hindsight."""
    describe_share: float = 0.12
    """The agent describes each frame."""
    imagine_share: float = 0.05
    """The world says what a frame shows, then the frame."""
    imagine_draws: int = 3
    """Noisy spans of that frame."""
    task_dropout: float = 0.1
    """Chance that a policy or joint document loses its task (and with it the action loss)."""
    task_swap: float = 0.0
    """Chance that a joint document has another episode's task instead, from which neither actions
    nor outcomes are learned: what the world does must not depend on what somebody wants."""
    promise_share: float = 0.0
    """Chance that a joint document opens with the world's promise that the true task can be done
    here, whatever task is told."""
    caption_share: float = 0.0
    """Chance that a joint document opens with what its first frame shows."""
    skip_share: float = 0.0
    """Chance that time passes before one frame of a joint document, see `plan_training`."""
    max_frames: int | None = None
    """Greatest number of frames of a document; None is as many as fit."""
    span_share: float = 0.5
    """Noisy spans of a joint document, for each of its frames after the first; may exceed 1."""
    recall_weight: float = 0.0
    """How much more a latent weighs in the loss for every frame in which it was out of sight since
    an earlier one showed it, and how much likelier its frame is copied into a span. What the last
    frame still shows is learned long before."""
    reveal_weight: float = 1.0
    """Loss weight of latents that no earlier frame shows. They can only be guessed, and so make up
    most of the loss."""
    change_weight: float = 1.0
    """Least loss weight of latents whose place showed something else when it was last in sight:
    what an action or an event did is one latent of many."""
    event_weight: float = 1.0
    """How much likelier a frame is copied into a span when the world said before it what
    happens."""
    recall_draws: int = 1
    """Number of parts of episodes that are drawn for a joint document. The one with the most to
    recall is used."""
    first_span_share: float = 0.15
    """Probability that the first frame is noised, too: drawing when nothing was seen yet."""
    learn_context: bool = False
    """Whether joint and imagine documents learn to denoise their own noised frames, not copies:
    with `span_share=0` and a `context_share` and `context_max` of 1, Diffusion Forcing."""
    action_weight: float = 4.0
    """Loss weight of an action, beside 1 for a word."""
    outcome_weight: float = 1.0
    """Loss weight of a frame's marker and outcome."""
    noise: NoiseSchedule = field(
        default_factory=lambda: NoiseSchedule(
            pure_noise_share=0.6, shift=2.0, context_share=0.3, context_max=0.15
        )
    )

    def without_world(self) -> "MixtureConfig":
        """The same for a model that hears no words of the world: none of them opens a document."""
        return replace(self, imagine_share=0.0, promise_share=0.0, caption_share=0.0)


class Mixture(Dataset[TrainingRow]):
    """`num_rows` packed rows, drawn from the episodes of a data folder.

    Where the model has no token for words of the world, no document goes past a frame before which
    the world speaks: what it announces could only be a surprise.
    """

    def __init__(
        self,
        episodes: EpisodeDataset,
        processor: UnifiedProcessor,
        config: UnifiedConfig,
        mixture: MixtureConfig,
        *,
        num_rows: int,
        seed: int,
    ):
        """Chooses the episodes; they are read when a row is made.

        Raises:
            ValueError: If the data lack all of the mixture's levels.
        """
        levels = mixture.levels or episodes.levels
        self.chosen = np.flatnonzero(np.isin(episodes.episode_levels, levels))
        self.chosen = self.chosen[: mixture.num_episodes]
        if not len(self.chosen):
            raise ValueError(
                f"the data hold no episode of {', '.join(levels)}, only of "
                f"{', '.join(episodes.levels)}; record these levels too"
            )
        self.episodes = episodes
        self.processor = processor
        self.config = config
        self.hears_world = config.world_token_id is not None
        self.mixture = mixture if self.hears_world else mixture.without_world()
        self.num_rows = num_rows
        self.seed = seed

    def __len__(self) -> int:
        """Rows of the whole run; there are no epochs."""
        return self.num_rows

    def __getitem__(self, index: int) -> TrainingRow:
        """Row `index`, filled with documents until none fits."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        rng = np.random.default_rng((self.seed, index))
        rows: list[TrainingRow] = []
        room = self.mixture.row_length
        smallest = self.config.frame_tokens + 36  # one described frame
        misses = 0
        while not rows or (room >= smallest and misses < 4):
            row = self._document(rng, room)
            if row is None:
                misses += 1
                if misses == MOST_MISSES and not rows:
                    raise ValueError(
                        f"none of {misses} episodes has a part that fits into row_length="
                        f"{room} tokens (a frame takes {self.config.frame_tokens}, beside the "
                        "task and what is said): give longer rows, or data with the captions or "
                        "frames that the mixture's shares ask for" + self._unheard()
                    )
                continue
            rows.append(row)
            room -= len(row)
        return pack(rows)

    def _document(self, rng: np.random.Generator, room: int) -> TrainingRow | None:
        """One document of at most `room` tokens, or None where the draw does not fit."""
        mixture = self.mixture
        frame_tokens = self.config.frame_tokens
        names = ["policy", "joint", "inverse", "describe", "imagine"]
        shares = np.array([getattr(mixture, f"{name}_share") for name in names])
        if room < 2 * frame_tokens + 48:
            shares[:3] = shares[4] = 0  # no room for a transition, or for a frame and its span
        if not shares.any():
            return None
        query = str(rng.choice(names, p=shares / shares.sum()))
        draws = mixture.recall_draws if query == "joint" else 1
        parts = [part for _ in range(draws) if (part := self._part(rng, query, room))]
        if not self.hears_world:
            parts = [quiet for part in parts if (quiet := _silent(*part))]
        if not parts:
            return None
        is_drawn = query in ("joint", "imagine")
        seen = [self._seen(*part) for part in parts] if is_drawn else []
        best = max(range(len(seen)), key=lambda i: _to_recall(seen[i].age), default=0)
        episode, first, last = parts[best]
        task, is_true_task = self._task(rng, query, episode)
        document = Document(
            episode=episode,
            first=first,
            last=last,
            task=task,
            is_true_task=is_true_task,
            opening=self._opening(rng, query, episode, first),
            action_weight=mixture.action_weight,
            outcome_weight=mixture.outcome_weight,
        )
        stream = self.processor.stream(Sequence(document.segments(query, rng)))
        while len(stream) > room and last - first > 1:  # much was said
            last -= max(1, (last - first) // 4)
            document = replace(document, last=last)
            stream = self.processor.stream(Sequence(document.segments(query, rng)))
        if len(stream) > room:
            return None
        if query == "imagine" or (task is not None and not is_true_task):
            # Nobody knows how things stand with a task that was never given.
            outcomes = torch.tensor(self.config.outcome_token_ids)
            stream.weights[torch.isin(stream.input_ids, outcomes)] = 0.0
        num_frames = last - first
        spans, latent_weights = [], None
        if is_drawn:
            latent_weights = self._latent_weights(seen[best])[:num_frames]
            is_event = torch.tensor([words is not None for words in episode.told[first:last]])
            likelier = torch.where(is_event, mixture.event_weight, 1.0)
            weights = (latent_weights.amax(1) * likelier)[1:]
            spare = room - len(stream)
            if query == "imagine":
                spans = [(0, 1)] * min(mixture.imagine_draws, spare // frame_tokens)
            else:
                spans = self._spans(rng, weights.double().numpy(), spare)
            if query == "imagine" and not spans:
                return None
        generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
        levels = mixture.noise.sample((len(spans), num_frames), generator)
        context = mixture.noise.sample_context((num_frames,), generator)
        start_time = 0 if first == 0 else _start_time(self.processor, episode, first)
        return plan_training(
            stream,
            self.config,
            spans=spans,
            noise_levels=levels,
            context_noise_levels=context,
            latent_weights=latent_weights,
            learn_context=mixture.learn_context and is_drawn,
            start_time=start_time,
            skips=self._skips(rng, num_frames) if query == "joint" else None,
        )

    def _unheard(self) -> str:
        """The rest of the sentence where words of the world may be why nothing fits."""
        if self.hears_world:
            return ""
        return ", in parts where the world says nothing: this model hears no words of the world"

    def _task(
        self, rng: np.random.Generator, query: str, episode: Episode
    ) -> tuple[str | None, bool]:
        """What a document's agent is told to do, and whether the episode's actor was told it."""
        mixture = self.mixture
        draw = rng.random()
        if query == "joint" and draw < mixture.task_swap:
            other = self.episodes[int(rng.choice(self.chosen))].task
            return other, other == episode.task
        if query in ("policy", "joint") and draw > 1 - mixture.task_dropout:
            return None, episode.task is None
        return episode.task, True

    def _opening(
        self, rng: np.random.Generator, query: str, episode: Episode, first: int
    ) -> str | None:
        """What the world says before a document's first frame."""
        mixture = self.mixture
        caption = episode.captions[first]
        if query == "imagine":
            return retell(caption or "", rng)
        if query != "joint":
            return None
        words = []
        is_open = episode.outcomes[first] == "ongoing"  # so the task is still to be done
        if is_open and episode.task is not None and rng.random() < mixture.promise_share:
            words.append(f"{PROMISE}{episode.task}")
        if caption and rng.random() < mixture.caption_share:
            words.append(retell(caption, rng))
        return ", ".join(words) or None

    def _skips(self, rng: np.random.Generator, num_frames: int) -> Tensor | None:
        """Time that passes before one of the frames, from some frames to far more than a window."""
        if num_frames < 2 or rng.random() >= self.mixture.skip_share:
            return None
        skips = torch.zeros(num_frames, dtype=torch.int64)
        skips[int(rng.integers(1, num_frames))] = int(LONGEST_SKIP ** rng.random())
        return skips

    def _part(
        self, rng: np.random.Generator, query: str, room: int
    ) -> tuple[Episode, int, int] | None:
        """An episode and the range of its frames that a document of `room` tokens holds."""
        mixture = self.mixture
        frame_tokens = self.config.frame_tokens
        span_share = mixture.span_share if query == "joint" else 0.0
        episode = self.episodes[int(rng.choice(self.chosen))]
        words = {"policy": 16, "describe": 24}.get(query, 10)  # of a frame, roughly
        per_frame = frame_tokens * (1 + span_share) + words
        fits = int((room - 16 + frame_tokens * span_share) / per_frame)
        if mixture.max_frames is not None:
            fits = min(fits, mixture.max_frames)
        if query == "imagine" or fits < 1:
            first = self._captioned(rng, episode)
            if first is None:
                return None
            last = first + 1
        else:
            total = len(episode.outcomes)
            count = min(total, fits)
            # Either end is as likely as the middle: both starts and outcomes must be seen.
            places = total - count
            first = int(np.clip(rng.integers(-1, places + 2), 0, places))
            last = first + count
        return episode, first, last

    def _latent_weights(self, seen: Seen) -> Tensor:
        """Weight of each latent in the flow loss, `(T, n)` float32."""
        mixture = self.mixture
        recall = 1 + mixture.recall_weight * (seen.age - 1)
        weights = torch.where(seen.age > 0, recall, mixture.reveal_weight)
        return torch.where(seen.is_changed, weights.clamp(min=mixture.change_weight), weights)

    def _seen(self, episode: Episode, first: int, last: int) -> Seen:
        """What the earlier frames of a part show of each latent, see `last_seen`."""
        assert episode.latents is not None
        latents = torch.from_numpy(np.array(episode.latents[first:last]))
        motions = [motion for motion in episode.motions[first : last - 1] if motion is not None]
        is_known = len(motions) == last - 1 - first
        places = places_in_world(motions, self.config) if is_known else None
        return last_seen(patchify(latents, self.config.latent_patch_size), places)

    def _captioned(self, rng: np.random.Generator, episode: Episode) -> int | None:
        frames = [i for i, caption in enumerate(episode.captions) if caption]
        return int(rng.choice(frames)) if frames else None

    def _spans(
        self, rng: np.random.Generator, weights: np.ndarray, room: int
    ) -> list[tuple[int, int]]:
        """Single frames to noise, as many as fit; the same frame may be drawn at several levels.

        Args:
            rng: Source of randomness.
            weights: `(T - 1,)`, of each frame after the first, relative.
            room: Tokens that are left for spans.
        """
        spare = room // self.config.frame_tokens
        count = min(int(len(weights) * self.mixture.span_share + rng.random()), spare)
        chosen: list[int] = []
        worth = np.flatnonzero(weights)  # where there is something to learn
        if len(worth):
            shares = weights[worth] / weights[worth].sum()
            # Twice the same only when there are more spans than frames.
            more = count > len(worth)
            chosen = (1 + rng.choice(worth, size=count, replace=more, p=shares)).tolist()
        first_alone = not len(weights)
        if len(chosen) < spare and (first_alone or rng.random() < self.mixture.first_span_share):
            chosen.append(0)
        ranges = span_ranges(len(weights) + 1, "frame")
        return [ranges[i] for i in sorted(chosen)]


def _silent(episode: Episode, first: int, last: int) -> tuple[Episode, int, int] | None:
    """The longest part of a part in which the world says nothing, None if it always speaks."""
    is_silent = [not words for words in episode.told[first:last]]
    runs, start = [], first
    for is_run, frames in itertools.groupby(is_silent):
        count = len(list(frames))
        if is_run:
            runs.append((count, start))
        start += count
    if not runs:
        return None
    count, start = max(runs, key=lambda run: run[0])
    return episode, start, start + count


def _to_recall(age: Tensor) -> int:
    """How much there is to recall in a part: the longest of each frame."""
    return int((age.amax(1) - 1).clamp(min=0).sum())


def _start_time(processor: UnifiedProcessor, episode: Episode, first: int) -> int:
    """Roughly where frame `first` stands on the time axis of the whole episode."""
    task = len(processor._text_ids(episode.task or ""))
    return 1 + task + first * 7
