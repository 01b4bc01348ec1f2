"""The demonstration: one small model acts, simulates, explains and imagines, in the real BabyAI.

python -m eval.demo --out runs/demo
"""

import html
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from eval import page
from eval.babyai.agent import play
from eval.babyai.episodes import EVALUATION_SEED, LEVELS, TrueEpisode, wandering_episodes
from eval.babyai.player import Player, first_frames
from eval.babyai.tiles import read_frame
from eval.babyai.truth import Knowledge, TrueWorld
from eval.run import EvalArguments, evaluate
from unified.command import command
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Kind, action_segment
from unified.files import atomic_path
from unified.modeling import UnifiedModel

LEAD = (
    "One transformer, {parameters:,} parameters, on a laptop's processor. It reads a task, sees "
    "frames, speaks and acts; and the same weights draw the next frame, name the action between "
    "two frames, and imagine whole episodes. All seeds below were never trained on, and were not "
    "chosen for their looks: they are the first ones."
)


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Write a page that shows what the model does."""

    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    out: Path = Path("runs/demo")
    """Folder of index.html."""
    first_seed: int = EVALUATION_SEED + 500
    """First environment seed."""
    agent_episodes: int = 12
    """Episodes per level in the score table."""
    episodes: int = 4
    """Episodes per level for the simulator's figures in the score table."""
    context_frames: int = 4
    """True frames before the simulated ones."""
    horizon: int = 10
    """Simulated frames."""
    seed: int = 0
    """Of the model's noise."""


def agent_section(player: Player, arguments: DemoArguments) -> str:
    """The agent in the real environment, one episode per level."""
    parts = []
    for level in LEVELS:
        world = TrueWorld(level)
        steps = play(player.model, player.processor, world, arguments.first_seed, think=True)
        figures = []
        for step in steps:
            words = f"“{step.thought}” → {step.action}" if step.thought else step.action or ""
            tone = "good" if step.view.outcome == "success" else ""
            figures.append(page.figure(step.view.frame, words or step.view.outcome, tone=tone))
        outcome = steps[-1].view.outcome
        label = f"{level}: {len(steps) - 1} actions, {outcome}"
        parts.append(f'<p class="task">“{html.escape(world.mission)}”</p>')
        parts.append(page.strip(figures, label))
    return "".join(parts)


def simulator_section(player: Player, arguments: DemoArguments) -> str:
    """A rollout beside the truth, under the same actions."""
    parts = [
        "<p>Given the task, the first frames and the actions, the model draws every later frame. "
        "Above the truth, in the middle what the model drew, below its tiles: red is wrong, blue "
        "is what nobody could know, because it was not in sight before.</p>"
    ]
    for level in LEVELS:
        episode = _wander(level, arguments)
        parts.append(_simulate(player, episode, arguments))
    return "".join(parts)


def _wander(level: str, arguments: DemoArguments) -> TrueEpisode:
    """The first episode from the seed on that is long enough to be simulated."""
    steps = arguments.context_frames + arguments.horizon - 1
    for seed in range(arguments.first_seed, arguments.first_seed + 100):
        episode = wandering_episodes(level, 1, seed, steps)[0]
        if len(episode.views) == steps + 1:
            return episode
    raise ValueError(f"no episode of {level} lasts {steps} steps; lower horizon")


def _simulate(player: Player, episode: TrueEpisode, arguments: DemoArguments) -> str:
    session = player.start([episode], arguments.seed)
    knowledge = Knowledge()
    given = episode.views[: arguments.context_frames]
    for view, frame in zip(given, player.encode(given), strict=True):
        knowledge.see(view)
        if view.action is not None:
            session.append([player.stream(action_segment(view.action), frame)])
    truth = [page.figure(v.frame, str(v.action or "given"), small=True) for v in given]
    drawn = [page.figure(v.frame, "given", small=True) for v in given]
    tiles = [page.figure(v.frame // 2, "", small=True) for v in given]
    for view in episode.views[len(given) :]:
        session.append([player.stream(action_segment(view.action))])
        frame = first_frames(player.replies(session.run("forward")))
        pixels = player.pixels(frame)[0]
        classes = knowledge.imagine(view)
        wrong = classes.determined & (read_frame(pixels)[0] != view.sprites)
        count = int(classes.determined.sum())
        truth.append(page.figure(view.frame, str(view.action), small=True))
        drawn.append(page.figure(pixels, str(frame[0].outcome), small=True))
        tone = ("bad" if wrong.any() else "good") if count else ""
        words = f"{count - int(wrong.sum())} of {count}" if count else "all open"
        marks = page.difference(pixels, wrong, ~classes.determined)
        tiles.append(page.figure(marks, words, tone=tone, small=True))
    head = f"{episode.level}, seed {episode.seed}: “{episode.task}”"
    return (
        page.strip(truth, head + " — the real environment")
        + page.strip(drawn, "the model")
        + page.strip(tiles, "determined tiles that are right")
    )


def inverse_section(player: Player, arguments: DemoArguments) -> str:
    """The action between two frames."""
    figures = []
    for level in LEVELS:
        episode = wandering_episodes(level, 1, arguments.first_seed + 1, 2)[0]
        short = replace(episode, views=episode.views[:2])
        session = player.start([short], arguments.seed)
        told = player.encode([short.views[1]])[0]
        session.append([player.stream(action_segment(None), told)])
        named = player.replies(session.run("inverse"))[0][-1].action
        right = named == short.views[1].action
        figures.append(page.figure(short.views[0].frame, "before"))
        words = f"model: {named}; truth: {short.views[1].action}"
        figures.append(page.figure(short.views[1].frame, words, tone="good" if right else "bad"))
    return page.strip(figures)


def joint_section(player: Player, arguments: DemoArguments) -> str:
    """An imagined episode, and what the environment says to its actions."""
    parts = [
        "<p>From the task and one frame the model goes on alone: it chooses actions and draws "
        "what they lead to. Below, the real environment under the same actions.</p>"
    ]
    for level in LEVELS[:2]:
        episode = wandering_episodes(level, 1, arguments.first_seed, 1)[0]
        session = player.start([replace(episode, views=episode.views[:1])], arguments.seed)
        reply = player.replies(session.run("joint", max_turns=8, temperature=0.7))[0]
        frames = [s for s in reply if s.kind is Kind.FRAME]
        actions = [s for s in reply if s.kind is Kind.ACTION]
        world = TrueWorld(level)
        view = world.reset(episode.seed)
        imagined = [page.figure(view.frame, "given", small=True)]
        real = [page.figure(view.frame, "given", small=True)]
        pixels = player.pixels(frames) if frames else np.zeros((0, 56, 56, 3), np.uint8)
        for action, frame, drawn in zip(actions, frames, pixels, strict=False):
            words = f"{action.action} → {frame.outcome}"
            imagined.append(page.figure(drawn, words, small=True))
            if view.outcome == "ongoing":
                view = world.step(str(action.action))
                real.append(page.figure(view.frame, view.outcome, small=True))
        parts.append(f'<p class="task">“{html.escape(episode.task)}”</p>')
        parts.append(page.strip(imagined, "imagined") + page.strip(real, "the real environment"))
    return "".join(parts)


def score_section(arguments: DemoArguments) -> str:
    """A small evaluation, run here and now."""
    report = evaluate(
        EvalArguments(
            model=arguments.model,
            agent_episodes=arguments.agent_episodes,
            episodes=arguments.episodes,
            first_seed=arguments.first_seed,
        )
    )
    note = (
        f"<p>Measured just now: {arguments.agent_episodes} episodes per level for the agent, "
        f"{arguments.episodes} for the rest. The floor repeats the last known frame, or guesses. "
        "For narrower intervals run <code>python -m eval.run</code>.</p>"
    )
    return note + page.table(report.rows())


def write(arguments: DemoArguments) -> Path:
    """Makes the page and returns its path."""
    torch.manual_seed(arguments.seed)
    model = UnifiedModel.from_pretrained(arguments.model).eval()
    processor = UnifiedProcessor.from_pretrained(arguments.model)
    player = Player(model, processor)
    sections = {
        "It follows instructions in the real environment": agent_section,
        "It simulates": simulator_section,
        "It names the action between two frames": inverse_section,
        "It imagines": joint_section,
    }
    made: list[tuple[str, str]] = []
    for name, section in tqdm(sections.items(), desc="scenes"):
        made.append((name, section(player, arguments)))
    made.append(("Honest figures", score_section(arguments)))
    lead = LEAD.format(parameters=sum(p.numel() for p in model.parameters()))
    path = arguments.out / "index.html"
    with atomic_path(path) as draft:
        draft.write_text(page.document("One transformer, agent and world", lead, made))
    return path


def main() -> None:
    """Command line."""
    arguments = tyro.cli(DemoArguments, description=__doc__)
    with command("eval.demo"):
        path = write(arguments)
    print(f"the page is at {path}")


if __name__ == "__main__":
    main()
