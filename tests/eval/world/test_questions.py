"""Questions in mid-episode: the truth, the usual answer, and no answer."""

from collections import Counter

import pytest

from data.babyai.questions import QUESTIONS
from eval.babyai.tiles import FRONT_TILE, sprites
from eval.world.questions import Question, evaluate_questions, make_questions

SEED = 1_500_000


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return make_questions(6, SEED)


def test_every_kind_is_asked_as_often_and_the_same_again(questions: list[Question]) -> None:
    assert Counter(q.kind for q in questions) == dict.fromkeys(QUESTIONS, 6)
    again = make_questions(6, SEED)
    assert [(q.words, q.answer) for q in again] == [(q.words, q.answer) for q in questions]
    assert all(view.outcome == "ongoing" for q in questions for view in q.views)


def test_answers_are_what_the_frame_shows(questions: list[Question]) -> None:
    for question in questions:
        front = sprites()[question.views[-1].sprites[FRONT_TILE]]
        if question.kind == "ahead" and front.colour is not None:
            assert front.name in question.answer
        if question.kind == "forward":
            is_free = front.kind == "empty" or front.state == "open"
            assert question.answer == ("yes" if is_free else "no")


def test_the_truth_is_right_and_silence_is_not(questions: list[Question]) -> None:
    told = evaluate_questions(questions, lambda qs: [q.answer for q in qs])
    assert all(row.value.value == 1 for row in told.rows)
    silent = evaluate_questions(questions, lambda qs: [""] * len(qs))
    assert silent.rows[0].value.value == 0
    assert "(nothing)" in silent.words[0]


def test_whoever_gives_the_usual_answer_reaches_the_floor(questions: list[Question]) -> None:
    usual = {
        kind: Counter(q.answer for q in questions if q.kind == kind).most_common(1)[0][0]
        for kind in QUESTIONS
    }
    section = evaluate_questions(questions, lambda qs: [usual[q.kind] for q in qs])
    row = section.rows[0]
    assert row.floor is not None
    assert row.value.value == pytest.approx(row.floor.value)
    assert 0 < row.value.value < 1
    lowest = min(value.value for value in section.cells["answers right"].values())
    assert row.worst is not None
    assert row.worst[1].value == lowest
