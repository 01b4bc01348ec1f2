"""The model on its own: it imagines actions and frames, and the real environment is asked."""

import contextlib
import io

from eval.babyai.episodes import TrueEpisode
from eval.babyai.player import Player
from eval.babyai.tally import Tally, score_frame
from eval.babyai.truth import Knowledge, TrueWorld
from unified.conversation.sequence import Kind


def evaluate_joint(
    player: Player,
    episodes: list[TrueEpisode],
    tally: Tally,
    *,
    max_turns: int,
    temperature: float,
    num_inference_steps: int,
    seed: int,
) -> None:
    """Imagines from the task and the first frame, then replays the imagined actions for real.

    A transition is confirmed when every tile of the imagined frame that the first frame and the
    actions determine is what the environment shows. Transitions of which nothing is determined
    (the imagined agent walked where nobody has seen) are not counted.
    """
    session = player.start(episodes, seed)
    generation = session.run(
        "joint",
        max_turns=max_turns,
        temperature=temperature,
        num_inference_steps=num_inference_steps,
    )
    worlds: dict[str, TrueWorld] = {}
    for episode, reply in zip(episodes, player.replies(generation), strict=True):
        world = worlds.setdefault(episode.level, TrueWorld(episode.level))
        name = f"{episode.level}/{episode.seed}"
        with contextlib.redirect_stdout(io.StringIO()):
            view = world.reset(episode.seed)
        knowledge = Knowledge()
        knowledge.see(view)
        actions = [s for s in reply if s.kind is Kind.ACTION]
        frames = [s for s in reply if s.kind is Kind.FRAME]
        if not frames:
            continue
        for action, frame, pixels in zip(actions, frames, player.pixels(frames), strict=False):
            before, view = view, world.step(str(action.action))
            classes = knowledge.imagine(view)
            if not classes.determined.any():
                break
            confirmed = score_frame(tally, "joint", name, pixels, before, view, classes)
            tally.add("joint/confirmed", name, confirmed, 1)
            tally.add("joint/outcome", name, frame.outcome == view.outcome, 1)
            if view.outcome != "ongoing" or frame.outcome != "ongoing":
                break
