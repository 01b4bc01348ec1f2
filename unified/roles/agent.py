"""Agent: the model plays. Observations in, actions out, for one environment or for many at once."""

from collections.abc import Sequence as Rows
from numbers import Integral
from typing import Any

import numpy as np
import torch

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.reading import check_processor
from unified.conversation.sequence import (
    Kind,
    Segment,
    Sequence,
    action_segment,
    check_text,
    frame_segment,
    text_segment,
)
from unified.conversation.stream import TokenStream
from unified.media.action_space import ActionSpace
from unified.modeling import UnifiedModel
from unified.roles.planning import Future, PlanOptions, best_action, imagine
from unified.sampling.generation import Session
from unified.sampling.options import Options, count

DESCRIBE = "describe what you see"


class Agent:
    """Plays episodes: each `act` shows it a frame and asks for an action.

    It remembers the episode in one session (a key-value cache), so an act costs one frame and a
    few tokens. Lists of observations and tasks are a batch of environments in lockstep; each row
    is an episode of its own, may end and begin anew (`reset`), rest (an observation of None), or
    be dropped (`keep`).

    Attributes:
        thoughts: What the agent said before its last action, row by row; None where silent.
        futures: What it imagined before its last action, row by row; empty without planning.

    Example:
        >>> def play(agent, environment):  # environment: a gymnasium BabyAI level, RGB frames
        ...     observation, _ = environment.reset(seed=7)
        ...     agent.reset()
        ...     while True:
        ...         action = agent.act(observation["image"], observation["mission"])
        ...         step = environment.step(agent.environment_action(action))
        ...         observation, reward, terminated, truncated, _ = step
        ...         if terminated or truncated:
        ...             return reward
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        think: bool | None = None,
        max_text_tokens: int = 64,
        plan: int | PlanOptions | None = None,
        horizon: int = 8,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ):
        """An agent that has seen nothing yet.

        Args:
            model: Read only.
            processor: The model's.
            temperature: 0 takes the likeliest action.
            top_k: Sample among the k likeliest tokens only.
            think: True makes it speak before it acts, False keeps it silent, None leaves it
                the choice.
            max_text_tokens: Longest thought.
            plan: Futures that are imagined before each action; the one is taken whose futures
                succeed most and soonest, and the policy's own where none succeeds. `PlanOptions`
                has further settings. None acts without looking ahead.
            horizon: Most actions of a future.
            generator: One for all rows, or one for each; matters above temperature 0.

        Raises:
            ValueError: If an option is out of range, or the processor is another model's.
        """
        check_processor(processor, model.config)
        Options(temperature=temperature, top_k=top_k, think=think, max_text_tokens=max_text_tokens)
        self.model = model
        self.processor = processor
        self.temperature = temperature
        self.top_k = top_k
        self.think = think
        self.max_text_tokens = max_text_tokens
        if plan is not None and not isinstance(plan, PlanOptions):
            plan = PlanOptions(futures=count("plan", plan), horizon=horizon)
        self.plan = plan
        self.generator = generator
        self._is_batch = False
        self.reset()

    @property
    def thought(self) -> str | None:
        """What the agent said before its last action; the first row's, in a batch."""
        return self.thoughts[0] if self.thoughts else None

    def reset(self, rows: Rows[int] | None = None) -> None:
        """Forgets the episodes of some rows, whose next observation begins new ones.

        Args:
            rows: Indices; None is all, and the next batch may be of another size.

        Raises:
            ValueError: If there is no such row.
        """
        if rows is None:
            self._session: Session | None = None
            self._tasks: list[str | None] = []
            self._turns: list[list[Segment]] = []
            self._is_new: list[bool] = []
            self._heard: list[list[Segment]] = []
            self.thoughts: list[str | None] = []
            self.futures: list[list[Future]] = []
            return
        self._check_rows(rows)
        if self._session is not None:
            self._session.clear(list(rows))
        for row in rows:
            self._tasks[row], self._turns[row], self._is_new[row] = None, [], True
            self._heard[row] = []
            self.thoughts[row], self.futures[row] = None, []

    def keep(self, rows: Rows[int]) -> None:
        """Drops all other rows, so that finished episodes cost nothing.

        Args:
            rows: Indices of those that go on, in their new order.

        Raises:
            ValueError: If there is no such row.
        """
        self._check_rows(rows)
        if self._session is not None:
            self._session = self._session.fork(list(rows))
        self._tasks = [self._tasks[row] for row in rows]
        self._turns = [self._turns[row] for row in rows]
        self._is_new = [self._is_new[row] for row in rows]
        self._heard = [self._heard[row] for row in rows]
        self.thoughts = [self.thoughts[row] for row in rows]
        self.futures = [self.futures[row] for row in rows]

    def act(self, observation: Any, task: str | Rows[str | None] | None = None) -> Any:
        """Looks, perhaps speaks, and acts.

        Args:
            observation: `(H, W, 3)` uint8 array, PIL image, or the path of one. A list of them is
                a batch; None in it rests that row.
            task: What to do, in words; one for all rows, or a list. None is the task that the
                episode has, or none at all.

        Returns:
            The action, as its action space names it; a list of them for a batch, None where a
            row rests.

        Raises:
            ValueError: If a frame has another size than the model's, the batch changes its
                size, or a task changes in mid-episode.
        """
        _check_words(task, "task", "act takes the observation first, then the task")
        many = isinstance(observation, list | tuple) or np.ndim(observation) == 4
        views = list(observation) if many else [observation]
        tasks = [task] * len(views) if task is None or isinstance(task, str) else list(task)
        self._check_batch(views, tasks)
        self._is_batch = many
        awake = [row for row, view in enumerate(views) if view is not None]
        frames = encode_observations(self.model, self.processor, [views[row] for row in awake])
        streams: list[Sequence | None] = [None] * len(views)
        for row, frame in zip(awake, frames, strict=True):
            streams[row] = self._news(row, frame, tasks[row])
        session = self._show(streams)
        self._ask(session, awake)
        if self.plan is not None:
            self._look_ahead(session, awake, self.plan)
        actions = [None] * len(views)
        for row in awake:
            actions[row] = self._turns[row][-1].action  # pyright: ignore[reportCallIssue, reportArgumentType]
            self._is_new[row] = False
        return actions if many else actions[0]

    def instruct(self, words: str | Rows[str | None]) -> None:
        """Gives the agent an instruction in mid-episode, together with its next observation.

        The words stay in its context as long as that observation.

        Args:
            words: One for all rows, or a list, None for rows to which nothing is said.

        Raises:
            ValueError: If no episode has begun, or words are missing.
        """
        if words is None:
            raise ValueError("the instruction is missing; give words, or a list of words and None")
        _check_words(words, "instruction", "give words, or a list of words and None")
        texts = [words] * len(self._turns) if isinstance(words, str) else list(words)
        if not texts or len(texts) != len(self._turns):
            raise ValueError(
                f"{len(texts)} instructions for {len(self._turns)} rows; give one each, and the "
                "first words as the task of act"
            )
        for row, said in enumerate(texts):
            if said == "":
                raise ValueError(f"row {row} is told nothing; give words, or None")
            if said is not None and self._is_new[row]:
                raise ValueError(f"row {row} is told {said!r} before it acts; give a task to act")
        for row, said in enumerate(texts):
            if said is not None and self._heard[row]:
                raise ValueError(
                    f"row {row} was told {self._heard[row][0].text!r} and has seen nothing since; "
                    "say all of it at once"
                )
        for row, said in enumerate(texts):
            if said is not None:
                self._heard[row].append(text_segment(said, "task"))

    def override_action(self, action: Any) -> None:
        """Replaces the last action by the one that the environment took.

        Args:
            action: As `act` returns it, or as the environment takes it: a list of them if `act`
                was given a list, None where the agent's action stands.

        Raises:
            ValueError: If the action is unknown, or the row has not acted.
        """
        actions = [action]  # which may be a vector, and so a list itself
        if self._is_batch:
            if not isinstance(action, list | tuple | np.ndarray):
                raise ValueError(f"{action!r} for {len(self._turns)} rows; give a list, one each")
            actions = list(action)
        if len(actions) != len(self._turns):
            raise ValueError(f"{len(actions)} actions for {len(self._turns)} rows; give one each")
        for row, taken in enumerate(actions):
            if taken is None:
                continue
            if not self._turns[row]:
                raise ValueError(f"row {row} has not acted; call act before override_action")
            name = name_action(self.processor, taken)
            self._turns[row] = [*self._turns[row][:-1], action_segment(name)]

    def environment_action(self, action: Any) -> Any:
        """An action that `act` returned as a gymnasium environment takes it.

        An integer where actions have names, an array where they are numbers. For the actions of a
        batch, ask for each.

        Raises:
            ValueError: If it is no action of the model's.
        """
        return action_space_of(self.processor).to_environment(action)

    def describe(self, observation: Any) -> Any:
        """Says what it sees, without a task and outside of any episode.

        Args:
            observation: As in `act`, without None.

        Returns:
            Words; a list of them for a batch.
        """
        many = isinstance(observation, list | tuple) or np.ndim(observation) == 4
        views = list(observation) if many else [observation]
        frames = encode_observations(self.model, self.processor, views)
        question = text_segment(DESCRIBE, "task")
        inputs = self.processor.encode([Sequence([question, frame]) for frame in frames])
        reply = self.model.generate(
            **inputs, query="policy", think=True, max_text_tokens=self.max_text_tokens
        )
        words = [_words(self._read(ids, None)) or "" for ids in reply.input_ids]
        return words if many else words[0]

    def _news(self, row: int, frame: Segment, task: str | None) -> Sequence:
        """What is new for a row: its own turn and the frame after it, or the task and a frame."""
        if not self._is_new[row]:
            if task is not None and task != self._tasks[row]:
                raise ValueError(
                    f"row {row}'s task changed from {self._tasks[row]!r} to {task!r} in "
                    f"mid-episode; call reset([{row}]) between episodes, or instruct() within one"
                )
            heard, self._heard[row] = self._heard[row], []
            return Sequence([*self._turns[row], frame, *heard])
        self._tasks[row] = task
        return Sequence([frame] if task is None else [text_segment(task, "task"), frame])

    def _show(self, news: list[Sequence | None]) -> Session:
        """Appends what is new to the session; the first time, begins the session."""
        if self._session is None:
            sequences = [sequence for sequence in news if sequence is not None]
            inputs = self.processor.encode(sequences)
            self._session = self.model.start(**inputs, generator=self.generator)
        else:
            streams: list[TokenStream | None] = [
                None if sequence is None else self.processor.stream(sequence) for sequence in news
            ]
            self._session.append(streams)
        return self._session

    def _ask(self, session: Session, awake: list[int]) -> None:
        """Runs the policy, then rewinds the session to before the turn.

        The turn is appended with the next frame: only then is it known which action the environment
        took.
        """
        session.reserve(self.max_text_tokens + self.model.config.longest_action + 4)
        savepoint = session.savepoint()
        think, asked = self.think, awake
        for row in awake:
            self.thoughts[row] = None
        while asked:
            reply = session.run(
                "policy",
                rows=asked,
                temperature=self.temperature,
                top_k=self.top_k,
                think=think,
                max_text_tokens=self.max_text_tokens,
            )
            session.rewind(savepoint)
            silent = []
            for row in asked:
                turn = self._read(reply.input_ids[row], reply.latents[row])
                self.thoughts[row] = _words(turn) or self.thoughts[row]
                if not turn or turn[-1].kind is not Kind.ACTION:
                    silent.append(row)
                    continue
                said = self.thoughts[row]
                self._turns[row] = [*([text_segment(said)] if said else []), turn[-1]]
            # A row that spoke and then stopped, without an action, is asked for the action alone.
            asked, think = silent, False

    def _look_ahead(self, session: Session, awake: list[int], plan: PlanOptions) -> None:
        """Replaces the policy's actions by those with the best imagined futures."""
        for row, futures in zip(awake, imagine(session, self.processor, awake, plan), strict=True):
            self.futures[row] = futures
            action = best_action(futures, self.processor)
            if action is not None:
                self._turns[row] = [*self._turns[row][:-1], action_segment(action)]

    def _read(self, ids: torch.Tensor, latents: torch.Tensor | None) -> list[Segment]:
        return self.processor.segments(ids, latents, self.model.config)

    def _check_rows(self, rows: Rows[int]) -> None:
        for row in rows:
            is_index = isinstance(row, Integral) and not isinstance(row, bool)
            if not is_index or not 0 <= row < len(self._turns):
                raise ValueError(f"row {row} is outside [0, {len(self._turns)}); act comes first")

    def _check_batch(self, views: list[Any], tasks: list[str | None]) -> None:
        if not any(view is not None for view in views):
            raise ValueError("there is no observation to act on; give one for some row")
        if len(tasks) != len(views):
            raise ValueError(f"{len(tasks)} tasks for {len(views)} observations; give one each")
        if self._session is None:
            for row, view in enumerate(views):
                if view is None:
                    raise ValueError(f"row {row} begins without an observation; give its first")
            self._tasks = [None] * len(views)
            self._turns = [[] for _ in views]
            self._is_new = [True] * len(views)
            self._heard = [[] for _ in views]
            self.thoughts = [None] * len(views)
            self.futures = [[] for _ in views]
        elif len(views) != len(self._turns):
            raise ValueError(
                f"{len(views)} observations for {len(self._turns)} rows; give None for rows that "
                "rest, drop rows with keep(), or begin anew with reset()"
            )


def encode_observations(
    model: UnifiedModel, processor: UnifiedProcessor, observations: list[Any]
) -> list[Segment]:
    """Observations as ongoing FRAME segments that hold latents, encoded in one call.

    Raises:
        ValueError: If one is no frame, or of another size than the model's.
    """
    size = frame_size(model, processor)
    pixels = [
        processor.read_frame(view, f"observation {i}", size) for i, view in enumerate(observations)
    ]
    latents = processor.encode_pixels(np.stack(pixels))
    return [frame_segment(latents=z, outcome="ongoing") for z in latents]


def frame_size(model: UnifiedModel, processor: UnifiedProcessor) -> tuple[int, int]:
    """Height and width in pixels of the model's frames."""
    if processor.codec is None:
        raise ValueError("the processor has no codec to turn frames into latents; give codec")
    config = model.config
    side = config.latent_patch_size * processor.codec.downsample_factor
    return config.latent_grid[0] * side, config.latent_grid[1] * side


def action_space_of(processor: UnifiedProcessor) -> ActionSpace:
    """The action space of a processor that has one.

    Raises:
        ValueError: If it has none.
    """
    if processor.action_space is None:
        raise ValueError("the processor has no action space; give action_space")
    return processor.action_space


def name_action(processor: UnifiedProcessor, action: Any) -> Any:
    """An action in the form of its action space, given by name, by integer or by array.

    Raises:
        ValueError: If there is no such action.
    """
    space = action_space_of(processor)
    return space.decode([processor.token_names[index] for index in processor.action_ids(action)])


def _check_words(words: Any, name: str, fix: str) -> None:
    """Refuses what nobody can say, such as a frame where words are expected.

    Raises:
        ValueError: Naming what was given and the fix.
    """
    said = list(words) if isinstance(words, list | tuple) else [words]
    for one in said:
        if one is not None and not isinstance(one, str):
            raise ValueError(f"{name} is a {type(one).__name__}, no words; {fix}")
        if one is not None:
            check_text(one)


def _words(turn: list[Segment]) -> str | None:
    """The TEXT of a turn."""
    return next((segment.text for segment in turn if segment.kind is Kind.TEXT), None)
