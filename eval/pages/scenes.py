"""The scenes of the demonstration: what the model does, beside what is true.

Everywhere the words above a frame say what led to it: what the agent said, and what it did.
"""

import contextlib
import html
import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval.babyai.agent import play
from eval.babyai.episodes import LEVELS, TrueEpisode, lasting_episodes, recorded_episodes
from eval.babyai.player import Player
from eval.babyai.tiles import (
    FRAME_SIZE,
    Sprite,
    read_frame,
    sprite_id,
    sprite_tiles,
)
from eval.babyai.truth import Knowledge, TrueWorld
from eval.game import Moment, shown, told
from eval.pages import page

NAMED = ("left", "right", "forward", "pickup", "drop", "toggle")
"""Actions that the inverse scene wants to show."""
SEARCHED = 12
"""Recorded episodes of each level in which it looks for them."""


@dataclass(frozen=True)
class Scenery:
    """What all scenes share.

    Attributes:
        player: The model.
        first_seed: Of the episodes; the first ones are shown.
        context_frames: True frames before the simulated ones.
        horizon: Simulated frames.
        seed: Of the model's noise.
    """

    player: Player
    first_seed: int
    context_frames: int
    horizon: int
    seed: int


@dataclass(frozen=True)
class Simulated:
    """A rollout beside the truth: per frame what was drawn, and which tiles were wrong or open."""

    episode: TrueEpisode
    given: int
    drawn: list[Moment]
    wrong: list[np.ndarray]
    open_tiles: list[np.ndarray]


def legend() -> str:
    """What one sees in a frame, and what the colours of the comparisons mean."""
    named = {
        "the agent": Sprite("agent"),
        "the agent, carrying a ball": Sprite("agent", carries=Sprite("ball", "blue")),
        "wall": Sprite("wall"),
        "closed door": Sprite("door", "red", "closed"),
        "open door": Sprite("door", "red", "open"),
        "locked door": Sprite("door", "red", "locked"),
        "key": Sprite("key", "yellow"),
        "ball": Sprite("ball", "green"),
        "box": Sprite("box", "purple"),
        "out of sight": Sprite("unseen"),
    }
    tiles = "".join(
        f"<span>{page.picture(sprite_tiles()[sprite_id(sprite)].repeat(3, 0).repeat(3, 1))}"
        f"{html.escape(name)}</span>"
        for name, sprite in named.items()
    )
    marks = "".join(
        f'<span><i class="{name}"></i>{words}</span>'
        for name, words in (
            ("wrong", "wrong, though it could be known"),
            ("open", "nobody could know: not in sight before"),
        )
    )
    return (
        '<div class="legend"><p>Each picture is what the agent sees, 7x7 tiles. The triangle is '
        "the agent itself: it stands at the middle of the lowest row and looks up, so when it "
        "turns, the room turns around it. What it carries is drawn under it.</p>"
        f"<p>{tiles}{marks}</p></div>"
    )


def agent_scene(scenery: Scenery) -> str:
    """The agent in the real environment, one episode per level."""
    parts = []
    for level in LEVELS:
        world, player = TrueWorld(level), scenery.player
        with contextlib.redirect_stdout(io.StringIO()):
            steps = play(player.model, player.processor, world, scenery.first_seed, think=True)
        heads = ["start"]
        for step in steps[:-1]:
            words = f"“{step.thought}”\n" if step.thought else ""
            heads.append(f"{words}{step.action}")
        outcome = steps[-1].view.outcome
        ended = {"success": "done", "ongoing": "not done"}.get(outcome, outcome)
        rows = {"": [page.picture(step.view.frame) for step in steps]}
        label = f"{level}: “{world.mission}”, {ended} after {len(steps) - 1} actions"
        parts.append(page.lanes(rows, heads, label))
    return "".join(parts)


def simulate(scenery: Scenery, level: str) -> Simulated:
    """The first long enough episode of a level, drawn by the model under the same actions."""
    given, player = scenery.context_frames, scenery.player
    steps = given + scenery.horizon - 1
    episode = lasting_episodes(level, 1, scenery.first_seed, steps)[0]
    game, knowledge = player.begin([episode], scenery.seed), Knowledge()
    knowledge.see(episode.views[0])
    for view in episode.views[1:given]:
        knowledge.see(view)
        game.tell([told(view)])
    result = Simulated(episode, given, [], [], [])
    for view in episode.views[given:]:
        moment = game.draw([view.action])[0]
        classes = knowledge.imagine(view)
        result.drawn.append(moment)
        result.wrong.append(classes.determined & (read_frame(moment.frame)[0] != view.sprites))
        result.open_tiles.append(~classes.determined)
    return result


def simulator_scene(simulated: list[Simulated]) -> str:
    """Rollouts beside the truth, under the same actions."""
    parts = []
    for one in simulated:
        views, given = one.episode.views, one.given
        heads = [f"last of {given} given", *(str(view.action) for view in views[given:])]
        marks, counts = [], []
        for moment, wrong, open_tiles in zip(one.drawn, one.wrong, one.open_tiles, strict=True):
            marks.append(page.picture(page.difference(moment.frame, wrong, open_tiles)))
            known = int((~open_tiles).sum())
            right = known - int(wrong.sum())
            tone = "bad" if wrong.any() else "good"
            words = f"{right} of {known}" if known else "all open"
            counts.append(f'<span class="{tone if known else ""}">{words}</span>')
        rows = {
            "real": [page.picture(view.frame) for view in views[given - 1 :]],
            "model": ["draws from here on", *(page.picture(m.frame) for m in one.drawn)],
            "marked": ["", *marks],
            "tiles right": ["", *counts],
        }
        label = f"{one.episode.level}: “{one.episode.task}”"
        parts.append(page.lanes(rows, heads, label))
    return "".join(parts)


def inverse_scene(scenery: Scenery) -> str:
    """Two frames each, and the action between them as the model names it."""
    pairs: dict[str, tuple[TrueEpisode, int]] = {}
    for level in (*LEVELS[::-1],):
        for episode in recorded_episodes(level, SEARCHED, scenery.first_seed):
            for t, action in enumerate(episode.actions):
                before, after = episode.views[t], episode.views[t + 1]
                if (before.sprites != after.sprites).any():
                    pairs.setdefault(action, (episode, t))
    cards = []
    for action in NAMED:
        if action not in pairs:
            continue
        episode, t = pairs[action]
        short = replace(episode, views=episode.views[t : t + 2])
        named = scenery.player.begin([short], scenery.seed).name([shown(short.views[1])])[0]
        tone = "good" if named == action else "bad"
        verdict = "correct" if named == action else f"it was {action}"
        cards.append(
            f'<div class="pair"><p class="{tone}"><b>{html.escape(named)}</b>: {verdict}</p>'
            + "".join(page.picture(view.frame) for view in short.views)
            + "</div>"
        )
    return f'<div class="pairs">{"".join(cards)}</div>'


def joint_scene(scenery: Scenery) -> str:
    """An imagined episode, and what the environment says to its actions."""
    parts = []
    for level in LEVELS[:2]:
        episode = lasting_episodes(level, 1, scenery.first_seed, 1)[0]
        begun = replace(episode, views=episode.views[:1])
        moments = scenery.player.begin([begun], scenery.seed).imagine(8, 0.7)[0]
        world = TrueWorld(level)
        with contextlib.redirect_stdout(io.StringIO()):
            view = world.reset(episode.seed)
        heads = ["start (given)"]
        imagined, real = [page.picture(view.frame)], [page.picture(view.frame)]
        outcomes, truths = ["ongoing"], ["ongoing"]
        for moment in moments:
            heads.append(str(moment.action))
            imagined.append(page.picture(moment.frame))
            outcomes.append(str(moment.outcome))
            is_on = view.outcome == "ongoing"
            view = world.step(str(moment.action)) if is_on else view
            real.append(page.picture(view.frame) if is_on else "")
            truths.append(view.outcome if is_on else "")
        rows = {
            "imagined": imagined,
            "it says": outcomes,
            "real": real,
            "in truth": truths,
        }
        parts.append(page.lanes(rows, heads, f"{level}: “{episode.task}”"))
    return "".join(parts)


def animation(simulated: list[Simulated]) -> str:
    """The first impression: truth and model side by side, moving, as an animated picture."""
    frames: list[Image.Image] = []
    for one in simulated:
        for t, view in enumerate(one.episode.views):
            is_given = t < one.given
            drawn = view.frame if is_given else one.drawn[t - one.given].frame
            frames.append(_side_by_side(view.frame, drawn, one.episode.task, view.action, is_given))
    if not frames:
        return ""
    shades = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    shades[0].save(
        buffer, format="GIF", save_all=True, append_images=shades[1:], duration=450, loop=0
    )
    words = "left the real environment, right what the model draws under the same actions"
    return page.data_picture(buffer.getvalue(), "image/gif", words, "hero")


def _side_by_side(
    truth: np.ndarray, drawn: np.ndarray, task: str, action: str | None, is_given: bool
) -> Image.Image:
    scale, gap, head = 5, 12, 64
    side = FRAME_SIZE * scale
    canvas = Image.new("RGB", (2 * side + gap, side + head), (18, 18, 18))
    for i, frame in enumerate((truth, drawn)):
        image = Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(image, (i * (side + gap), head))
    pen = ImageDraw.Draw(canvas)
    pen.font = ImageFont.load_default(size=23)
    pen.text((6, 3), f"task: {task}", fill=(235, 235, 235))
    pen.text((6, 32), f"real: {action or 'start'}", fill=(180, 180, 180))
    words = "model: is shown it" if is_given else "model: dreams it"
    tone = (180, 180, 180) if is_given else (120, 170, 255)
    pen.text((side + gap + 6, 32), words, fill=tone)
    return canvas
