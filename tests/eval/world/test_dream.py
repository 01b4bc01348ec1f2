"""The dream against reality: reality as its own dream, and dreams that cheat."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eval.babyai.player import Player
from eval.world.dream import (
    POLICIES,
    Ending,
    Pair,
    Policy,
    compare,
    play,
    play_both,
    rank_correlation,
)
from eval.world.worlds import DreamtWorlds, RealWorlds, Start, starts_of
from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel
from unified.roles.agent import Agent

SEED = 1_500_000
RANDOM = Policy("random", 0.0, 1.0)


def no_agent(temperature: float, generators: list[torch.Generator]) -> Agent:
    raise AssertionError("chance alone asks no agent")


class Wins(RealWorlds):
    """A dream in which everything succeeds at once."""

    def step(self, actions: list[str]) -> None:
        self.outcomes = ["success"] * len(actions)


@pytest.fixture(scope="module")
def starts() -> list[Start]:
    return starts_of("GoToRedBall", 8, SEED) + starts_of("GoToLocal", 8, SEED)


def pairs_of(starts: list[Start], dreams: type[RealWorlds]) -> list[Pair]:
    dream = play(dreams(starts), starts, RANDOM, no_agent, lambda level: 40)
    real = play(RealWorlds(starts), starts, RANDOM, no_agent, lambda level: 40)
    return [
        Pair("random", s.level, i % 2 == 0, d, r)
        for i, (s, d, r) in enumerate(zip(starts, dream, real, strict=True))
    ]


def test_reality_agrees_with_itself(starts: list[Start]) -> None:
    pairs = pairs_of(starts, RealWorlds)
    assert any(pair.real.success for pair in pairs)
    assert all(pair.dream == pair.real for pair in pairs)
    rows = {row.label: row.value.value for row in compare(pairs).rows}
    assert rows["same verdict"] == rows["same verdict, goal out of it"] == 1
    assert rows["success in the dream only"] == rows["success in reality only"] == 0


def test_a_dream_that_always_succeeds_is_counted_as_dream_only(starts: list[Start]) -> None:
    pairs = pairs_of(starts, Wins)
    won = float(np.mean([pair.real.success for pair in pairs]))
    rows = {row.label: row for row in compare(pairs).rows}
    assert rows["same verdict"].value.value == pytest.approx(won)
    assert rows["success in the dream only"].value.value == pytest.approx(1 - won)
    assert rows["rank correlation over policies and levels"].value.value == 0


def test_the_floor_says_of_a_cell_what_is_more_frequent_there() -> None:
    endings = [Ending(i < 3, 5) for i in range(4)]
    pairs = [Pair("random", "GoToLocal", True, Ending(False, 5), real) for real in endings]
    row = compare(pairs).rows[0]
    assert row.value.value == 0.25
    assert row.floor is not None
    assert row.floor.value == 0.75


def test_ranks_correlate_as_spearman_says() -> None:
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 20, 90])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # By hand: ranks (0.5, 0.5, 2, 3) and (0, 2, 1, 3).
    value = rank_correlation(np.array([1, 1, 2, 3]), np.array([0.1, 0.3, 0.2, 0.4]))
    assert value == pytest.approx(3.0 / np.sqrt(4.5 * 5))
    assert rank_correlation(np.array([1, 1]), np.array([1, 2])) == 0


def test_the_same_policy_begins_alike_in_dreams_and_in_reality(
    untrained: Callable[..., str], starts: list[Start]
) -> None:
    folder = untrained()
    model = UnifiedModel.from_pretrained(folder).eval()
    player = Player(model, UnifiedProcessor.from_pretrained(folder))
    few = starts[:2]
    done: list[list[str]] = []

    class Noted(RealWorlds):
        def step(self, actions: list[str]) -> None:
            done.append(actions)
            super().step(actions)

    class NotedDreams(DreamtWorlds):
        def step(self, actions: list[str]) -> None:
            done.append(actions)
            super().step(actions)

    def agent_of(temperature: float, generators: list[torch.Generator]) -> Agent:
        return Agent(
            player.model,
            player.processor,
            temperature=temperature,
            think=False,
            generator=generators,
        )

    for policy in POLICIES[1:3]:
        done.clear()
        for worlds in (Noted(few), NotedDreams(player, few, num_inference_steps=1)):
            play(worlds, few, policy, agent_of, lambda level: 1)
        assert done[0] == done[1]


def test_every_policy_is_played_from_every_start_in_both(
    untrained: Callable[..., str], starts: list[Start]
) -> None:
    folder = untrained()
    model = UnifiedModel.from_pretrained(folder).eval()
    player = Player(model, UnifiedProcessor.from_pretrained(folder))
    policies = POLICIES[1], POLICIES[3]
    pairs = play_both(player, starts[:2], RealWorlds, policies=policies, max_steps=lambda level: 2)
    assert [pair.policy for pair in pairs] == ["temperature 1"] * 2 + ["random"] * 2
    assert all(pair.dream == pair.real for pair in pairs)
