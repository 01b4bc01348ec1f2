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
from unified.command import command
from unified.files import atomic_path

LEAD = (
    "One transformer, {parameters:,} parameters, on a laptop's processor. It reads a task, sees "
    "frames, speaks and acts; and the same weights draw the next frame, name the action between "
    "two frames, and imagine whole episodes. All seeds below were never trained on, and were not "
    "chosen for their looks: they are the first ones."
)


SIMULATES = (
    "<p>Given the task, the first frames and the actions, the model draws every later frame. Above "
    "each frame stands the action that led to it.</p>"
)
IMAGINES = (
    "<p>From the task and one frame the model goes on alone: it chooses actions and draws what "
    "they lead to. Below, the real environment under the same actions. Where nothing was in sight "
    "before, they may differ.</p>"
)
NEXT = """
<p>Ask it what follows from a frame, such as one of these:</p>
<pre>unified prompt --task "open the red door" --frame a.png --action left --query forward</pre>
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
        for name in ("model", "shift", "repeat")
    }
    rows = [
        row for row in report.rows() if not row[0].startswith("rollout") and "recall" not in row[0]
    ]
    count = len(LEVELS) * arguments.episodes
    note = (
        f"<p>Measured just now: {arguments.agent_episodes} episodes of each of {len(LEVELS)} "
        f"levels for the agent, {count} episodes in all for the rest. So few episodes leave wide "
        "intervals: 100 % of 16 episodes says 81 % or more. The model card has the figures of "
        "many. Bold is what no simple rule reaches.</p>"
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
        "It follows instructions in the real environment": lambda: agent_scene(scenery),
        "It simulates": lambda: SIMULATES + simulator_scene(simulated),
        "It names the action between two frames": lambda: inverse_scene(scenery),
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
        opening = f"{lead}</p><p>{animation(simulated)}"
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
