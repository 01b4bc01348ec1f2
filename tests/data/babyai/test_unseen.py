"""What goes on by itself, against formulas that were written by hand."""

from typing import Any

import gymnasium
import pytest

from data.babyai.unseen import LONGEST, SHORTEST, UNSEEN_LEVELS

SEEDS = range(8)
LEFT, DONE, TOGGLE = 0, 6, 5


def opened(level: str, seed: int) -> Any:
    env: Any = gymnasium.make(f"BabyAI-{level}-v0", disable_env_checker=True).unwrapped
    env.reset(seed=seed)
    return env


def state(env: Any) -> tuple[Any, ...]:
    thing = env.thing
    return (*map(int, thing.cur_pos), thing.color, getattr(thing, "is_open", None))


def played(env: Any, count: int) -> list[tuple[Any, ...]]:
    """States after each step of one who turns round and waits; the grid must agree with them."""
    states = []
    for step in range(count):
        env.step(LEFT if step < 2 else DONE)
        states.append(state(env))
        found = [cell for cell in env.grid.grid if cell is not None and cell.type != "wall"]
        assert found == [env.thing]
        assert env.grid.get(*env.thing.cur_pos) is env.thing
    return states


def wave(start: int, sign: int, step: int, low: int, high: int) -> int:
    """Where something is that goes to and fro, by folding the line."""
    size = high - low
    phase = (start - low if sign > 0 else 2 * size - (start - low)) + step
    folded = phase % (2 * size)
    return low + (folded if folded <= size else 2 * size - folded)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("level", ["Egg", "Lamp", "Closing"])
def test_what_stays_in_its_place_changes_when_the_formula_says(level: str, seed: int) -> None:
    env = opened(level, seed)
    x, y, colour, _ = state(env)
    delay = env.delay
    assert SHORTEST <= delay <= LONGEST
    assert str(delay) in env.mission
    for number, found in enumerate(played(env, 60), start=1):
        expected = {
            "Egg": (x, y, "red" if number >= delay else "yellow", None),
            "Lamp": (x, y, "yellow" if number // delay % 2 == 0 else "grey", None),
            "Closing": (x, y, colour, number < delay),
        }
        assert found == expected[level]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ball_rolls_to_and_fro_between_the_walls(seed: int) -> None:
    env = opened("Rolling", seed)
    x, y, _, _ = state(env)
    dx, dy = env.heading
    for number, found in enumerate(played(env, 40), start=1):
        along = wave(x if dx else y, dx + dy, number, 1, 6)
        assert found[:2] == ((along, y) if dx else (x, along))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("watered", [None, 0, 3])
def test_a_plant_grows_after_it_was_watered_and_not_without(seed: int, watered: int | None) -> None:
    env = opened("Plant", seed)
    for number in range(1, 50):
        env.step(TOGGLE if number - 1 in (watered, 9 if watered else watered) else DONE)
        is_grown = watered is not None and number >= watered + env.delay
        assert state(env)[2] == ("green" if is_grown else "grey")
        assert env.grid.get(*env.thing.cur_pos) is env.thing


@pytest.mark.parametrize("seed", SEEDS)
def test_the_guard_is_on_the_beat_where_the_number_of_steps_says(seed: int) -> None:
    env = opened("Guard", seed)
    beat, start = env.beat, env.at
    for (x, y), (u, v) in zip(beat, beat[1:] + beat[:1], strict=True):
        assert abs(x - u) + abs(y - v) == 1
    for number, found in enumerate(played(env, 40), start=1):
        assert found[:2] == beat[(start + number) % len(beat)]


def test_the_guard_waits_while_somebody_stands_in_the_way() -> None:
    env = opened("Guard", 0)
    env.agent_pos = env.beat[(env.at + 1) % len(env.beat)]
    at = env.at
    env.step(DONE)
    assert env.at == at
    env.agent_pos = env.cell(0, 0)


@pytest.mark.parametrize("level", UNSEEN_LEVELS)
def test_nothing_of_it_is_carried_off_and_it_begins_in_view(level: str) -> None:
    for seed in SEEDS:
        env = opened(level, seed)
        view = env.gen_obs()["image"]
        assert any(int(kind) in (4, 6, 7) for kind in view[:, :, 0].flatten())
        thing = env.thing
        if level != "Closing":
            assert not thing.can_pickup()
        env.step(3)
        assert env.carrying is None
