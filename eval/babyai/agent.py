"""The model as an agent: success in the real environment, on seeds it never saw."""

import contextlib
import io
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from eval.babyai.scripted import Acting, RandomAgent, ScriptedAgent
from eval.babyai.truth import TrueWorld, View
from eval.statistics import Estimate, wilson_interval
from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel
from unified.roles.agent import Agent
from unified.roles.planning import PlanOptions

TEMPERATURE = 0.5
"""Temperature of an evaluated agent. At 0 it may turn in circles without end."""


@dataclass(frozen=True)
class AgentResult:
    """How an agent did on one level.

    Attributes:
        level: Its name.
        success: Share of episodes that reached the goal.
        steps: Mean number of steps of the successful ones; None if there are none.
        failures: Seeds of the others.
        floors: What simple players reach on the same seeds, by name.
    """

    level: str
    success: Estimate
    steps: float | None
    failures: list[int] = field(default_factory=list)
    floors: dict[str, Estimate] = field(default_factory=dict)


def evaluate_agent(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    level: str,
    *,
    episodes: int,
    first_seed: int,
    temperature: float = TEMPERATURE,
    think: bool | None = None,
    max_steps: int = 64,
    plan: PlanOptions | None = None,
    seed: int = 0,
) -> AgentResult:
    """Plays `episodes` episodes, beside a heuristic without memory and random actions."""
    seeds = range(first_seed, first_seed + episodes)
    agent = Agent(
        model,
        processor,
        temperature=temperature,
        think=think,
        plan=plan,
        generator=[torch.Generator().manual_seed(seed + s) for s in seeds],
    )
    result = play_level(agent, level, seeds, max_steps=max_steps)
    rules = {"scripted": ScriptedAgent(seeds), "random": RandomAgent(seeds)}
    floors = {
        name: play_level(rule, level, seeds, max_steps=max_steps).success
        for name, rule in rules.items()
    }
    return replace(result, floors=floors)


def play_level(agent: Acting, level: str, seeds: Rows[int], *, max_steps: int) -> AgentResult:
    """Plays these seeds side by side until each ends or `max_steps` have passed.

    An episode that has not reached its goal by then counts as failed.
    """
    worlds = [TrueWorld(level) for _ in seeds]
    with contextlib.redirect_stdout(io.StringIO()):  # the environment prints rejected layouts
        frames = [world.reset(s).frame for world, s in zip(worlds, seeds, strict=True)]
    tasks: list[str | None] = [world.mission for world in worlds]
    alive = list(range(len(seeds)))
    lengths: dict[int, int] = {}
    for step in tqdm(range(1, max_steps + 1), desc=f"agent {level}", leave=False):
        actions = agent.act([frames[i] for i in alive], [tasks[i] for i in alive])
        going = []
        for row, (i, action) in enumerate(zip(alive, actions, strict=True)):
            view = worlds[i].step(str(action))
            frames[i] = view.frame
            if view.outcome == "success":
                lengths[i] = step
            elif view.outcome == "ongoing":
                going.append(row)
        if not going:
            break
        if len(going) < len(alive):
            agent.keep(going)
        alive = [alive[row] for row in going]
    steps = sum(lengths.values()) / len(lengths) if lengths else None
    failures = [s for i, s in enumerate(seeds) if i not in lengths]
    return AgentResult(level, wilson_interval(len(lengths), len(seeds)), steps, failures)


@dataclass(frozen=True)
class PlayedStep:
    """A view of a played episode, and what the agent said and did there (None at the end)."""

    view: View
    thought: str | None = None
    action: str | None = None


def play(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    world: TrueWorld,
    seed: int,
    *,
    think: bool | None = None,
    temperature: float = TEMPERATURE,
    max_steps: int = 32,
) -> list[PlayedStep]:
    """One episode, to look at."""
    generator = torch.Generator().manual_seed(seed)
    agent = Agent(model, processor, think=think, temperature=temperature, generator=generator)
    view = world.reset(seed)
    steps = []
    while view.outcome == "ongoing" and len(steps) < max_steps:
        action = str(agent.act(view.frame, world.mission))
        steps.append(PlayedStep(view, agent.thought, action))
        view = world.step(action)
    return [*steps, PlayedStep(view)]
