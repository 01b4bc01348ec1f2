"""The engine: one model, one thread, and whoever waits for it.

Players hand in jobs. In every tick the thread takes all that wait, and those that go on from a
moment in the same way share one ragged batch. No job knows of another, and one that fails takes no
other with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import (
    Kind,
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.modeling import UnifiedModel
from unified.roles.agent import Agent, action_space_of, encode_observations, frame_size, name_action
from unified.roles.simulation import Simulation, Start
from unified.sampling.drawing import MAX_QUEUED
from unified.sampling.moment import Bench, Moment, split
from unified.sampling.watching import denoise_steps

MAX_BATCH = 32
"""Rows of one batch."""


@dataclass(frozen=True)
class Shown:
    """A frame, and the conversation that ends with it.

    Attributes:
        moment: To go on from.
        pixels: `(H, W, 3)` uint8.
        outcome: What the world says of it.
        chances: Of each outcome, where the model drew the frame.
        seconds: That the model took, with all who were served together.
    """

    moment: Moment
    pixels: np.ndarray
    outcome: str
    chances: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Acted:
    """What an agent chose."""

    action: Any
    said: str | None
    seconds: float


@dataclass(frozen=True)
class Mind:
    """What the model thinks at a frame.

    Attributes:
        actions: Tokens of the next action with their probabilities, most likely first.
        entropy: Of that choice, in bits.
        inverse: What the model reads between the last two frames, likewise; empty at the first.
    """

    actions: list[tuple[str, float]]
    entropy: float
    inverse: list[tuple[str, float]]


@dataclass
class _Job:
    """Work that waits; jobs of one `kind` that is not None may share a batch."""

    kind: Any
    work: Callable[[list[_Job]], list[Any]]
    told: Any
    future: Future[Any] = field(default_factory=Future)


class Engine:
    """Serves jobs until it is closed.

    Attributes:
        ticks: Batches that were run.
        served: Jobs that were served.
    """

    def __init__(self, model: UnifiedModel, processor: UnifiedProcessor, steps: int | None = None):
        """Starts the thread.

        Args:
            model: Read only.
            processor: The model's.
            steps: Denoise steps of a frame; None is the model's own number.
        """
        self.model, self.processor = model, processor
        self.steps = model.config.num_inference_steps if steps is None else steps
        self.actions = action_space_of(processor)
        self.frame_size = frame_size(model, processor)
        self.ticks = self.served = 0
        self._bench = Bench(model)
        self._waiting: list[_Job] = []
        self._news = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def tile(self) -> int:
        """Pixels of a tile: of what one latent of the codec draws."""
        return self.frame_size[0] // self.model.config.latent_grid[0]

    @property
    def knows_world(self) -> bool:
        """Whether the model was taught words of the world."""
        return self.model.config.world_token_id is not None

    # Jobs

    def open(self, start: Start, seed: int) -> Future[Shown]:
        """Opens an episode, as `WorldEnv.reset` does."""
        return self._hand_in(None, self._open, (start, seed))

    def step(self, moment: Moment, turn: list[Segment]) -> Future[Shown]:
        """The frame to which the agent's turn leads, with words of the world behind it."""
        kind = ("step", self._is_long(moment, turn))
        return self._hand_in(kind, self._step, (moment, turn))

    def hear(self, moment: Moment, words: str) -> Future[Moment]:
        """The moment after the agent was told something, as a task is."""
        return self._hand_in(None, self._hear, (moment, words))

    def show(
        self, moment: Moment, turn: list[Segment], pixels: np.ndarray, outcome: str
    ) -> Future[Shown]:
        """Tells the agent's turn and the frame that somebody else's world showed."""
        return self._hand_in("show", self._show, (moment, turn, pixels, outcome))

    def act(self, moment: Moment, temperature: float, seed: int) -> Future[Acted]:
        """What the model does at a moment; the moment stays as it is."""
        return self._hand_in(("act", temperature), self._act, (moment, seed))

    def weigh(
        self, moment: Moment, before: np.ndarray | None, after: np.ndarray, task: str | None
    ) -> Future[Mind]:
        """What the model thinks at a moment.

        Args:
            moment: At a frame that goes on.
            before: The frame before; None at the first.
            after: The frame.
            task: Of the episode.
        """
        return self._hand_in(None, self._weigh, (moment, before, after, task))

    def denoise(self, moment: Moment, turn: list[Segment]) -> Future[list[np.ndarray]]:
        """The frame of `step` after each denoise step, noise and all; the last one is the frame."""
        return self._hand_in(None, self._denoise, (moment, turn))

    def ask(self, moment: Moment | None, pixels: np.ndarray, words: str | None) -> Future[str]:
        """What the model answers.

        Args:
            moment: Where the question is asked; None asks about the frame alone.
            pixels: The frame.
            words: The question; None asks what it sees, outside of the episode.
        """
        return self._hand_in(None, self._ask, (moment, pixels, words))

    def prompt(
        self, messages: list[dict[str, Any]], tell: Callable[[Segment], None], options: Any
    ) -> Future[None]:
        """Answers a conversation; `tell` is called with each segment as soon as it is finished."""
        return self._hand_in(None, self._prompt, (messages, tell, options))

    def close(self) -> None:
        """Finishes what runs, and refuses what waits."""
        with self._news:
            self._is_closed = True
            self._news.notify()
        self._thread.join()

    # The thread

    def _hand_in(self, kind: Any, work: Any, told: Any) -> Future[Any]:
        job = _Job(kind, work, told)
        with self._news:
            if self._is_closed:
                raise ValueError("the server is being stopped; try again when it is back")
            self._waiting.append(job)
            self._news.notify()
        return job.future

    def _serve(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._is_closed:
                    self._news.wait()
                waiting, self._waiting = self._waiting, []
                is_closed = self._is_closed
            if is_closed:
                for job in waiting:
                    job.future.set_exception(ValueError("the server is being stopped"))
                return
            for group in _groups(waiting):
                self._run(group)

    def _run(self, group: list[_Job]) -> None:
        group = [job for job in group if job.future.set_running_or_notify_cancel()]
        if not group:
            return
        self.ticks += 1
        self.served += len(group)
        try:
            with torch.no_grad():
                results = group[0].work(group)
        except Exception as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
                return
            for job in group:  # find the one that is wrong
                self._run([_Job(job.kind, job.work, job.told, _again(job.future))])
            return
        for job, result in zip(group, results, strict=True):
            job.future.set_result(result)

    # Work

    def _open(self, jobs: list[_Job]) -> list[Shown]:
        ((start, seed),) = (job.told for job in jobs)
        began = time.perf_counter()
        options = {"num_inference_steps": self.steps}
        simulation = Simulation(self.model, self.processor, 1, options)
        (info,) = simulation.begin([0], [start], [seed])
        assert simulation.session is not None
        (moment,) = split(simulation.session, [None])
        seconds = time.perf_counter() - began
        return [Shown(moment, simulation.frames[0].copy(), info["outcome"], {}, seconds)]

    def _is_long(self, moment: Moment, turn: list[Segment]) -> bool:
        """Whether what is told needs a pass of its own before the frame is drawn.

        Such rows go by themselves: a row is computed in the same passes whoever is beside it.
        """
        told = len(moment.queue) + len(self.processor.stream(Sequence(turn)))
        return told > MAX_QUEUED or moment.queue.latents is not None

    def _step(self, jobs: list[_Job]) -> list[Shown]:
        began = time.perf_counter()
        moments = [job.told[0] for job in jobs]
        session = self._bench.join(moments)
        session.append([self.processor.stream(Sequence(job.told[1])) for job in jobs])
        reply = session.run("forward", num_inference_steps=self.steps)
        frames = [self._frame(*row) for row in reply.rows()]
        logits = session._logits  # at the frames' ends: the outcome waits to be told
        after = split(session, moments)
        latents = torch.stack([torch.as_tensor(frame.latents).float() for frame in frames])
        pixels = self.processor.decode_latents(latents)
        shown = [
            Shown(moment, pixels[row].copy(), str(frame.outcome), self._chances(logits[row]))
            for row, (moment, frame) in enumerate(zip(after, frames, strict=True))
        ]
        seconds = time.perf_counter() - began
        return [replace(one, seconds=seconds) for one in shown]

    def _denoise(self, jobs: list[_Job]) -> list[list[np.ndarray]]:
        ((moment, turn),) = (job.told for job in jobs)
        session = self._bench.join([moment])
        session.append([self.processor.stream(Sequence(turn))])
        latents = denoise_steps(session, self.steps)[1:]  # the first is nothing but noise
        return [list(self.processor.decode_latents(latents))]

    def _frame(self, ids: torch.Tensor, latents: torch.Tensor) -> Segment:
        segments = self.processor.segments(ids, latents, self.model.config)
        return next(segment for segment in segments if segment.kind is Kind.FRAME)

    def _chances(self, logits: torch.Tensor) -> dict[str, float]:
        """Of the three outcomes."""
        config = self.model.config
        chances = logits[list(config.outcome_token_ids)].softmax(0).tolist()
        names = {
            config.ongoing_token_id: "ongoing",
            config.success_token_id: "success",
            config.failure_token_id: "failure",
        }
        return {names[i]: p for i, p in zip(config.outcome_token_ids, chances, strict=True)}

    def _hear(self, jobs: list[_Job]) -> list[Moment]:
        ((moment, words),) = (job.told for job in jobs)
        session = self._bench.join([moment])
        session.append([self.processor.stream(Sequence([text_segment(words, "task")]))])
        return split(session, [moment])

    def _show(self, jobs: list[_Job]) -> list[Shown]:
        began = time.perf_counter()
        moments = [job.told[0] for job in jobs]
        session = self._bench.join(moments)
        seen = encode_observations(self.model, self.processor, [job.told[2] for job in jobs])
        streams: list[Any] = []
        for job, frame in zip(jobs, seen, strict=True):
            told = frame_segment(latents=frame.latents, outcome=job.told[3])
            streams.append(self.processor.stream(Sequence([*job.told[1], told])))
        session.append(streams)
        _ = session.logits  # passes it through the model
        after = split(session, moments)
        seconds = time.perf_counter() - began
        return [
            Shown(moment, job.told[2], job.told[3], {}, seconds)
            for moment, job in zip(after, jobs, strict=True)
        ]

    def _act(self, jobs: list[_Job]) -> list[Acted]:
        began = time.perf_counter()
        moments = [job.told[0].reseed(job.told[1]) for job in jobs]
        options: dict[str, Any] = {"temperature": jobs[0].kind[1], "max_text_tokens": 48}
        turns = self._turns(moments, options)
        # Who spoke and stopped, as one does who describes, is asked for the action alone.
        silent = [row for row, (action, _) in enumerate(turns) if action is None]
        if silent:
            again = self._turns([moments[row] for row in silent], {**options, "think": False})
            for row, (action, _) in zip(silent, again, strict=True):
                turns[row] = (action, turns[row][1])
        seconds = time.perf_counter() - began
        return [Acted(action, said, seconds) for action, said in turns]

    def _turns(self, moments: list[Moment], options: dict[str, Any]) -> list[tuple[Any, Any]]:
        """Action and words of the model at moments."""
        reply = self._bench.join(moments).run("policy", **options)
        turns = []
        for ids, latents in reply.rows():
            action = said = None
            for segment in self.processor.segments(ids, latents, self.model.config):
                if segment.kind is Kind.ACTION:
                    action = segment.action
                elif segment.kind is Kind.TEXT:
                    said = segment.text
            turns.append((action, said))
        return turns

    def _weigh(self, jobs: list[_Job]) -> list[Mind]:
        ((moment, before, after, task),) = (job.told for job in jobs)
        config = self.model.config
        session = self._bench.join([moment])
        tokens = torch.tensor([[config.agent_token_id, config.action_token_id]])
        session.extend(tokens, torch.tensor([2]))
        actions = self._ranked(session.logits[0])
        inverse: list[tuple[str, float]] = []
        if before is not None:
            frames = encode_observations(self.model, self.processor, [before, after])
            told = [] if task is None else [text_segment(task, "task")]
            inputs = self.processor.encode(
                [Sequence([*told, frames[0], action_segment(None), frames[1]])]
            )
            session = self.model.start(**inputs, memory="window")
            session.extend(torch.tensor([[config.inverse_token_id]]), torch.tensor([1]))
            inverse = self._ranked(session.logits[0])
        entropy = -sum(p * np.log2(p) for _, p in actions if p > 0)
        return [Mind(actions, float(entropy), inverse)]

    def _ranked(self, logits: torch.Tensor) -> list[tuple[str, float]]:
        """The first token of an action, by its probability."""
        config = self.model.config
        first = sorted({i for form in config.listed_action_formats() for i in range(*form[0])})
        chances = logits[first].softmax(0).tolist()
        names = [self.processor.token_names[i].strip("<>") for i in first]
        return sorted(zip(names, chances, strict=True), key=lambda pair: -pair[1])

    def _ask(self, jobs: list[_Job]) -> list[str]:
        ((moment, pixels, words),) = (job.told for job in jobs)
        if words is None:
            return [Agent(self.model, self.processor).describe(pixels)]
        question = text_segment(words, "task")
        if moment is None:
            (frame,) = encode_observations(self.model, self.processor, [pixels])
            session = self.model.start(**self.processor.encode([Sequence([frame, question])]))
        else:
            session = self._bench.join([moment])
            session.append([self.processor.stream(Sequence([question]))])
        reply = session.run("policy", think=True, max_text_tokens=48)
        segments = self.processor.segments(reply.input_ids[0], None, self.model.config)
        return [next((s.text or "" for s in segments if s.kind is Kind.TEXT), "")]

    def _prompt(self, jobs: list[_Job]) -> list[None]:
        ((messages, tell, options),) = (job.told for job in jobs)
        inputs = self.processor.apply_chat_template(messages)

        def told(row: int, ids: torch.Tensor, latents: torch.Tensor | None) -> None:
            for segment in self.processor.segments(ids, latents, self.model.config):
                tell(segment)

        self.model.generate(**inputs, callback=told, **options)
        return [None]

    def name(self, action: Any) -> Any:
        """An action as its action space names it.

        Raises:
            ValueError: If there is no such action.
        """
        return name_action(self.processor, action)

    def turn(self, action: Any, said: str | None, told: str | None) -> list[Segment]:
        """The agent's words and action, and what the world is told.

        Raises:
            ValueError: If there is no such action, or the model knows no words of the world.
        """
        turn = [text_segment(said)] if said else []
        turn.append(action_segment(self.name(action)))
        if told is not None:
            if not self.knows_world:
                raise ValueError("this model was never taught words of the world")
            turn.append(text_segment(told, "world"))
        return turn


def _again(future: Future[Any]) -> Future[Any]:
    """A future whose result becomes that of another one, which runs already."""
    retry: Future[Any] = Future()

    def settle(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        else:
            future.set_exception(error)

    retry.add_done_callback(settle)
    return retry


def _groups(waiting: list[_Job]) -> list[list[_Job]]:
    """Jobs that share a batch, first come first."""
    groups: list[list[_Job]] = []
    open_groups: dict[Any, list[_Job]] = {}
    for job in waiting:
        group = None if job.kind is None else open_groups.get(job.kind)
        if group is not None and len(group) < MAX_BATCH:
            group.append(job)
            continue
        groups.append([job])
        if job.kind is not None:
            open_groups[job.kind] = groups[-1]
    return groups
