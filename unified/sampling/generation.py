"""Session: one loop that samples the next token or draws the next frame.

A `Session` is a ragged batch of conversations with their key-value cache. `append` adds what
happened, and `run` generates what comes next. A session can be forked and rewound, for agents,
simulators, counterfactuals and planning. Rows do not see each other, and each has its own random
generator, so that a batch gives exactly the replies of its rows alone.

Tokens, grammar and plans are on the CPU. The GPU is waited for only when a token was sampled or a
frame was drawn.

Letters: B rows, L tokens, n latent tokens of a frame, C latent size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from unified.conversation.grammar import Grammar
from unified.conversation.stream import TokenStream
from unified.memory import read_memory
from unified.model.attention import compute_dtype
from unified.model.cache import KVCache
from unified.model.plan import Plan, StreamState, plan_stream
from unified.model.transformer import UnifiedTransformer
from unified.sampling.answers import is_answered, run_of, whole_sizes
from unified.sampling.choice import choose
from unified.sampling.diffusion.guidance import NoisyCopies
from unified.sampling.diffusion.solvers import read_solver
from unified.sampling.drawing import (
    MAX_QUEUED,
    SLOTS,
    CompiledDrawing,
    FrameInputs,
    draw_frame,
    steps_of,
)
from unified.sampling.inputs import (
    check_frames,
    check_inverse,
    check_known,
    check_tensor,
    count_tokens,
    row_generators,
)
from unified.sampling.memory.place import PlaceMemory
from unified.sampling.memory.window import WindowMemory
from unified.sampling.options import Options
from unified.sampling.queue import QueuedTokens, no_tokens
from unified.sampling.reply import Callback, Generation
from unified.sampling.savepoints import Past, Savepoint


class Session:
    """Conversations that are being extended.

    Tokens that are added are queued. They go through the model together, when the logits after them
    are needed.

    Attributes:
        last: `(B,)` int64, last token of each row.
        opener: `(B,)` int64, whose turn it is in each row, see `Grammar.opener`.
    """

    def __init__(
        self,
        model: UnifiedTransformer,
        input_ids: Tensor,
        latents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        compiled: bool = False,
        memory: str | None = None,
    ):
        """Prefills the cache with prompts.

        Args:
            model: Read only.
            input_ids: `(B, L)` int64, padded on the right.
            latents: `(B, L, C)` at the latent tokens; None where no prompt has a frame.
            attention_mask: `(B, L)`, 1 for tokens; None is all.
            generator: One for the whole batch, or one for each row; None seeds from torch's
                global generator.
            compiled: Whether frames are drawn by compiled code, on a GPU as one CUDA graph. That
                takes a minute at first, and pays from some hundred frames on.
            memory: What stays of frames that are past, see `unified.memory`; None is the model's.

        Raises:
            ValueError: If a prompt is empty, too long, padded on the left, or has frames of
                another grid, or the model cannot have such a memory.
        """
        config = model.config
        memory = config.memory if memory is None else memory
        config.check_memory(memory)
        for name, value in {"latents": latents, "attention_mask": attention_mask}.items():
            check_tensor(name, value)
        input_ids = check_tensor("input_ids", input_ids, is_needed=True).cpu()
        attention_mask = None if attention_mask is None else attention_mask.cpu()
        num_tokens = count_tokens(input_ids, attention_mask, config)
        input_ids = input_ids.long()
        check_frames(input_ids, num_tokens, latents, config)
        batch, length = input_ids.shape
        self.model = model
        self.config = config
        self.grammar = Grammar(config)
        self.generators = row_generators(generator, batch)
        assert config.num_key_value_heads is not None
        assert config.head_dim is not None
        self.cache = KVCache(
            config.num_hidden_layers,
            batch,
            config.num_key_value_heads,
            config.head_dim,
            capacity=length + 2 * config.frame_tokens,
            device=model.device,
            dtype=compute_dtype(model.device, model.dtype),
        )
        self._compiled = CompiledDrawing(model) if compiled else None
        self._slot_step = SLOTS if compiled and model.device.type == "cuda" else 1
        self._state = StreamState.fresh(batch)
        self._remembers = read_memory(memory)
        self._memory = (
            PlaceMemory(self._remembers, config, batch)
            if self._remembers.kind == "place"
            else WindowMemory(self._remembers, config)
        )
        self._savepoints: WeakSet[Savepoint] = WeakSet()
        self._queue = no_tokens(batch)
        self.last = torch.full((batch,), -1)
        self.opener = torch.full((batch,), -1)
        self._logits = torch.zeros(batch, config.vocab_size, device=model.device)
        self.evictions = 0
        self._ids: list[list[Tensor]] = [[] for _ in range(batch)]
        self._latents: list[list[Tensor]] = [[] for _ in range(batch)]
        self.extend(input_ids, num_tokens, None if latents is None else latents.to(model.device))

    def __getstate__(self) -> dict[str, Any]:
        """All but compiled code, which is compiled anew in the copy, and savepoints."""
        return {**vars(self), "_compiled": self._compiled is not None, "_savepoints": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse of `__getstate__`."""
        vars(self).update(state)
        self._compiled = CompiledDrawing(self.model) if state["_compiled"] else None
        self._savepoints = WeakSet()

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.last)

    @property
    def state(self) -> StreamState:
        """Positions and slots of each row, with all queued tokens committed."""
        self._commit()
        return self._state

    @property
    def logits(self) -> Tensor:
        """Logits of what follows in each row, `(B, V)` float32."""
        self._commit()
        return self._logits

    # Adding what happened

    @torch.no_grad()
    def extend(
        self,
        input_ids: Tensor,
        num_tokens: Tensor,
        latents: Tensor | None = None,
    ) -> None:
        """Queues tokens behind each row.

        Args:
            input_ids: `(B, L)` int64, padded on the right.
            num_tokens: `(B,)` int64; rows with 0 stay as they are.
            latents: `(B, L, C)`.
        """
        self._queue = self._queue.then(QueuedTokens(input_ids, num_tokens, latents))
        self._note(input_ids, num_tokens, latents)

    def _note(self, input_ids: Tensor, num_tokens: Tensor, latents: Tensor | None) -> None:
        """Keeps the history of each row, its last token, and whose turn it is."""
        at = (num_tokens - 1).clamp(min=0)[:, None]
        self.last = torch.where(num_tokens > 0, input_ids.gather(1, at)[:, 0], self.last)
        self.opener = self.grammar.opener(input_ids, num_tokens, self.opener)
        for row, count in enumerate(num_tokens.tolist()):
            if count:
                self._ids[row].append(input_ids[row, :count])
                zeros = self._logits.new_zeros(count, self.config.latent_size)
                self._latents[row].append(zeros if latents is None else latents[row, :count])

    @torch.no_grad()
    def _commit(self) -> None:
        """Passes the queued tokens through the model, and writes them to the cache."""
        if not len(self._queue):
            return
        queued, self._queue = self._queue, no_tokens(self.batch_size)
        for piece in self._memory.pieces(queued):
            self._pass(piece)

    def _pass(self, queued: QueuedTokens) -> None:
        """One pass over a part of the queued tokens."""
        device = self.model.device
        num_cached = self._make_room(len(queued))
        plan = self._plan(queued.input_ids, queued.num_tokens, num_cached)
        slots = self._slots(queued.num_tokens, len(queued))
        output = self.model(
            input_ids=queued.input_ids.to(device),
            latents=queued.latents,
            position_ids=plan.position_ids.to(device),
            visible=plan.visible.to(device),
            path=plan.path.to(device),
            past_key_values=self.cache,
            num_cached=num_cached,
            slots=slots.to(device),
        )
        at = (queued.num_tokens - 1).clamp(min=0)[:, None, None].to(device)
        logits = output.logits.gather(1, at.expand(-1, -1, output.logits.shape[-1]))
        moved = (queued.num_tokens > 0)[:, None].to(device)
        self._logits = torch.where(moved, logits[:, 0].float(), self._logits)
        self._settle(queued.input_ids, queued.latents, slots, plan)

    def _plan(
        self, ids: Tensor, num_tokens: Tensor, num_cached: int, lead: Tensor | None = None
    ) -> Plan:
        """The plan of tokens that follow what is cached."""
        state, memory = self._state, self._remembers
        return plan_stream(ids, self.config, state, num_tokens, num_cached, lead, memory)

    def _settle(self, ids: Tensor, latents: Tensor | None, slots: Tensor, plan: Plan) -> None:
        """Stands where a pass has led, and drops what the memory does not keep of it."""
        self._state = plan.state
        self._memory.note(ids, latents, plan.position_ids, slots, self.cache)
        self._drop(self._memory.kept(self._state, needs_room=False))

    def _drop(self, kept: Tensor | None) -> None:
        """Keeps these slots alone, `(B, S)` bool; None keeps all."""
        if kept is None:
            return
        self._leave_past(set(self._savepoints))
        self.cache.keep(kept)
        self._memory.keep(kept)
        self._state = self._state.keep(kept)
        self.evictions += 1

    def _slots(self, num_tokens: Tensor, length: int, lead: Tensor | None = None) -> Tensor:
        """Where the next tokens of each row go, `(B, length)`; -1 for padding."""
        index = torch.arange(length).expand(self.batch_size, length)
        if lead is not None:
            index = index - lead[:, None]
        slots = self._state.length[:, None] + index
        return torch.where((index >= 0) & (index < num_tokens[:, None]), slots, -1)

    def append(self, streams: list[TokenStream | None]) -> None:
        """Commits one token stream to each row; None leaves a row as it is.

        Raises:
            ValueError: If there is not one entry for each row, or a frame has another grid.
        """
        if len(streams) != self.batch_size:
            raise ValueError(
                f"{len(streams)} streams for {self.batch_size} rows; give one, or None, for each"
            )
        sizes = [0 if stream is None else len(stream) for stream in streams]
        if not any(sizes):
            return
        config = self.config
        shape = (len(streams), max(sizes))
        input_ids = torch.full(shape, config.pad_token_id or 0)
        has_frames = any(stream is not None and len(stream.latents) for stream in streams)
        latents = torch.zeros(*shape, config.latent_size) if has_frames else None
        for row, stream in enumerate(streams):
            if stream is None:
                continue
            input_ids[row, : len(stream)] = stream.input_ids.cpu()
            if latents is not None and len(stream.latents):
                is_latent = input_ids[row] == config.latent_token_id
                latents[row, is_latent] = stream.latents.to(latents).flatten(0, 1)
        num_tokens = torch.tensor(sizes)
        check_frames(input_ids, num_tokens, latents, config)
        self.extend(
            input_ids, num_tokens, None if latents is None else latents.to(self.model.device)
        )

    def clear(self, rows: list[int]) -> None:
        """Empties rows, so that `append` can begin new conversations there."""
        self._leave_past(set(self._savepoints))
        gone = torch.zeros(self.batch_size, dtype=torch.bool)
        gone[rows] = True
        self._memory.clear(rows)
        self.evictions += 1
        self._queue = self._queue.without(gone)
        state = self._state
        self._state = replace(
            state,
            length=state.length.masked_fill(gone, 0),
            time=state.time.masked_fill(gone, 0),
            num_frames=state.num_frames.masked_fill(gone, 0),
            prefix=state.prefix.masked_fill(gone, 0),
        )
        self.last = self.last.masked_fill(gone, -1)
        self.opener = self.opener.masked_fill(gone, -1)
        for row in rows:
            self._ids[row], self._latents[row] = [], []

    def reserve(self, num_tokens: int) -> None:
        """Makes room for tokens of every row now, so that a savepoint outlives adding them."""
        self._commit()
        self._make_room(2 * num_tokens)  # a pass needs room behind the longest row for its tokens

    def _make_room(self, num_tokens: int) -> int:
        """Room for as many tokens in each row; returns the number of slots in front of them.

        Frames that left every window are dropped before the cache grows.
        """

        def slots() -> int:
            return -(-int(self._state.length.max()) // self._slot_step) * self._slot_step

        if slots() + num_tokens > self.cache.capacity:
            self._drop(self._memory.kept(self._state, needs_room=True))
            self.cache.reserve(slots() + num_tokens)
        return slots()

    # Generating what comes next

    @torch.no_grad()
    def run(
        self,
        query: str,
        *,
        rows: list[int] | None = None,
        known: Tensor | None = None,
        callback: Callback | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> Generation:
        """Lets the model go on until the query is answered; arguments as `UnifiedModel.generate`.

        Args:
            query: policy, forward, inverse or joint.
            rows: Rows that are asked; None is all. The others stay as they are.
            known: `(B, n, C)`, latents of the next frame that are given, NaN where they are to be
                drawn; see `generate`.
            callback: See `generate`.
            streamer: See `generate`.
            **options: Fields of `unified.sampling.options.Options`.

        Returns:
            What was added to each row; nothing to rows that were not asked.

        Raises:
            ValueError: If an option is out of range, or a row ends where the one who is asked may
                not speak.
        """
        chosen = Options(**options)
        known = check_known(known, self.batch_size, self.config)
        active = torch.ones(self.batch_size, dtype=torch.bool)
        if rows is not None:
            active[:] = False
            active[rows] = True
        asked = active.nonzero()[:, 0]
        if not bool((self.last[asked] >= 0).all()):
            raise ValueError("a row that was cleared is asked; append its new conversation first")
        self.grammar.check(self.last[asked], query, self.opener[asked])
        if query == "inverse":
            check_inverse([self._ids[row] for row in asked.tolist()], self.config)
        begin = [len(ids) for ids in self._ids]
        streamed = list(begin)
        left = torch.full_like(active, chosen.max_new_tokens or 2**62, dtype=torch.int64)
        words = torch.zeros(self.batch_size, dtype=torch.int64)
        frames = torch.zeros_like(words)
        rest: list[list[tuple[int, int]]] = [[] for _ in begin]  # of an action that has begun
        first_text, stop_text = self.config.text_token_ids
        outcomes = torch.tensor(self.config.outcome_token_ids)
        while True:
            # Tokens, until every row that goes on stands before a frame.
            waits = active & (self.last != self.config.frame_token_id)
            if bool(waits.any()):
                legal = self.grammar.legal(self.last, query, chosen.think, self.opener)
                too_long = words >= chosen.max_text_tokens
                legal[too_long] &= ~run_of(legal, first_text, stop_text)
                for row, places in enumerate(rest):
                    if places:
                        legal[row] = run_of(legal, *places[0])[0]
                ended = waits & ~legal.any(1)
                active &= ~ended
                waits &= ~ended
                token = self._choose(legal, chosen, waits)
                ended = waits & (whole_sizes(token, rest, self.config) > left)
                self._stream(callback, streamed, ended)
                active &= ~ended
                waits &= ~ended
                self.extend(token[:, None], waits.long())
                left -= waits.long()
                if streamer is not None and bool(waits.any()):
                    streamer.put(token[waits])
                is_word = (token >= first_text) & (token < stop_text)
                ends_words = (words > 0) & (token == self.config.action_token_id)
                words = torch.where(waits, torch.where(is_word, words + 1, 0), words)
                is_action = (token >= self.config.action_token_ids[0]) & (
                    token < self.config.action_token_ids[1]
                )
                for row in (waits & is_action).nonzero()[:, 0].tolist():
                    places = rest[row] or self.config.action_format(int(token[row]))
                    rest[row] = places[1:]
                acted = waits & is_action & torch.tensor([not places for places in rest])
                answered = is_answered(query, token, waits, acted, self.grammar)
                shown = waits & torch.isin(token, outcomes) & (frames >= chosen.max_turns)
                active &= ~(answered | (shown & (query == "joint")))
                ends_frame = torch.isin(token, outcomes) | (token == self.grammar.eos)
                self._stream(callback, streamed, acted | (waits & (ends_words | ends_frame)))
                continue
            drawing = active & (self.last == self.config.frame_token_id)
            if not bool(drawing.any()):
                break
            self._draw_frame(drawing, chosen, known)
            known = None
            frames += drawing.long()
            left -= drawing.long() * (self.config.frame_tokens + 1)
            if streamer is not None:
                streamer.put(self._ids[int(drawing.int().argmax())][-1])
        ids = [
            torch.cat(a[i:]) if len(a) > i else self.last[:0]
            for a, i in zip(self._ids, begin, strict=True)
        ]
        empty = self._logits.new_zeros(0, self.config.latent_size)
        latents = [
            torch.cat(a[i:]) if len(a) > i else empty
            for a, i in zip(self._latents, begin, strict=True)
        ]
        return Generation(ids, latents, self.config)

    def _choose(self, legal: Tensor, options: Options, waits: Tensor) -> Tensor:
        """The next token of each row, `(B,)`; the model is not asked where all are forced."""
        if not bool((legal[waits].sum(1) > 1).any()):
            return legal.int().argmax(1)
        return choose(self.logits, legal, waits, options, self.generators)

    def _draw_frame(
        self,
        drawing: Tensor,
        options: Options,
        known: Tensor | None = None,
        watch: list[Tensor] | None = None,
    ) -> None:
        """Draws one frame in each drawing row, and commits it with its end marker.

        Queued tokens join the first pass if they are few, and if only these rows have any.

        Args:
            drawing: `(B,)` bool.
            options: Steps, solver and guidance.
            known: `(B, n, C)`, latents that are given, NaN where they are to be drawn.
            watch: Takes the noisy latents `(B, n, C)` that the model sees, one by one.
        """
        config, device = self.config, self.model.device
        n = config.frame_tokens
        guidance = options.guidance_scale
        queued = self._queue
        if (
            guidance.parts
            or len(queued) > MAX_QUEUED
            or queued.latents is not None
            or bool(queued.num_tokens[~drawing].any())
        ):
            self._commit()
            queued = self._queue
        self._queue = no_tokens(self.batch_size)
        ids = torch.full((self.batch_size, n + 1), config.latent_token_id)
        ids[:, n] = config.frame_end_token_id
        num_tokens = drawing.long() * (n + 1)
        room = len(queued) if self._compiled is None else MAX_QUEUED
        queued_ids, lead = queued.aligned_right(room)
        lead = torch.where(drawing, lead, room + n + 1)
        copies = NoisyCopies(guidance.parts, self._ids, config)
        num_cached = self._make_room(room + n + 1 + copies.num_tokens)
        all_ids, all_tokens = torch.cat([queued_ids, ids], 1), queued.num_tokens + num_tokens
        plan = self._plan(all_ids, all_tokens, num_cached, lead)
        slots = self._slots(all_tokens, room + n + 1, lead)
        tokens = copies.behind(all_ids, plan, room, self._state, num_cached)
        schedule = steps_of(options, self.model)
        steps = len(schedule) - 1 if read_solver(options.solver).is_stochastic else 0
        noise = torch.zeros(1 + steps, self.batch_size, n, config.latent_size)
        for row in drawing.nonzero()[:, 0].tolist():
            for step in noise:
                step[row] = torch.randn(n, config.latent_size, generator=self.generators[row])
        inputs = FrameInputs(
            **vars(tokens),
            slots=slots,
            noise=noise[0],
            schedule=schedule,
            fresh_noise=noise[1:],
            known=torch.full_like(noise[0], torch.nan) if known is None else known,
            scales=torch.tensor(guidance.scales),
        ).to(device)
        if self._compiled is None or watch is not None:
            latents, logits = draw_frame(
                self.model, self.cache, inputs, num_cached, options.solver, watch=watch
            )
        else:
            latents, logits = self._compiled(self.cache, inputs, num_cached, options.solver)
        on_device = drawing.to(device)
        if not bool(torch.isfinite(latents).all((1, 2))[on_device].all()):
            raise ValueError("the generated latents hold NaN or infinity; the weights are broken")
        self._logits = torch.where(on_device[:, None], logits, self._logits)
        drawn = torch.nn.functional.pad(latents, (0, 0, room, 1))
        self._settle(all_ids, drawn, slots, plan)
        self._note(ids, num_tokens, torch.nn.functional.pad(latents, (0, 0, 0, 1)))

    def _stream(self, callback: Callback | None, streamed: list[int], finished: Tensor) -> None:
        """Calls the callback with the new tokens of rows that just finished a segment."""
        if callback is None:
            return
        for row in finished.nonzero()[:, 0].tolist():
            new = slice(streamed[row], None)
            if not self._ids[row][new]:
                continue
            callback(row, torch.cat(self._ids[row][new]), torch.cat(self._latents[row][new]))
            streamed[row] = len(self._ids[row])

    # Forking and rewinding

    def savepoint(self) -> Savepoint:
        """The current point, to `rewind` to. It commits the queued tokens and copies nothing."""
        sizes = tuple(len(ids) for ids in self._ids)
        state, memory = self.state, self._memory.copy()
        savepoint = Savepoint(state, self.last, self.opener, self.logits, sizes, memory)
        self._savepoints.add(savepoint)
        return savepoint

    def rewind(self, savepoint: Savepoint) -> None:
        """Goes back to where every row stood at the savepoint, or forward again.

        All is as it was, bit for bit, whatever was forgotten since; generators go on.
        """
        self._leave_past({m for m in self._savepoints if savepoint.past or m.is_later(savepoint)})
        self._queue = no_tokens(self.batch_size)
        self._state, self.last = savepoint.state, savepoint.last
        self.opener, self._logits = savepoint.opener, savepoint.logits
        self._memory = savepoint.memory.copy()
        if savepoint.past is not None:
            self.cache.load(savepoint.past.cache)
            self._ids = [list(pieces) for pieces in savepoint.past.ids]
            self._latents = [list(pieces) for pieces in savepoint.past.latents]
        for row, size in enumerate(savepoint.sizes):
            del self._ids[row][size:]
            del self._latents[row][size:]

    def _leave_past(self, savepoints: set[Savepoint]) -> None:
        """Leaves savepoints a copy of what is about to be lost."""
        if not savepoints:
            return
        rows, size = torch.arange(self.batch_size), int(self._state.length.max())
        past = Past(
            self.cache.fork(rows.to(self.cache.states.device), size),
            [list(pieces) for pieces in self._ids],
            [list(pieces) for pieces in self._latents],
        )
        for savepoint in savepoints:
            savepoint.past = past
        self._savepoints.difference_update(savepoints)

    def fork(self, rows: list[int] | None = None) -> Session:
        """An independent copy that holds the given rows, repeats allowed; None is all.

        Each copy goes on with a copy of its row's generator.
        """
        chosen = list(range(self.batch_size)) if rows is None else list(rows)
        index = torch.tensor(chosen, dtype=torch.int64)
        copy = object.__new__(Session)
        copy.model, copy.config, copy.grammar = self.model, self.config, self.grammar
        copy.cache = self.cache.fork(index.to(self.model.device))
        copy._slot_step = self._slot_step
        copy._remembers, copy._savepoints = self._remembers, WeakSet()
        copy._memory = self._memory.select(index)
        copy._compiled = None if self._compiled is None else CompiledDrawing(self.model)
        copy._state = self._state.select(index)
        copy._queue = self._queue.select(index)
        copy.last, copy.opener = self.last[index], self.opener[index]
        copy._logits = self._logits[index.to(self._logits.device)]
        copy.evictions = self.evictions
        copy.generators = [self.generators[row].clone_state() for row in chosen]
        copy._ids = [list(self._ids[row]) for row in chosen]
        copy._latents = [list(self._latents[row]) for row in chosen]
        return copy

    def history(self, row: int) -> tuple[Tensor, Tensor]:
        """All tokens `(L,)` of a row since its start, and the latents `(L, C)` at them."""
        return torch.cat(self._ids[row]), torch.cat(self._latents[row])
