"""The dream against reality: the same policies from the same first frames, in both."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from eval.babyai.player import Player
from eval.findings import Row, Section, mean_of_cells, row_of_cells
from eval.statistics import Estimate
from eval.world.words import holds_goal
from eval.world.worlds import RealWorlds, Start, Worlds
from unified.roles.agent import Agent

LEVELS = {"GoToRedBall": 24, "GoToLocal": 24, "PickupLoc": 32, "OpenDoor": 40}
"""Levels, and most steps of an episode there."""
_ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
_CHANCES = (0.2, 0.2, 0.35, 0.1, 0.05, 0.1, 0.0)
_AGENT_SEED = 1 << 40  # its noise is none of the world's
_RESAMPLES = 2000


@dataclass(frozen=True)
class Policy:
    """The model as an agent, and how much chance has a say.

    Attributes:
        name: In words.
        temperature: Of the agent's tokens.
        noise: Share of steps at which chance acts instead.
    """

    name: str
    temperature: float
    noise: float


POLICIES = (
    Policy("temperature 0", 0.0, 0.0),
    Policy("temperature 1", 1.0, 0.0),
    Policy("30 % noise", 0.0, 0.3),
    Policy("random", 0.0, 1.0),
)


@dataclass(frozen=True)
class Ending:
    """How an episode ended, and after how many steps; one cut off did not succeed."""

    success: bool
    steps: int


def play(
    worlds: Worlds,
    starts: list[Start],
    policy: Policy,
    agent_of: Callable[[float, list[torch.Generator]], Agent],
    max_steps: Callable[[str], int],
) -> list[Ending]:
    """Plays every episode; chance draws the same in any kind of world."""
    chance = [np.random.default_rng([start.seed, 1]) for start in starts]
    generators = [torch.Generator().manual_seed(_AGENT_SEED + start.seed) for start in starts]
    agent = agent_of(policy.temperature, generators) if policy.noise < 1 else None
    longest = [max_steps(start.level) for start in starts]
    endings = [Ending(False, steps) for steps in longest]
    alive = list(range(len(starts)))
    for step in tqdm(range(1, max(longest) + 1), desc=policy.name, leave=False):
        draws = [chance[i].random() < policy.noise for i in alive]
        random = [str(chance[i].choice(_ACTIONS, p=_CHANCES)) for i in alive]
        if agent is not None:
            actions = agent.act(list(worlds.frames), [starts[i].task for i in alive])
            told = [r if drawn else None for r, drawn in zip(random, draws, strict=True)]
            agent.override_action(told)
            actions = [t or str(a) for t, a in zip(told, actions, strict=True)]
        else:
            actions = random
        worlds.step(actions)
        going = []
        for row, i in enumerate(alive):
            if worlds.outcomes[row] != "ongoing":
                endings[i] = Ending(worlds.outcomes[row] == "success", step)
            elif step < longest[i]:
                going.append(row)
        if not going:
            break
        if len(going) < len(alive):
            worlds.keep(going)
            if agent is not None:
                agent.keep(going)
        alive = [alive[row] for row in going]
    return endings


@dataclass(frozen=True)
class Pair:
    """One episode in the dream and in reality."""

    policy: str
    level: str
    goal_in_view: bool
    dream: Ending
    real: Ending


def play_both(
    player: Player,
    starts: list[Start],
    dreams: Callable[[list[Start]], Worlds],
    *,
    policies: tuple[Policy, ...] = POLICIES,
    max_steps: Callable[[str], int] = LEVELS.__getitem__,
    think: bool | None = False,
) -> list[Pair]:
    """Every policy from every start, in dreams and in the real environment."""

    def agent_of(temperature: float, generators: list[torch.Generator]) -> Agent:
        return Agent(
            player.model,
            player.processor,
            temperature=temperature,
            think=think,
            generator=generators,
        )

    pairs = []
    for policy in policies:
        dream = play(dreams(starts), starts, policy, agent_of, max_steps)
        real = play(RealWorlds(starts), starts, policy, agent_of, max_steps)
        for start, dreamt, true in zip(starts, dream, real, strict=True):
            assert start.view is not None
            shown = holds_goal(start.view.sprites, start.task)
            pairs.append(Pair(policy.name, start.level, shown, dreamt, true))
    return pairs


def compare(pairs: list[Pair]) -> Section:
    """What the pairs say."""
    section = Section(
        "The dream against reality: the same first frames, tasks and policies",
        note="Agreement: the episode succeeds in both or in neither. Its floor says of all "
        "episodes of a cell (a policy in a level) what is more frequent there. The dream knows "
        "the task and the promise that it can be done.",
    )
    for name, chosen in (
        ("same verdict", pairs),
        ("same verdict, goal in the first view", [p for p in pairs if p.goal_in_view]),
        ("same verdict, goal out of it", [p for p in pairs if not p.goal_in_view]),
    ):
        if chosen:
            cells = _cells(chosen, lambda p: p.dream.success == p.real.success)
            section.rows.append(row_of_cells(name, cells, _majority(chosen)))
    dream, real = _cells(pairs, lambda p: p.dream.success), _cells(pairs, lambda p: p.real.success)
    for name, cells in (("dream", dream), ("reality", real)):
        section.rows.append(
            row_of_cells(f"success in the {name}".replace("the reality", name), cells)
        )
    for policy in dict.fromkeys(pair.policy for pair in pairs):
        for name, cells in (("dream", dream), ("reality", real)):
            of_policy = {cell: v for cell, v in cells.items() if cell.startswith(policy)}
            section.rows.append(row_of_cells(f"success of {policy}: {name}", of_policy))
    for name, wins in (
        ("success in the dream only", _cells(pairs, lambda p: p.dream.success > p.real.success)),
        ("success in reality only", _cells(pairs, lambda p: p.real.success > p.dream.success)),
    ):
        worst = max(wins, key=lambda cell: float(np.mean(wins[cell])))
        value = mean_of_cells(wins)
        found = worst, mean_of_cells({worst: wins[worst]})
        section.rows.append(Row(name, value, len(pairs), worst=found))
    section.rows.append(_ranks(dream, real))
    for name, both in (
        ("dream", [p.dream.steps for p in pairs if p.dream.success and p.real.success]),
        ("reality", [p.real.steps for p in pairs if p.dream.success and p.real.success]),
    ):
        if both:
            section.rows.append(_mean(f"steps of what succeeds in both: {name}", both))
    section.cells["same verdict"] = {
        cell: mean_of_cells({cell: found})
        for cell, found in _cells(pairs, lambda p: p.dream.success == p.real.success).items()
    }
    return section


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where one does not vary."""

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])

    a, b = ranks(np.asarray(first)), ranks(np.asarray(second))
    if not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(dream: dict[str, list[bool]], real: dict[str, list[bool]]) -> Row:
    """Over policies in levels; the interval resamples the episodes of each."""
    rng = np.random.default_rng(0)
    pairs = [np.array([dream[cell], real[cell]]) for cell in dream]

    def value(found: list[np.ndarray]) -> float:
        means = np.array([pair.mean(1) for pair in found])
        return rank_correlation(means[:, 0], means[:, 1])

    drawn = [
        value([pair[:, rng.integers(pair.shape[1], size=pair.shape[1])] for pair in pairs])
        for _ in range(_RESAMPLES // 4)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    estimate = Estimate(value(pairs), float(low), float(high))
    floor = Estimate(0.0, 0.0, 0.0)
    label = "rank correlation over policies and levels"
    return Row(label, estimate, len(pairs), floor, is_share=False)


def _mean(label: str, values: list[int]) -> Row:
    rng = np.random.default_rng(0)
    found = np.array(values)
    means = found[rng.integers(len(found), size=(_RESAMPLES, len(found)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    estimate = Estimate(float(found.mean()), float(low), float(high))
    return Row(label, estimate, len(found), is_share=False)


def _cells(pairs: list[Pair], verdict: Callable[[Pair], bool]) -> dict[str, list[bool]]:
    cells: dict[str, list[bool]] = defaultdict(list)
    for pair in pairs:
        cells[f"{pair.policy} in {pair.level}"].append(verdict(pair))
    return dict(cells)


def _majority(pairs: list[Pair]) -> dict[str, list[bool]]:
    """Whether an episode really ends as most of its cell do."""
    real = _cells(pairs, lambda pair: pair.real.success)
    often = {cell: sum(found) * 2 >= len(found) for cell, found in real.items()}
    return {cell: [won == often[cell] for won in found] for cell, found in real.items()}
