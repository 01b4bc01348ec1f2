"""The demonstration: one small model acts, simulates, explains and imagines, in the real BabyAI.

python -m eval.demo --out runs/demo
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from eval.babyai.episodes import EVALUATION_SEED, LEVELS
from eval.babyai.player import Player
from eval.pages import page
from eval.pages.scenes import (
    Scenery,
    agent_scene,
    animation,
    inverse_scene,
    joint_scene,
    legend,
    simulate,
    simulator_scene,
)
from eval.report import load
from eval.run import EvalArguments, evaluate
from eval.statistics import wilson_interval
from unified.command import command
from unified.files import atomic_path

LEAD = (
    "One transformer, {parameters:,} parameters, on a laptop's processor. It reads a task, sees "
    "frames, speaks and acts; and the same weights draw the next frame, name the action between "
    "two frames, and imagine whole episodes. All seeds below were never trained on, and were not "
    "chosen for their looks: they are the first ones."
)


FOLLOWS = (
    "<p>The frames are the real environment's, the model acts in it. Above each frame stands what "
    "led to it: what the agent said, in quotation marks, and what it did.</p>"
)
SIMULATES = (
    "<p>Given the task, the first frames and the actions, the model draws every later frame. Above "
    "each frame stands the action that led to it.</p>"
)
NAMES = (
    "<p>The model is shown two frames and not told what was done between them. Above each pair "
    "stands the action that it names.</p>"
)
IMAGINES = (
    "<p>From the task and one frame the model goes on alone: it chooses actions and draws what "
    "they lead to. Below, the real environment under the same actions. What comes into sight for "
    "the first time is invented, so there they differ.</p>"
)
NEXT = """
<p>Play it: <code>make play</code> opens <a href="http://127.0.0.1:8000/">a page</a> on which you
steer the dream, hand the seat to the model, go back in time, and see reality beside it
(<code>docs/play.md</code>).</p>
<p>The other commands are for a shell in which the environment that <code>make</code> has made is
active:</p>
<pre>source .venv/bin/activate</pre>
<p>Ask it what follows from a frame; the picture is then in <code>out/</code>:</p>
<pre>unified sample --level OpenDoor --out a.png
unified prompt --task "open the red door" --frame a.png --action left --out out/</pre>
<p>Measure it well (a quarter of an hour):</p>
<pre>python -m eval.run --model babyai</pre>
<p>Teach it something, and see whether it worked:</p>
<pre>python -m data.prepare babyai --levels PutNextLocal --episodes 1000 --out runs/putnext
python -m train.finetune --model babyai --data runs/putnext --out runs/lora</pre>
<p>Record your own environment, or import what you have (<code>docs/data.md</code>):</p>
<pre>python -m data.record --env CartPole-v1 --out runs/cartpole
python -m data.prepare --help</pre>
"""


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
    """Seed of the model's noise."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""


def score_section(arguments: DemoArguments) -> str:
    """A small evaluation, run here and now, and the curve of a rollout."""
    report = evaluate(
        EvalArguments(
            model=arguments.model,
            agent_episodes=arguments.agent_episodes,
            episodes=arguments.episodes,
            first_seed=arguments.first_seed,
            device=arguments.device,
        )
    )
    lines = {
        name: [
            (h, estimate)
            for h in report.horizons()
            if (estimate := report.tally.estimate(f"rollout/{h}/determined/{name}")) is not None
        ]
        for name in ("repeat", "shift", "map", "model")  # the last one on top
    }
    rows = [
        row for row in report.rows() if not row[0].startswith("rollout") and "recall" not in row[0]
    ]
    count = len(LEVELS) * arguments.episodes
    least = 100 * wilson_interval(arguments.agent_episodes, arguments.agent_episodes).low
    note = (
        f"<p>Measured just now: {arguments.agent_episodes} episodes of each of {len(LEVELS)} "
        f"levels for the agent, {count} episodes in all for the rest. So few episodes leave wide "
        f"intervals: success in all of {arguments.agent_episodes} says {least:.0f} % or more. The "
        "model card has the figures of many.</p>"
        "<p>Floors are simple rules that learn nothing: <i>repeat</i> shows the last frame again, "
        "<i>shift</i> moves it as the action does, <i>map</i> remembers all that was seen; "
        "<i>scripted</i> walks to what the task names if it is in sight, <i>random</i> acts by "
        "chance. Bold is what no floor reaches. A tile is <i>determined</i> if the frames before "
        "and the actions leave one possibility.</p>"
    )
    title = "Tiles that could be known and are right, in per cent, over the frames of a rollout"
    drawn = page.curve(lines, title, scale=100)
    return note + drawn + page.table(rows)


def write(arguments: DemoArguments) -> Path:
    """Makes the page and returns its path."""
    torch.manual_seed(arguments.seed)
    model, processor = load(arguments.model, arguments.device)
    scenery = Scenery(
        Player(model, processor),
        arguments.first_seed,
        arguments.context_frames,
        arguments.horizon,
        arguments.seed,
    )
    simulated = [simulate(scenery, level) for level in tqdm(LEVELS, desc="simulator", leave=False)]
    scenes = {
        "It follows instructions in the real environment": lambda: FOLLOWS + agent_scene(scenery),
        "It simulates": lambda: SIMULATES + simulator_scene(simulated),
        "It names the action between two frames": lambda: NAMES + inverse_scene(scenery),
        "It imagines": lambda: IMAGINES + joint_scene(scenery),
        "Honest figures": lambda: score_section(arguments),
    }
    rendered = [("How to read the pictures", legend())]
    for name, scene in tqdm(scenes.items(), desc="scenes"):
        rendered.append((name, scene()))
    rendered.append(("What next", NEXT))
    lead = LEAD.format(parameters=sum(p.numel() for p in model.parameters()))
    path = arguments.out / "index.html"
    with atomic_path(path) as draft:
        words = "Left the real environment, right the model under the same actions."
        opening = f'{lead}</p>{animation(simulated)}<p class="label">{words}'
        draft.write_text(page.document("One transformer, agent and world", opening, rendered))
    return path


def main() -> None:
    """Command line."""
    arguments = tyro.cli(DemoArguments, description=__doc__)
    with command("eval.demo"):
        path = write(arguments)
    print(f"the page is at {path}")


if __name__ == "__main__":
    main()
