"""Questions about what is seen, was seen and was done, answered word for word."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data.babyai.behaviours import Handler
from data.babyai.expert import Expert
from data.babyai.levels import WORKSHOP
from data.babyai.questions import QUESTIONS, UNKNOWN, Witness, ask_as
from data.babyai.views import ACTIONS
from eval.babyai.player import Player
from eval.babyai.truth import TrueWorld, View
from eval.findings import Section, cell_values, row_of_cells
from eval.world.worlds import find_cases, open_world
from unified.conversation.sequence import Kind, Segment, Sequence, action_segment, text_segment

LEVELS = (WORKSHOP, "GoToLocal", "OpenDoor", "PickupLoc", "GoToRedBall")
MOST_STEPS = 6
_EXPERTS = ("why",)  # kinds that only somebody with a purpose can answer
BATCH = 64


@dataclass(frozen=True)
class Question:
    """A question in mid-episode, and its answer.

    Attributes:
        kind: See `QUESTIONS`.
        task: The mission.
        views: What was seen until now, with the actions between.
        words: What is asked.
        answer: What is true.
    """

    kind: str
    task: str
    views: list[View]
    words: str
    answer: str


Answerer = Callable[[list[Question]], list[str]]
"""Answers each question, in words."""


def make_questions(count: int, first_seed: int) -> list[Question]:
    """`count` questions of every kind, each after some steps of its own episode."""
    return find_cases(QUESTIONS, LEVELS, count, first_seed, _make_question, "questions")


def _make_question(world: TrueWorld, kind: str, seed: int) -> Question | None:
    rng = np.random.default_rng([seed, list(QUESTIONS).index(kind)])
    views = [open_world(world, seed)]
    seen = world.env.gen_obs()["image"]
    witness, handler, expert = Witness(world.env, seen), Handler(rng), Expert(world.env)
    previous = None
    for _ in range(int(rng.integers(MOST_STEPS + 1))):
        if kind in _EXPERTS:
            action, reason = expert.suggest(seen, previous)
            if action is None:
                return None
        else:
            action, reason = ACTIONS[handler.act(seen)], None
        view = world.step(action)
        if view.outcome != "ongoing":
            break
        views.append(view)
        seen = world.env.gen_obs()["image"]
        witness.see(seen, action, reason, is_told=False)
        previous = ACTIONS.index(action)
    if world.view is None or world.view.outcome != "ongoing":
        return None
    asked = ask_as(witness, rng, kind)
    return None if asked is None else Question(kind, world.mission, views, *asked[1:])


class ModelAnswerer:
    """The model as one who is asked."""

    def __init__(self, player: Player):
        """Keeps the player."""
        self.player = player

    def __call__(self, questions: list[Question]) -> list[str]:
        """Answers each question, in words."""
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].views))
        answers = [""] * len(questions)
        with tqdm(total=len(order), desc="questions", leave=False) as bar:
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                for i, words in zip(chosen, self._ask([questions[i] for i in chosen]), strict=True):
                    answers[i] = words
                bar.update(len(chosen))
        return answers

    def _ask(self, questions: list[Question]) -> list[str]:
        player = self.player
        shown = iter(player.encode([view for question in questions for view in question.views]))
        sequences = []
        for question in questions:
            segments: list[Segment] = [text_segment(question.task, "task")]
            for number, view in enumerate(question.views):
                if number:
                    segments.append(action_segment(view.action))
                segments.append(next(shown))
            segments.append(text_segment(question.words, "task"))
            sequences.append(Sequence(segments))
        reply = player.model.generate(
            **player.processor.encode(sequences), query="policy", think=True, max_text_tokens=32
        )
        return [
            next((str(s.text) for s in segments if s.kind is Kind.TEXT), "")
            for segments in player.replies(reply)
        ]


def evaluate_questions(questions: list[Question], answer: Answerer) -> Section:
    """Asks, and compares word for word."""
    given = answer(questions)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    common: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        common[question.kind][question.answer] += 1
    floor: dict[str, list[bool]] = defaultdict(list)
    section = Section(
        "Questions, answered word for word",
        note="The floor gives the most frequent answer of each kind.",
    )
    for question, said in zip(questions, given, strict=True):
        by_kind[question.kind].append(said == question.answer)
        usual = common[question.kind].most_common(1)[0][0]
        floor[question.kind].append(question.answer == usual)
        if said != question.answer:
            section.words.append(
                f"{question.kind}: {question.words} Said: {said or '(nothing)'}. "
                f"True: {question.answer}."
            )
    section.rows.append(row_of_cells("answers right: all kinds", by_kind, floor))
    unknown = [
        said == q.answer for q, said in zip(questions, given, strict=True) if q.answer == UNKNOWN
    ]
    if unknown:
        section.rows.append(row_of_cells("answers right: nobody can know", {"unknown": unknown}))
    section.rows += [
        row_of_cells(f"answers right: {kind}", {kind: found}, {kind: floor[kind]})
        for kind, found in by_kind.items()
    ]
    section.cells["answers right"] = cell_values(by_kind)
    return section
