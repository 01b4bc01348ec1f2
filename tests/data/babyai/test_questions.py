import numpy as np
import pytest
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from data.babyai.questions import QUESTIONS, UNKNOWN, Witness, ask_as
from data.babyai.recorder import Recorder
from data.babyai.views import ACTIONS, AGENT, FRONT


def walks(level="Workshop", count=6, steps=12):
    """A witness on its way: environment, witness."""
    rng = np.random.default_rng(0)
    recorder = Recorder(level)
    for seed in range(count):
        view = recorder.env.reset(seed=seed)[0]["image"]
        witness = Witness(recorder.env, view)
        for _ in range(steps):
            yield recorder.env, witness
            action = int(rng.integers(6))
            view = recorder.env.step(action)[0]["image"]
            witness.see(view, ACTIONS[action], None, is_told=False)


def answers(kind):
    rng = np.random.default_rng(1)
    for env, witness in walks():
        found = ask_as(witness, rng, kind)
        if found is not None:
            yield env, witness, found[1], found[2]


@pytest.mark.parametrize("kind", [kind for kind in QUESTIONS if kind != "why"])
def test_every_kind_of_question_can_be_asked_and_ends_with_its_mark(kind):
    found = list(answers(kind))
    assert len(found) > 5
    assert all(question.endswith("?") and answer for _, _, question, answer in found)


@pytest.mark.parametrize("kind", ["toggle", "pickup", "drop"])
def test_what_would_happen_is_what_happens(kind):
    rng = np.random.default_rng(1)
    recorder, asked = Recorder("Workshop"), set()
    for seed in range(60):
        before = recorder.env.reset(seed=seed)[0]["image"]
        found = ask_as(Witness(recorder.env, before), rng, kind)
        assert found is not None
        after = recorder.env.step(ACTIONS.index(kind))[0]["image"]
        answer = found[2]
        assert np.array_equal(before, after) == answer.startswith("nothing"), (seed, answer)
        if "door would" in answer:
            assert after[FRONT][2] == (0 if "open" in answer else 1)
        if "carry" in answer:
            assert after[AGENT][0] != before[AGENT][0]
        asked.add(answer.split()[-1])
    assert len(asked) >= 2


def test_where_a_thing_is_agrees_with_the_environment():
    told = 0
    for env, _, question, answer in answers("where"):
        colour, kind = question.rstrip("?").split()[-2:]
        places = [
            (column, row)
            for column in range(env.grid.width)
            for row in range(env.grid.height)
            if (cell := env.grid.get(column, row)) and (cell.color, cell.type) == (colour, kind)
        ]
        if answer in (UNKNOWN, "in my hands") or len(places) != 1:
            continue
        offset = np.subtract(places[0], env.agent_pos)
        ahead, right = int(offset @ env.dir_vec), int(offset @ env.right_vec)
        words = f"{abs(ahead)} {'ahead' if ahead > 0 else 'behind'}" if ahead else ""
        aside = f"{abs(right)} {'right' if right > 0 else 'left'}" if right else ""
        assert answer == (" and ".join(part for part in (words, aside) if part) or "here")
        told += 1
    assert told > 5


def test_what_was_never_seen_cannot_be_known():
    rng = np.random.default_rng(0)
    recorder = Recorder("GoToRedBall")
    unknown = 0
    for seed in range(20):
        view = recorder.env.reset(seed=seed)[0]["image"]
        found = ask_as(Witness(recorder.env, view), rng, "where")
        if found is not None and found[2] == UNKNOWN:
            colour, kind = found[1].rstrip("?").split()[-2:]
            cells = {(int(k), int(c)) for k, c in view[..., :2].reshape(-1, 2)}
            assert (OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour]) not in cells
            unknown += 1
    assert unknown > 0
