"""The model on its own: it imagines actions and frames, and the real environment is asked."""

import contextlib
import io

from eval.babyai.episodes import TrueEpisode
from eval.babyai.floors import simulators
from eval.babyai.simulator import Answers
from eval.babyai.tally import Tally, score_frame
from eval.babyai.tiles import read_frame
from eval.babyai.truth import Knowledge, TrueWorld
from eval.game import GamePlayer


def evaluate_joint(
    player: GamePlayer,
    episodes: list[TrueEpisode],
    tally: Tally,
    *,
    max_turns: int,
    temperature: float,
    num_inference_steps: int | None,
    seed: int,
) -> Answers:
    """Imagines from the task and the first frame, then replays the imagined actions for real.

    A transition is confirmed when every tile of the imagined frame that the first frame and the
    actions determine is what the environment shows. Who stands still is confirmed for nothing, so
    the transitions that change the real frame are counted apart. What nobody could judge (the
    imagined agent walked where nobody has seen) is counted, too: see `joint/judged`.

    Returns:
        Outcomes: what really came, and what was imagined, until either ends.
    """
    answers = Answers()
    game = player.begin(episodes, seed)
    imagined = game.imagine(max_turns, temperature, num_inference_steps)
    worlds: dict[str, TrueWorld] = {}
    for episode, moments in zip(episodes, imagined, strict=True):
        world = worlds.setdefault(episode.level, TrueWorld(episode.level))
        name = episode.name
        with contextlib.redirect_stdout(io.StringIO()):
            view = world.reset(episode.seed)
        knowledge, rules = Knowledge(), simulators(view.frame)
        knowledge.see(view)
        for moment in moments:
            action = str(moment.action)
            before, view = view, world.step(action)
            answers.add(name, view.outcome, str(moment.outcome))
            if moment.outcome == "success":
                tally.add("joint/success", name, view.outcome == "success", 1)
            classes = knowledge.imagine(view)
            floors = {key: rule.draw(action) for key, rule in rules.items()}
            determined = classes.determined
            tally.add("joint/judged", name, int(determined.any()), 1)
            if determined.any():
                tally.add("joint/tiles", name, determined.sum(), determined.size)
                changes = bool((view.sprites != before.sprites).any())
                tally.add("joint/changes", name, changes, 1)
                score_frame(tally, "joint", name, moment.frame, before, view, classes, floors)
                drawn = {"model": moment.frame, "repeat": before.frame, **floors}
                for who, frame in drawn.items():
                    right = read_frame(frame)[0] == view.sprites
                    tally.add(f"joint/whole/{who}", name, int(right.all()), 1)
                    if changes:
                        tally.add(f"joint/changing/{who}", name, right[determined].all(), 1)
            if view.outcome != "ongoing" or moment.outcome != "ongoing":
                break
    return answers
