"""The model as a simulator: frames, outcomes and hindsight against the real environment.

BabyAI frames are tiles of a finite set of sprites, so a generated frame reads back to an exact
symbolic state: what is counted is truth, not similarity.
"""

from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from eval.babyai.episodes import TrueEpisode
from eval.babyai.floors import fitting_action, simulators
from eval.babyai.tally import Tally, psnr, score_frame
from eval.babyai.tiles import read_frame
from eval.babyai.truth import ACTIONS, Knowledge
from eval.game import GamePlayer, shown, told


@dataclass
class Answers:
    """True and given answers to a question, one entry each time it was asked.

    Attributes:
        truth: What is right.
        given: What was said.
        episodes: In which episode it was asked.
        floor: What a simple rule says; empty where there is none.
    """

    truth: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    episodes: list[str] = field(default_factory=list)
    floor: list[str] = field(default_factory=list)

    def add(self, episode: str, truth: str, given: str, floor: str | None = None) -> None:
        """Writes down one answer."""
        self.truth.append(truth)
        self.given.append(given)
        self.episodes.append(episode)
        if floor is not None:
            self.floor.append(floor)

    def merge(self, other: "Answers") -> None:
        """Adds the answers of another instance."""
        for name in ("truth", "given", "episodes", "floor"):
            getattr(self, name).extend(getattr(other, name))


def evaluate_codec(player: GamePlayer, episodes: list[TrueEpisode], tally: Tally) -> None:
    """Encodes and decodes true frames: the ceiling of every other figure."""
    for episode in tqdm(episodes, desc="codec", leave=False):
        frames = np.stack([view.frame for view in episode.views])
        decoded = player.code(frames)
        truth = np.stack([view.sprites for view in episode.views])
        right = read_frame(decoded)[0] == truth
        tally.add("codec/tiles", episode.name, right.sum(), right.size)
        for coded, frame in zip(decoded, frames, strict=True):
            tally.measure("codec/psnr", episode.name, psnr(coded, frame))


def evaluate_next_frame(
    player: GamePlayer,
    episodes: list[TrueEpisode],
    tally: Tally,
    *,
    num_inference_steps: int | None,
    seed: int,
) -> Answers:
    """Next frame and outcome at every step of every episode, each from the true history.

    Returns:
        Outcomes.
    """
    answers = Answers()
    alive = [i for i, episode in enumerate(episodes) if len(episode.views) > 1]
    game = player.begin([episodes[i] for i in alive], seed)
    knowledge = [Knowledge() for _ in episodes]
    for known, episode in zip(knowledge, episodes, strict=True):
        known.see(episode.views[0])
    rules = [simulators(episode.views[0].frame) for episode in episodes]
    longest = max(len(episode.views) for episode in episodes)
    for step in tqdm(range(1, longest), desc="next frame", leave=False):
        views = [episodes[i].views[step] for i in alive]
        actions = [str(view.action) for view in views]
        drawn = game.fork().draw(actions, num_inference_steps)
        for i, view, frame, action in zip(alive, views, drawn, actions, strict=True):
            classes = knowledge[i].fork().imagine(view)
            name, before = episodes[i].name, episodes[i].views[step - 1]
            floors = {key: rule.fork().draw(action) for key, rule in rules[i].items()}
            score_frame(tally, "next", name, frame.frame, before, view, classes, floors)
            answers.add(name, view.outcome, str(frame.outcome))
            knowledge[i].see(view)
            for rule in rules[i].values():
                rule.follow(action, view.frame)
        game.tell([told(view) for view in views])
        going = [row for row, i in enumerate(alive) if len(episodes[i].views) > step + 1]
        if len(going) < len(alive):
            game = game.fork(going)
            alive = [alive[row] for row in going]
    return answers


def evaluate_rollout(
    player: GamePlayer,
    episodes: list[TrueEpisode],
    tally: Tally,
    *,
    context_frames: int,
    horizon: int,
    num_inference_steps: int | None,
    seed: int,
) -> None:
    """Generated frames 1..horizon after a true context, under the same actions.

    Raises:
        ValueError: If an episode is too short: figures at all frames are of the same episodes.
    """
    length = context_frames + horizon
    for episode in episodes:
        if len(episode.views) < length:
            raise ValueError(
                f"{episode.name} has {len(episode.views)} frames, a rollout of {horizon} after "
                f"{context_frames} needs {length}; take lasting_episodes"
            )
    game = player.begin(episodes, seed)
    knowledge = [Knowledge() for _ in episodes]
    rules = [simulators(episode.views[0].frame) for episode in episodes]
    for i, episode in enumerate(episodes):
        for view in episode.views[:context_frames]:
            knowledge[i].see(view)
            for rule in rules[i].values() if view.action else ():
                rule.follow(str(view.action), view.frame)
    for step in range(1, context_frames):
        game.tell([told(episode.views[step]) for episode in episodes])
    for h in tqdm(range(1, horizon + 1), desc="rollout", leave=False):
        views = [episode.views[context_frames + h - 1] for episode in episodes]
        actions = [str(view.action) for view in views]
        # The rollout is driven by the recorded actions, whatever outcome the model has in mind.
        drawn = game.draw(actions, num_inference_steps)
        for i, (view, frame, action) in enumerate(zip(views, drawn, actions, strict=True)):
            classes = knowledge[i].imagine(view)
            known = episodes[i].views[context_frames - 1]
            floors = {key: rule.draw(action) for key, rule in rules[i].items()}
            figure = f"rollout/{h}"
            score_frame(tally, figure, episodes[i].name, frame.frame, known, view, classes, floors)


def evaluate_inverse(player: GamePlayer, episodes: list[TrueEpisode], *, seed: int) -> Answers:
    """The action between two frames, asked at every step that changed the frame.

    Where an action leaves the frame as it was (a step against a wall, say), no observer can name
    it: such steps are told to the model, but not counted.
    """
    answers = Answers()
    alive = [i for i, episode in enumerate(episodes) if len(episode.views) > 1]
    game = player.begin([episodes[i] for i in alive], seed)
    longest = max(len(episode.views) for episode in episodes)
    for step in tqdm(range(1, longest), desc="inverse", leave=False):
        views = [episodes[i].views[step] for i in alive]
        named = game.name([shown(view) for view in views])
        for i, view, answer in zip(alive, views, named, strict=True):
            before = episodes[i].views[step - 1]
            if (view.sprites != before.sprites).any():
                rule = fitting_action(shown(before), shown(view), ACTIONS)
                answers.add(episodes[i].name, str(view.action), answer, rule)
        game.reveal([str(view.action) for view in views])
        going = [row for row, i in enumerate(alive) if len(episodes[i].views) > step + 1]
        if len(going) < len(alive):
            game = game.fork(going)
            alive = [alive[row] for row in going]
    return answers
