"""The model as a simulator: frames, outcomes and hindsight against the real environment.

BabyAI frames are tiles of a finite set of sprites, so a generated frame reads back to an exact
symbolic state: what is counted is truth, not similarity.
"""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from eval.babyai.episodes import TrueEpisode
from eval.babyai.player import Player, first_frames
from eval.babyai.tally import Tally, psnr, score_frame
from eval.babyai.tiles import read_frame
from eval.babyai.truth import Knowledge
from unified.conversation.sequence import action_segment


@dataclass
class Answers:
    """True and given answers to a question, one entry each time it was asked."""

    truth: list[str]
    given: list[str]


def evaluate_codec(player: Player, episodes: list[TrueEpisode], tally: Tally) -> None:
    """Encodes and decodes true frames: the ceiling of every other figure."""
    for episode in tqdm(episodes, desc="codec", leave=False):
        frames = np.stack([view.frame for view in episode.views])
        latents = player.processor.encode_pixels(frames)
        decoded = player.processor.decode_latents(latents)
        truth = np.stack([view.sprites for view in episode.views])
        right = read_frame(decoded)[0] == truth
        tally.add("codec/tiles", _name(episode), right.sum(), right.size)
        tally.errors["codec/psnr"] += [psnr(a, b) for a, b in zip(decoded, frames, strict=True)]


def evaluate_next_frame(
    player: Player,
    episodes: list[TrueEpisode],
    tally: Tally,
    *,
    num_inference_steps: int,
    seed: int,
) -> Answers:
    """Next frame and outcome at every step of every episode, each from the true history.

    Returns:
        Outcomes.
    """
    answers = Answers([], [])
    alive = [i for i, episode in enumerate(episodes) if len(episode.views) > 1]
    session = player.start([episodes[i] for i in alive], seed)
    knowledge = [Knowledge() for _ in episodes]
    for known, episode in zip(knowledge, episodes, strict=True):
        known.see(episode.views[0])
    longest = max(len(episode.views) for episode in episodes)
    for step in tqdm(range(1, longest), desc="next frame", leave=False):
        views = [episodes[i].views[step] for i in alive]
        session.append([player.stream(action_segment(view.action)) for view in views])
        probe = session.fork()
        generation = probe.run("forward", num_inference_steps=num_inference_steps)
        frames = first_frames(player.replies(generation))
        for i, view, pixels, frame in zip(alive, views, player.pixels(frames), frames, strict=True):
            classes = knowledge[i].fork().imagine(view)
            before = episodes[i].views[step - 1]
            score_frame(tally, "next", _name(episodes[i]), pixels, before, view, classes)
            answers.truth.append(view.outcome)
            answers.given.append(str(frame.outcome))
            knowledge[i].see(view)
        session.append([player.stream(frame) for frame in player.encode(views)])
        going = [row for row, i in enumerate(alive) if len(episodes[i].views) > step + 1]
        if len(going) < len(alive):
            session = session.fork(going)
            alive = [alive[row] for row in going]
    return answers


def evaluate_rollout(
    player: Player,
    episodes: list[TrueEpisode],
    tally: Tally,
    *,
    context_frames: int,
    horizon: int,
    num_inference_steps: int,
    seed: int,
) -> None:
    """Generated frames 1..horizon after a true context, under the same actions."""
    alive = [i for i, e in enumerate(episodes) if len(e.views) > context_frames]
    chosen = [episodes[i] for i in alive]
    session = player.start(chosen, seed)
    knowledge = {i: Knowledge() for i in alive}
    for i in alive:
        for view in episodes[i].views[:context_frames]:
            knowledge[i].see(view)
    for step in range(1, context_frames):
        views = [episode.views[step] for episode in chosen]
        session.append(
            [
                player.stream(action_segment(view.action), frame)
                for view, frame in zip(views, player.encode(views), strict=True)
            ]
        )
    for h in tqdm(range(1, horizon + 1), desc="rollout", leave=False):
        going = [row for row, i in enumerate(alive) if len(episodes[i].views) >= context_frames + h]
        if not going:
            break
        if len(going) < len(alive):
            session = session.fork(going)
            alive = [alive[row] for row in going]
        views = [episodes[i].views[context_frames + h - 1] for i in alive]
        # The rollout is driven by the recorded actions, whatever outcome the model has in mind.
        session.append([player.stream(action_segment(view.action)) for view in views])
        generation = session.run("forward", num_inference_steps=num_inference_steps)
        frames = first_frames(player.replies(generation))
        for i, view, pixels in zip(alive, views, player.pixels(frames), strict=True):
            classes = knowledge[i].imagine(view)
            known = episodes[i].views[context_frames - 1]
            score_frame(tally, f"rollout/{h}", _name(episodes[i]), pixels, known, view, classes)


def evaluate_inverse(player: Player, episodes: list[TrueEpisode], *, seed: int) -> Answers:
    """The action between two frames, asked at every step that changed the frame.

    Where an action leaves the frame as it was (a step against a wall, say), no observer can name
    it: such steps are told to the model, but not counted.
    """
    answers = Answers([], [])
    alive = [i for i, episode in enumerate(episodes) if len(episode.views) > 1]
    session = player.start([episodes[i] for i in alive], seed)
    longest = max(len(episode.views) for episode in episodes)
    for step in tqdm(range(1, longest), desc="inverse", leave=False):
        views = [episodes[i].views[step] for i in alive]
        frames = player.encode(views)
        session.append([player.stream(action_segment(None), frame) for frame in frames])
        replies = player.replies(session.fork().run("inverse"))
        for i, view, reply in zip(alive, views, replies, strict=True):
            if (view.sprites != episodes[i].views[step - 1].sprites).any():
                answers.truth.append(str(view.action))
                answers.given.append(str(reply[-1].action))
        session.append(
            [player.hindsight(action_segment(view.action, hindsight=True)) for view in views]
        )
        going = [row for row, i in enumerate(alive) if len(episodes[i].views) > step + 1]
        if len(going) < len(alive):
            session = session.fork(going)
            alive = [alive[row] for row in going]
    return answers


def _name(episode: TrueEpisode) -> str:
    return f"{episode.level}/{episode.seed}"
