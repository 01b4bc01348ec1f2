"""A model beside recorded episodes, whatever they show: frames, outcomes, actions.

Frames are compared by PSNR and SSIM, over all pixels and over those that differ from the last true
frame, so that what moves is not lost in what stands still. The floor repeats that frame; the codec
is the ceiling.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.dataset import EpisodeDataset
from data.episode import EpisodeRecord, decode_png
from eval.babyai.simulator import Answers
from eval.babyai.tally import psnr
from eval.game import Game, GamePlayer, Moment, shown, told
from eval.statistics import Estimate, balanced_accuracy, mean_over_episodes, ratio_over_episodes
from unified.media.action_space import ActionSpace
from unified.media.actions import NamedActions

WAYS = ("model", "repeat", "codec")
MEASURES = {"psnr": "PSNR", "differing": "PSNR where frames differ", "ssim": "SSIM"}
DIFFERENCE = 8
"""Of a pixel value, from which on two pixels differ: less is noise of a video codec."""
SHOWN = 4
"""Episodes whose rollouts are kept to look at."""


@dataclass(frozen=True, kw_only=True)
class ComparisonArguments:
    """Options of a comparison with recorded episodes."""

    model: str
    """Folder, hub id, or embedded name."""
    context_frames: int = 4
    """True frames before a rollout."""
    horizon: int = 16
    """Frames of a rollout."""
    num_inference_steps: int | None = None
    """Denoise steps of a frame; None is the model's own number."""
    seed: int = 0
    """Seed of the model's noise."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""

    def check(self, *names: str) -> None:
        """Refuses numbers below 1 among those options and the named ones.

        Raises:
            ValueError: Naming the option.
        """
        for name in (*names, "context_frames", "horizon", "num_inference_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


@dataclass(frozen=True)
class Recording:
    """One recorded episode.

    Attributes:
        task: The words that open it.
        seed: Of the environment, or its place in the data.
        views: T + 1 moments.
        targets: T actions that a policy should take instead of those taken; None where nothing is
            to be learned (random or unknown actions).
    """

    task: str | None
    seed: int
    views: list[Moment]
    targets: list[str | None] = field(default_factory=list)

    @classmethod
    def of(cls, record: EpisodeRecord) -> "Recording":
        """Decodes what a recorder gave."""
        task = " ".join(s.text for s in record.segments if s.role == "task" and s.text)
        views: list[Moment] = []
        targets: list[str | None] = []
        action: str | None = None
        for segment in record.segments:
            if segment.kind == "action":
                action = segment.action
                targets.append((segment.target or action) if segment.weight else None)
            elif segment.frame is not None:
                views.append(Moment(decode_png(segment.frame), action, segment.outcome))
        return cls(task or None, record.seed, views, targets)

    @classmethod
    def read(cls, data: EpisodeDataset, index: int, frames: int) -> "Recording":
        """The first frames of an episode of a data folder; an untold outcome is None."""
        episode, pixels = data[index], data.frames(index)[:frames]
        actions = [None, *episode.actions]
        views = [
            Moment(frame, action, outcome)
            for frame, action, outcome in zip(pixels, actions, episode.outcomes, strict=False)
        ]
        learned = zip(episode.targets, episode.actions, episode.action_weights, strict=True)
        targets = [(target or action) if weight else None for target, action, weight in learned]
        return cls(episode.task, index, views, targets[: len(views) - 1])


@dataclass
class Rollout:
    """Frames to look at: the truth from the last given frame on, and what was drawn."""

    name: str
    truth: list[np.ndarray]
    model: list[np.ndarray]
    actions: list[str]


@dataclass
class Comparison:
    """What was measured on recordings, figure by figure.

    Attributes:
        quality: Figure (such as next/psnr/model) -> episode -> its values.
        outcome: True and given outcomes of next frames.
        inverse: True and given actions between two frames.
        policy: Recorded actions, and those that the model would have taken.
        rollouts: Some, to look at.
    """

    quality: dict[str, dict[int, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    outcome: Answers = field(default_factory=Answers)
    inverse: Answers = field(default_factory=Answers)
    policy: Answers = field(default_factory=Answers)
    rollouts: list[Rollout] = field(default_factory=list)

    def score(
        self,
        figure: str,
        episode: int,
        frames: dict[str, np.ndarray],
        truth: np.ndarray,
        known: np.ndarray,
    ) -> None:
        """Compares what several ways gave with the true frame, and with the last known one."""
        differs = (np.abs(truth.astype(int) - known.astype(int)) > DIFFERENCE).any(-1)
        for way, frame in frames.items():
            self.quality[f"{figure}/{way}/psnr"][episode].append(psnr(frame, truth))
            self.quality[f"{figure}/{way}/ssim"][episode].append(ssim(frame, truth))
            if differs.any():
                value = psnr(frame[differs], truth[differs])
                self.quality[f"{figure}/{way}/differing"][episode].append(value)

    def estimates(self) -> dict[str, Estimate]:
        """Every figure with its interval; actions beside the commonest one."""
        found: dict[str, Estimate] = {}
        for figure, episodes in self.quality.items():
            found[figure] = mean_over_episodes(list(episodes.values()))
        for name in ("outcome", "inverse", "policy"):
            answers: Answers = getattr(self, name)
            if not answers.truth:
                continue
            commonest = Counter(answers.truth).most_common(1)[0][0]
            same = [commonest] * len(answers.truth)
            for way, given in (("model", answers.given), ("commonest", same)):
                found[f"{name}/{way}/exact"] = exact(answers, given)
                found[f"{name}/{way}/balanced"] = balanced_accuracy(
                    answers.truth, given, answers.episodes
                )
        return found

    def horizons(self) -> list[int]:
        """Frames of the rollouts."""
        return sorted({int(f.split("/")[1]) for f in self.quality if f.startswith("rollout/")})

    def table(self) -> str:
        """Two tables in Markdown; of rollouts the frames 1, 2, 4, and so on."""
        found = self.estimates()
        lines = []
        if self.quality:
            lines += ["| frames | model | last frame repeated | codec |", "|---|---|---|---|"]
        horizons = [h for h in self.horizons() if h & (h - 1) == 0]  # the report has all
        for name in ["next", *(f"rollout/{h}" for h in horizons)] if lines else []:
            label = "next frame" if name == "next" else f"rollout, frame {name.split('/')[1]}"
            for measure, words in MEASURES.items():
                if f"{name}/model/{measure}" in found:
                    cells = [number(found[f"{name}/{way}/{measure}"], measure) for way in WAYS]
                    lines.append(f"| {label}: {words} | {' | '.join(cells)} |")
        labels = {
            "outcome": "outcome of the next frame",
            "inverse": "action between two frames",
            "policy": "recorded action chosen",
        }
        rows = [
            f"| {words}: {way} | {found[f'{name}/model/{way}']} "
            f"| {found[f'{name}/commonest/{way}']} |"
            for name, words in labels.items()
            for way in ("exact", "balanced")
            if f"{name}/model/{way}" in found
        ]
        if rows:
            lines += ["", "| answers | model | always the commonest |", "|---|---|---|", *rows]
        return "\n".join(lines).strip()


def exact(answers: Answers, given: Rows[str]) -> Estimate:
    """Share of right answers, over episodes."""
    names, place = np.unique(answers.episodes, return_inverse=True)
    right = np.array([a == b for a, b in zip(answers.truth, given, strict=True)])
    hits = np.bincount(place, right, minlength=len(names)).astype(np.int64)
    return ratio_over_episodes(hits, np.bincount(place, minlength=len(names)))


def number(estimate: Estimate, measure: str) -> str:
    """A mean of frames: decibels, or a similarity."""
    digits, unit = (3, "") if measure == "ssim" else (2, " dB")
    low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
    return f"{estimate.value:.{digits}f}{unit} [{low}, {high}]"


def ssim(frame: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of two `(H, W, 3)` uint8 frames (Wang et al. 2004), 1 if equal."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = [torch.from_numpy(np.array(x)).movedim(-1, 0)[None].float() for x in (frame, truth)]
    found: Any = structural_similarity_index_measure(pair[0], pair[1], data_range=255.0)
    return float(found)


def _keep(
    game: Game, alive: list[int], recordings: list[Recording], frames: int
) -> tuple[Game, list[int]]:
    """Drops the rows whose episodes have no more than so many frames."""
    going = [row for row, i in enumerate(alive) if len(recordings[i].views) > frames]
    if len(going) == len(alive):
        return game, alive
    return game.fork(going), [alive[row] for row in going]


def compare(
    player: GamePlayer,
    recordings: list[Recording],
    found: Comparison,
    space: ActionSpace,
    arguments: ComparisonArguments,
    save: Callable[[], None],
) -> None:
    """Compares next frames, rollouts and actions, and saves what was found after each part."""
    steps, seed = arguments.num_inference_steps, arguments.seed
    compare_next(player, recordings, found, steps, seed)
    save()
    compare_rollouts(
        player,
        recordings,
        found,
        context_frames=arguments.context_frames,
        horizon=arguments.horizon,
        num_inference_steps=steps,
        seed=seed,
    )
    save()
    compare_actions(player, recordings, found, space, seed)
    save()


def compare_next(
    player: GamePlayer,
    recordings: list[Recording],
    report: Comparison,
    num_inference_steps: int | None,
    seed: int,
) -> None:
    """Every next frame and its outcome, from the true history."""
    alive = list(range(len(recordings)))
    game = player.begin(recordings, seed)
    longest = max(len(recording.views) for recording in recordings)
    for step in tqdm(range(1, longest), desc="next frame", leave=False):
        game, alive = _keep(game, alive, recordings, step)
        views = [recordings[i].views[step] for i in alive]
        drawn = game.fork().draw([view.action for view in views], num_inference_steps)
        coded = player.code(np.stack([view.frame for view in views]))
        for i, view, moment, best in zip(alive, views, drawn, coded, strict=True):
            before = recordings[i].views[step - 1].frame
            ways = {"model": moment.frame, "repeat": before, "codec": best}
            report.score("next", i, ways, view.frame, before)
            if view.outcome is not None:  # where nobody knows it, nothing can be right
                report.outcome.add(str(i), view.outcome, str(moment.outcome))
        game.tell([told(view) for view in views])


def compare_rollouts(
    player: GamePlayer,
    recordings: list[Recording],
    report: Comparison,
    *,
    context_frames: int,
    horizon: int,
    num_inference_steps: int | None,
    seed: int,
) -> None:
    """Frames generated one from the other under the recorded actions, after a true context.

    Only episodes that last the whole rollout take part, so that all its frames are of the same.
    """
    chosen = [r for r in recordings if len(r.views) >= context_frames + horizon]
    if not chosen:
        return
    game = player.begin(chosen, seed)
    for step in range(1, context_frames):
        game.tell([told(recording.views[step]) for recording in chosen])
    kept = [
        Rollout(r.task or f"episode {r.seed}", [last], [last], ["given"])
        for r, last in ((r, r.views[context_frames - 1].frame) for r in chosen[:SHOWN])
    ]
    for h in tqdm(range(1, horizon + 1), desc="rollout", leave=False):
        views = [recording.views[context_frames + h - 1] for recording in chosen]
        drawn = game.draw([view.action for view in views], num_inference_steps)
        coded = player.code(np.stack([view.frame for view in views]))
        for i, (view, moment, best) in enumerate(zip(views, drawn, coded, strict=True)):
            known = chosen[i].views[context_frames - 1].frame
            ways = {"model": moment.frame, "repeat": known, "codec": best}
            report.score(f"rollout/{h}", i, ways, view.frame, known)
            if i < len(kept):
                kept[i].truth.append(view.frame)
                kept[i].model.append(moment.frame)
                kept[i].actions.append(str(view.action))
    report.rollouts.extend(kept)


def compare_actions(
    player: GamePlayer,
    recordings: list[Recording],
    report: Comparison,
    space: ActionSpace,
    seed: int,
) -> None:
    """Actions named after the frame they led to, and actions that the model would take.

    Two actions are the same when their tokens are: numbers agree within a bin. What leaves the
    frame as it was nobody can name, so it is not asked for.
    """
    alive = list(range(len(recordings)))
    inverse = player.begin(recordings, seed)
    policy = player.begin(recordings, seed)
    longest = max(len(recording.views) for recording in recordings)
    for step in tqdm(range(1, longest), desc="actions", leave=False):
        inverse = _keep(inverse, alive, recordings, step)[0]
        policy, alive = _keep(policy, alive, recordings, step)
        views = [recordings[i].views[step] for i in alive]
        chosen = policy.choose()
        named = inverse.name([shown(view) for view in views])
        for i, view, choice, name in zip(alive, views, chosen, named, strict=True):
            differs = (recordings[i].views[step - 1].frame != view.frame).any()
            if view.action is not None and differs:
                report.inverse.add(str(i), label(space, view.action), label(space, name))
            target = recordings[i].targets[step - 1]
            if target is not None:
                report.policy.add(str(i), label(space, target), label(space, choice))
        policy.tell([told(view) for view in views])
        inverse.reveal([view.action for view in views])


def label(space: ActionSpace, action: Any) -> str:
    """An action as its tokens say it: its name, or the places of its numbers."""
    if action == "":
        return "none"
    tokens = space.encode(action)
    return str(space.decode(tokens)) if isinstance(space, NamedActions) else json.dumps(tokens)
