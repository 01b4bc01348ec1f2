"""Moments: rows of a session that are kept by themselves, and go on later in any batch.

A moment never changes. Going on from it makes another one, and both share the keys and values of
what happened before, so a moment of a long conversation costs what was added to it. That makes
rewinding and forking free, and lets a server gather whoever waits into one batch. Where a moment
lies in the cache follows from its own history alone, never from its neighbours.

Letters: B rows, L tokens, n slots, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakSet

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.conversation.grammar import Grammar
from unified.memory import Memory
from unified.model.attention import compute_dtype
from unified.model.cache import KVCache
from unified.model.plan import StreamState
from unified.model.transformer import UnifiedTransformer
from unified.sampling.generation import Session
from unified.sampling.memory.window import WindowMemory
from unified.sampling.queue import QueuedTokens

WINDOW = Memory("window")
"""What a joined session remembers: the frames that a moment is trimmed to."""


@dataclass(frozen=True)
class Piece:
    """Consecutive cache slots of one conversation.

    Attributes:
        states: `(2, layers, N_kv, n, K)`, keys and values.
        steps: `(n, 3)`, of path integration.
    """

    states: Tensor
    steps: Tensor

    def __len__(self) -> int:
        """Number of slots."""
        return len(self.steps)

    @property
    def num_bytes(self) -> int:
        """Memory of the slots."""
        return sum(x.numel() * x.element_size() for x in (self.states, self.steps))

    def cut(self, place: int) -> tuple[Piece, Piece]:
        """The slots before a place, and those from there on; views."""
        return (
            Piece(self.states[:, :, :, :place], self.steps[:place]),
            Piece(self.states[:, :, :, place:], self.steps[place:]),
        )


@dataclass(frozen=True)
class Moment:
    """Where one conversation stands.

    Attributes:
        pieces: Its cache slots, in order; shared with the moments before it.
        added: Bytes of the piece that came last.
        state: Of one row.
        last: `(1,)` int64, see `Session`, as for the following.
        opener: `(1,)` int64.
        logits: `(1, V)` float32, of what follows the cached tokens.
        queue: What was said and is not in the cache yet, of one row.
        generator: Draws what comes next; only copies of it are ever drawn from.
    """

    pieces: tuple[Piece, ...]
    added: int
    state: StreamState
    last: Tensor
    opener: Tensor
    logits: Tensor
    queue: QueuedTokens
    generator: torch.Generator

    @property
    def length(self) -> int:
        """Number of cache slots in use."""
        return int(self.state.length[0])

    def reseed(self, seed: int) -> Moment:
        """The same moment, from which another future comes."""
        return replace(self, generator=torch.Generator().manual_seed(seed))


class Bench:
    """Memory for joined sessions, used again and again; of one model, and of one thread."""

    def __init__(self, model: UnifiedTransformer):
        """Takes no memory yet."""
        self.model = model
        self._memory: KVCache | None = None

    def _cache(self, rows: int, capacity: int) -> KVCache:
        """A cache in the first rows of the memory, which grows to what was ever needed."""
        memory = self._memory
        if memory is None or memory.batch_size < rows or memory.capacity < capacity:
            config, device = self.model.config, self.model.device
            assert config.num_key_value_heads is not None
            assert config.head_dim is not None
            had = (0, 0) if memory is None else (memory.batch_size, memory.capacity)
            self._memory = memory = KVCache(
                config.num_hidden_layers,
                max(rows, had[0]),
                config.num_key_value_heads,
                config.head_dim,
                capacity=max(capacity, had[1]),
                device=device,
                dtype=compute_dtype(device, self.model.dtype),
            )
        view = object.__new__(KVCache)
        view.states, view.steps = memory.states[:, :, :rows], memory.steps[:rows]
        return view

    def join(self, moments: list[Moment]) -> Session:
        """A session whose rows go on from moments; it ends when the next one is joined."""
        model = self.model
        session = object.__new__(Session)
        session.model, session.config, session.grammar = model, model.config, Grammar(model.config)
        room = max(len(moment.queue) for moment in moments) + 4 * model.config.frame_tokens
        session.cache = self._cache(len(moments), max(m.length for m in moments) + room)
        for row, moment in enumerate(moments):
            if moment.pieces:
                stop = moment.length
                states = session.cache.states[:, :, row, :, :stop]
                torch.cat([piece.states for piece in moment.pieces], 3, out=states)
                steps = torch.cat([piece.steps for piece in moment.pieces])
                session.cache.steps[row, :stop] = steps
        session._compiled, session._slot_step = None, 1
        session._remembers = WINDOW
        session._memory, session._savepoints = WindowMemory(WINDOW, model.config), WeakSet()
        session._state = _stack([moment.state for moment in moments])
        session._queue = _gather([moment.queue for moment in moments])
        session.last = torch.cat([moment.last for moment in moments])
        session.opener = torch.cat([moment.opener for moment in moments])
        session._logits = torch.cat([moment.logits for moment in moments])
        session.evictions = 0
        session.generators = [moment.generator.clone_state() for moment in moments]
        session._ids = [[] for _ in moments]
        session._latents = [[] for _ in moments]
        return session


def split(session: Session, parents: list[Moment | None]) -> list[Moment]:
    """The rows of a session as moments.

    Args:
        session: As it is now; it may go on, and none of the moments notices.
        parents: What each row was joined from; None for a row of a session that began by itself.

    Raises:
        ValueError: If frames left the session's cache since.
    """
    if session.evictions:
        raise ValueError("frames left the cache of this session; split it earlier")
    made = []
    for row, parent in enumerate(parents):
        index = torch.tensor([row])
        state = session._state.select(index)
        first, stop = 0 if parent is None else parent.length, int(state.length[0])
        new = Piece(
            session.cache.states[:, :, row, :, first:stop].clone(),
            session.cache.steps[row, first:stop].clone(),
        )
        before = () if parent is None else parent.pieces
        moment = Moment(
            pieces=(*before, new) if len(new) else before,
            added=new.num_bytes,
            state=state,
            last=session.last[index],
            opener=session.opener[index],
            logits=session._logits[index.to(session._logits.device)],
            queue=session._queue.select(index),
            generator=session.generators[row].clone_state(),
        )
        made.append(_trimmed(moment, session.config))
    return made


def _trimmed(moment: Moment, config: UnifiedConfig) -> Moment:
    """Without the slots that no later token sees, as `Session` drops them."""
    stays = WindowMemory(WINDOW, config).kept(moment.state, needs_room=True)
    if stays is None:
        return moment
    places = (~stays[0]).nonzero()[:, 0]  # in one run, between the task and the window
    head, rest = _cut(moment.pieces, int(places[0]))
    dropped, kept = _cut(rest, len(places))
    path = torch.cat([piece.steps for piece in dropped]).sum(0)
    first = kept[0].steps.clone()
    first[0] += path  # a path is as long as it was
    pieces = (*head, Piece(kept[0].states, first), *kept[1:])
    return replace(moment, pieces=pieces, state=moment.state.keep(stays))


def _cut(pieces: tuple[Piece, ...], place: int) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Pieces before a slot, and from there on."""
    for number, piece in enumerate(pieces):
        if place < len(piece):
            if not place:
                return pieces[:number], pieces[number:]
            before, after = piece.cut(place)
            return (*pieces[:number], before), (after, *pieces[number + 1 :])
        place -= len(piece)
    return pieces, ()


def _stack(states: list[StreamState]) -> StreamState:
    """States of one row each as those of a batch."""
    width = max(state.frame_slots.shape[1] for state in states)
    pad = torch.nn.functional.pad
    return StreamState(
        length=torch.cat([state.length for state in states]),
        time=torch.cat([state.time for state in states]),
        frame_slots=torch.cat(
            [pad(s.frame_slots, (0, width - s.frame_slots.shape[1])) for s in states]
        ),
        num_frames=torch.cat([state.num_frames for state in states]),
        prefix=torch.cat([state.prefix for state in states]),
    )


def _gather(told: list[QueuedTokens]) -> QueuedTokens:
    """What is queued in rows, as that of a batch."""
    counts = torch.cat([one.num_tokens for one in told])
    length = int(counts.max())
    ids = torch.zeros(len(told), length, dtype=torch.int64)
    sizes = {one.latents.shape[-1] for one in told if one.latents is not None}
    known = next((one.latents for one in told if one.latents is not None), None)
    latents = None if known is None else known.new_zeros(len(told), length, *sizes)
    for row, one in enumerate(told):
        count = int(one.num_tokens[0])
        ids[row, :count] = one.input_ids[0, :count]
        if latents is not None and one.latents is not None:
            latents[row, :count] = one.latents[0, :count]
    return QueuedTokens(ids, counts, latents)
