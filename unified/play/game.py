"""A game: one player's episode, with its seats, its timeline, and what may be asked of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unified.media.samples import sample, shipped_levels
from unified.play import protocol as said
from unified.play.engine import Engine, Shown
from unified.play.keeping import recipe_of, recording
from unified.play.pictures import fitted, moving_picture, picture_file, read_upload, wrong_tiles
from unified.play.prompting import answers
from unified.play.reality import Reality, Seen
from unified.play.timeline import MOST_FRAMES, Node, Timeline, digest_of
from unified.roles.simulation import Start
from unified.sampling.moment import Moment

Answer = dict[str, Any] | bytes
"""A JSON message, or a binary one."""


@dataclass(frozen=True)
class House:
    """What all games of a server share.

    Attributes:
        engine: Of the one model.
        model: Its name, as the server was told it.
        make: Makes environments; None where there is none.
        levels: What a player may open.
        most_bytes: Memory of one game's frames.
    """

    engine: Engine
    model: str
    make: Callable[[str | None], Any] | None
    levels: tuple[str, ...]
    most_bytes: int = 192 * 2**20


class Game:
    """One player's episode; its methods are called one after the other.

    Attributes:
        agent: Who acts.
        world: Who makes the next frame.
        temperature: Of the model's actions.
        timeline: None before an episode was opened.
        is_exact: Whether frames are sent without loss.
    """

    def __init__(self, house: House):
        """Nothing is open yet."""
        self.house = house
        self.engine = house.engine
        self.agent: said.AgentSeat = "human"
        self.world: said.WorldSeat = "dream"
        self.temperature = 0.0
        self.is_exact = False
        self.timeline: Timeline | None = None
        self.opening = said.Opening()
        self.reality: Reality | None = None
        self._heard: tuple[str, Moment] | None = None
        self._told: str | None = None
        self._first_world: said.WorldSeat = "dream"

    async def answer(self, request: said.Request) -> AsyncIterator[Answer]:
        """Does what a player asks for.

        Raises:
            ValueError: If it cannot be done; nothing has changed then.
        """
        match request:
            case said.Open():
                yield await self._open(request)
            case said.Step():
                for message in await self._step(request):
                    yield message
            case said.Seats():
                yield self._seats(request)
            case said.Goto():
                node = self._timeline.go(request.node)
                self._heard, self._told = None, None
                yield {"type": "at", "id": request.id, "node": node.number}
            case said.Instruct():
                node, moment = self._present()
                moment = await asyncio.wrap_future(self.engine.hear(moment, request.words))
                self._heard = (request.words, moment)
                yield {"type": "heard", "id": request.id, "words": request.words}
            case said.Tell():
                yield self._tell(request)
            case said.Ask():
                node = self._timeline.get(request.node)
                moment = None if node.is_over else node.moment
                future = self.engine.ask(moment, node.pixels, request.words)
                words = await asyncio.wrap_future(future)
                yield {"type": "answer", "id": request.id, "node": node.number, "words": words}
            case said.Weigh():
                yield await self._weigh(request)
            case said.Denoise():
                yield await self._denoise(request)
            case said.Prompt():
                async for message in answers(self.engine, self.house.model, request):
                    yield message
            case said.Keep():
                yield await self._keep(request)
            case said.Share():
                recipe = recipe_of(
                    self._timeline.now.lane(),
                    self.opening,
                    self._first_world,
                    self.house.model,
                    self.engine.steps,
                )
                told = recipe.model_dump(exclude_defaults=True)
                yield {"type": "recipe", "id": request.id, "recipe": told}
            case said.Replay():
                async for message in self._replay(request):
                    yield message
            case said.Hello():
                raise ValueError("hello was said before; open an episode")

    def frames(self, id_: int) -> list[Answer]:
        """All frames, for a player who comes back."""
        if self.timeline is None:
            return []
        nodes = sorted(self.timeline.nodes.values(), key=lambda node: node.number)
        now = self.timeline.now.number
        messages: list[Answer] = [self._frame(id_, node, {"is_old": True}) for node in nodes]
        return [*messages, {"type": "at", "id": id_, "node": now}, self.seats(id_)]

    def seats(self, id_: int) -> dict[str, Any]:
        """Who sits where, and who could."""
        agents = ["human", "model", "random"]
        if self.reality is not None and self.reality.has_expert:
            agents.append("expert")
        worlds = ["dream"] if self.reality is None else ["dream", "real", "both"]
        return {
            "type": "seats",
            "id": id_,
            "agent": self.agent,
            "world": self.world,
            "agents": agents,
            "worlds": worlds,
            "temperature": self.temperature,
        }

    def close(self) -> None:
        """Frees the environment."""
        if self.reality is not None:
            self.reality.close()
        self.reality = None

    # Opening

    async def _open(self, request: said.Open) -> Answer:
        opening = request.opening
        note = None
        reality: Reality | None = None
        frame, task = None, opening.task
        if opening.level is not None:
            reality, frame, told = await asyncio.to_thread(self._level, opening)
            task = task or told
        elif opening.picture is not None:
            pixels = await asyncio.to_thread(read_upload, opening.picture)
            frame, note = fitted(pixels, self.engine.frame_size)
        elif task is None and opening.words is None:
            raise ValueError("there is nothing to open; choose a level, or give a picture or words")
        if request.world != "dream" and reality is None:
            raise ValueError(
                "nobody knows the truth of this world, so the model has to be it; open a level "
                "whose environment is installed to see reality"
            )
        noise = opening.seed if opening.noise is None else opening.noise
        start = Start(frame, task, words=opening.words)
        shown = await asyncio.wrap_future(self.engine.open(start, noise))
        truth = shown.pixels if request.world == "both" else None
        number = 0 if self.timeline is None else self.timeline.next_number
        root = Node(number, None, shown.pixels, shown.outcome, shown.moment, truth=truth, task=task)
        root.world = request.world
        self.close()
        self.reality, self.opening, self.world = reality, opening, request.world
        self._first_world, self._heard, self._told = request.world, None, None
        if self.agent == "expert" and not (reality and reality.has_expert):
            self.agent = "human"
        self.timeline = Timeline(root, self.house.most_bytes)
        more = {"is_first": True, "seats": self.seats(request.id), "note": note}
        return self._frame(request.id, root, more, shown.seconds)

    def _level(self, opening: said.Opening) -> tuple[Reality | None, np.ndarray, str | None]:
        level = opening.level
        if level not in self.house.levels:
            raise ValueError(
                f"level {level!r} is not offered; use one of {', '.join(self.house.levels)}"
            )
        if self.house.make is None:
            if level not in shipped_levels():
                raise ValueError(f"level {level!r} needs its environment; pip install minigrid")
            shipped = sample(level)
            return None, np.array(shipped.frame), shipped.task
        reality = Reality(self.house.make, level, self.engine.frame_size)
        seen, task = reality.reset(opening.seed)
        return reality, seen.pixels, task

    # Playing

    @property
    def _timeline(self) -> Timeline:
        if self.timeline is None:
            raise ValueError("no episode is open; open one first")
        return self.timeline

    def _present(self) -> tuple[Node, Moment]:
        """The present frame, and the moment to go on from."""
        node = self._timeline.now
        if node.is_over:
            raise ValueError("the episode is over; go back to an earlier frame, or open another")
        if self._timeline.is_full:
            raise ValueError(
                f"the timeline holds {MOST_FRAMES:,} frames, as many as it may; keep what you "
                "like, and open another world"
            )
        if node.moment is None:
            raise ValueError(
                "this frame can be seen, but no more returned to: its memory was given up; choose "
                "a later one"
            )
        return node, node.moment

    async def _step(self, request: said.Step) -> list[Answer]:
        began = time.perf_counter()
        node, moment = self._present()
        heard, told = None, self._told
        if self._heard is not None:
            heard, moment = self._heard
        agent = self.agent if request.action is None else "human"
        action, words, seconds = request.action, None, 0.0
        if action is None:
            action, words, seconds = await self._choose(node, moment)
        move = said.Move(
            action=action,
            said=words,
            heard=[] if heard is None else [heard],
            told=told,
            world=self.world,
            agent=agent,
        )
        made, model_seconds = await self._move(node, moment, move)
        return self._arrive(request.id, made, began, seconds + model_seconds)

    def _arrive(self, id_: int, made: Node, began: float, seconds: float) -> list[Answer]:
        """Makes a new frame the present one, and tells of it."""
        self._heard, self._told = None, None
        node, gone, faded = self._timeline.add(made)
        messages: list[Answer] = [self._frame(id_, node, {}, seconds, began)]
        if gone or faded:
            messages.append({"type": "forgot", "id": id_, "nodes": gone, "faded": faded})
        return messages

    async def _choose(self, node: Node, moment: Moment) -> tuple[Any, str | None, float]:
        """What the agent in the seat does: action, words, and the model's seconds."""
        actions, depth = self.engine.actions, node.depth
        tries = len(self._timeline.children(node))
        noise = self.opening.seed if self.opening.noise is None else self.opening.noise
        dice = np.random.default_rng([noise, depth, tries])
        if self.agent == "human":
            raise ValueError("it is your turn; say what you do")
        if self.agent == "model":
            seed = int(dice.integers(2**62))
            future = self.engine.act(moment, self.temperature, seed)
            acted = await asyncio.wrap_future(future)
            return acted.action, acted.said, acted.seconds
        if self.agent == "random":
            form = actions.formats[dice.integers(len(actions.formats))]
            tokens = [actions.tokens[dice.integers(*run)] for run in form]
            return actions.decode(tokens), None, 0.0
        chosen = await asyncio.to_thread(self._ask_expert, node)
        if chosen is None:
            raise ValueError("the expert does not know how to go on; take the seat yourself")
        return self.engine.name(chosen), None, 0.0

    def _ask_expert(self, node: Node) -> Any:
        assert self.reality is not None
        self._travel(node)
        return self.reality.expert_action()

    def _travel(self, node: Node, action: Any = None) -> Seen:
        """Leads the environment to a frame, and on by an action.

        Raises:
            ValueError: If it ended before, or does not repeat itself.
        """
        assert self.reality is not None
        lane = node.lane()[1:]
        path = [self.engine.actions.to_environment(one.action) for one in lane]
        seen = self.reality.travel(path)
        known = node.pixels if node.world == "real" else node.truth
        if known is not None and not np.array_equal(seen.pixels, known):
            raise ValueError(
                "this environment does not repeat itself from its seed and actions, so one cannot "
                "go back in it; open it anew, or let the model be the world"
            )
        if action is None:
            return seen
        return self.reality.travel([*path, self.engine.actions.to_environment(action)])

    async def _move(self, node: Node, moment: Moment, move: said.Move) -> tuple[Node, float]:
        """The frame after a move, and the model's seconds for it."""
        turn = self.engine.turn(move.action, move.said, move.told)
        action = self.engine.name(move.action)
        seen: Seen | None = None
        if move.world == "real":
            seen = await asyncio.to_thread(self._travel, node, action)
            future = self.engine.show(moment, turn, seen.pixels, seen.outcome)
            shown = await asyncio.wrap_future(future)
        elif move.world == "both":
            future = asyncio.wrap_future(self.engine.step(moment, turn))
            travel = asyncio.to_thread(self._travel, node, action)
            shown, seen = await _both(future, travel)
        else:
            shown = await asyncio.wrap_future(self.engine.step(moment, turn))
        made = Node(
            number=self._timeline.next_number,
            parent=node,
            pixels=shown.pixels,
            outcome=shown.outcome,
            moment=shown.moment,
            action=action,
            said=move.said,
            heard=tuple(move.heard),
            told=move.told,
            world=move.world,
            agent=move.agent,
            task=move.heard[-1] if move.heard else node.task,
            chances=shown.chances or None,
        )
        if move.world == "both" and seen is not None:
            made.truth, made.truth_outcome = seen.pixels, seen.outcome
            made.wrong = tuple(wrong_tiles(shown.pixels, seen.pixels, self.engine.tile))
        return made, shown.seconds

    def _seats(self, request: said.Seats) -> Answer:
        possible = self.seats(request.id)
        if request.agent is not None and request.agent not in possible["agents"]:
            raise ValueError("this environment has no expert; let the model act, or yourself")
        if request.world is not None and request.world not in possible["worlds"]:
            raise ValueError(
                "nobody knows the truth of this world, so the model has to be it; open a level "
                "whose environment is installed to see reality"
            )
        self.agent = request.agent or self.agent
        self.world = request.world or self.world
        if request.temperature is not None:
            self.temperature = request.temperature
        return self.seats(request.id)

    def _tell(self, request: said.Tell) -> Answer:
        self._present()
        if not self.engine.knows_world:
            raise ValueError(
                "this model was never taught words of the world; play one that was, such as "
                "--model babyai-world"
            )
        if self.world == "real":
            raise ValueError("reality does not listen; let the model be the world to tell it")
        self._told = request.words
        return {"type": "told", "id": request.id, "words": request.words}

    # Asking, keeping, repeating

    async def _weigh(self, request: said.Weigh) -> Answer:
        node = self._timeline.get(request.node)
        if node.moment is None or node.is_over:
            raise ValueError("nobody acts after this frame; choose another")
        before = None if node.parent is None else node.parent.pixels
        future = self.engine.weigh(node.moment, before, node.pixels, self._timeline.root.task)
        mind = await asyncio.wrap_future(future)
        return {
            "type": "mind",
            "id": request.id,
            "node": node.number,
            "actions": mind.actions[:12],
            "entropy": mind.entropy,
            "inverse": mind.inverse[:12],
        }

    async def _denoise(self, request: said.Denoise) -> Answer:
        node = self._timeline.get(request.node)
        moment = None if node.parent is None else node.parent.moment
        if moment is None or node.world == "real":
            raise ValueError("the model did not draw this frame, or has forgotten how; try another")
        for words in node.heard:
            moment = await asyncio.wrap_future(self.engine.hear(moment, words))
        turn = self.engine.turn(node.action, node.said, node.told)
        frames = await asyncio.wrap_future(self.engine.denoise(moment, turn))
        files = {str(step): picture_file(frame) for step, frame in enumerate(frames, 1)}
        return said.pack({"type": "steps", "id": request.id, "node": node.number}, files)

    async def _keep(self, request: said.Keep) -> Answer:
        lane = self._timeline.now.lane()
        if request.what in ("gif", "mp4"):
            frames = [
                n.pixels if n.truth is None else np.concatenate([n.truth, n.pixels], axis=1)
                for n in lane
            ]
            scale = max(1, 224 // self.engine.frame_size[0])
            content = await asyncio.to_thread(moving_picture, frames, request.what, scale)
            kind = "image/gif" if request.what == "gif" else "video/mp4"
            name = f"played.{request.what}"
        else:
            content = await asyncio.to_thread(recording, lane, self.opening, self.engine.actions)
            name, kind = "played.zip", "application/zip"
        header = {"type": "file", "id": request.id, "name": name}
        return said.pack(header, {"file": (kind, content)})

    async def _replay(self, request: said.Replay) -> AsyncIterator[Answer]:
        recipe = request.recipe
        if (recipe.model, recipe.steps) != (self.house.model, self.engine.steps):
            raise ValueError(
                f"this was played with the model {recipe.model!r} at {recipe.steps} denoise steps, "
                f"and here is {self.house.model!r} at {self.engine.steps}; start the server so"
            )
        opened = said.Open(id=request.id, type="open", opening=recipe.opening, world=recipe.world)
        yield await self._open(opened)
        for move in recipe.moves:
            began = time.perf_counter()
            node, moment = self._present()
            if move.world != "dream" and self.reality is None:
                raise ValueError("the recipe has a real world, and this level has none here")
            for words in move.heard:
                moment = await asyncio.wrap_future(self.engine.hear(moment, words))
            made, seconds = await self._move(node, moment, move)
            for message in self._arrive(request.id, made, began, seconds):
                yield message
        same = recipe.digest is None or digest_of(self._timeline.now.lane()) == recipe.digest
        yield {"type": "replayed", "id": request.id, "is_same": same}

    def _frame(
        self,
        id_: int,
        node: Node,
        more: dict[str, Any],
        seconds: float = 0.0,
        began: float | None = None,
    ) -> bytes:
        """The message that shows a frame."""
        header = {
            "type": "frame",
            "id": id_,
            "node": node.number,
            "parent": None if node.parent is None else node.parent.number,
            "action": node.action,
            "agent": node.agent,
            "world": node.world,
            "said": node.said,
            "heard": node.heard,
            "told": node.told,
            "task": node.task,
            "outcome": node.outcome,
            "truth_outcome": node.truth_outcome,
            "is_over": node.is_over,
            "can_return": node.moment is not None,
            "wrong": node.wrong,
            "chances": node.chances,
            **more,
        }
        files = {"view": picture_file(node.pixels, self.is_exact)}
        if node.truth is not None:
            files["truth"] = picture_file(node.truth, self.is_exact)
        if began is not None:
            spent = time.perf_counter() - began
            header["ms"] = {"model": 1000 * seconds, "server": 1000 * (spent - seconds)}
        return said.pack(header, files)


async def _both(first: Any, second: Any) -> tuple[Shown, Seen]:
    """Waits for both, so that an error of one leaves nothing running."""
    shown, seen = await asyncio.gather(first, second, return_exceptions=True)
    for result in (seen, shown):
        if isinstance(result, BaseException):
            raise result
    return shown, seen
