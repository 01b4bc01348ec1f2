"""Token stream -> model inputs: positions, visibility, noise levels, labels. Pure functions.

One description serves training and inference. `plan_stream` lays out tokens that follow what a
cache already holds (nothing, in training); `plan_training` adds noisy spans and labels to it.

Who sees whom, for one frame `X X` that is also copied as a noisy span `x x` (rows are queries):

              task <f> X X </f> act | x x
        task    1   .  . .  .   .  | . .
        <f>     1   1  . .  .   .  | . .
        X       1   1  1 1  .   .  | . .
        X       1   1  1 1  .   .  | . .
        </f>    1   1  1 1  1   .  | . .
        act     1   1  1 1  1   1  | . .
        x       1   1  . .  .   .  | 1 1
        x       1   1  . .  .   .  | 1 1

Text is causal, a frame is bidirectional inside (Transfusion, arXiv:2408.11039), and a noisy span
sees the clean stream before its start and itself, just as a frame that is being denoised sees the
cache and itself. Every such set of keys is a union of three half-open intervals, `visible`. All
tokens before a token, visible or not, are a union of two: `path`.

Letters: B rows, L tokens (queries), T frames, n latent tokens of a frame, S slots of the cache.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.conversation.stream import TokenStream
from unified.memory import Memory, read_memory

SpanKind = Literal["frame", "chunk", "sequence", "bidirectional"]


@dataclass(frozen=True)
class StreamState:
    """Positions and slots of each row of a batch, from which the plan of its next tokens follows.

    Attributes:
        length: `(B,)` int64. Committed tokens, that is, occupied cache slots.
        time: `(B,)` int64. Next position on the time axis.
        frame_slots: `(B, T)` int64. Slot of each frame's opening marker; junk past `num_frames`.
        num_frames: `(B,)` int64. Frames opened so far whose markers are still in the cache.
        prefix: `(B,)` int64. Slots that every later token sees: those before the first frame ever
            opened (the task), or before the first that is no sink.
    """

    length: Tensor
    time: Tensor
    frame_slots: Tensor
    num_frames: Tensor
    prefix: Tensor

    @classmethod
    def fresh(cls, batch_size: int, device: torch.device | str = "cpu") -> "StreamState":
        """The state before the first token."""
        zeros = torch.zeros(batch_size, dtype=torch.int64, device=device)
        slots = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        return cls(zeros, zeros.clone(), slots, zeros.clone(), zeros.clone())

    def select(self, rows: Tensor) -> "StreamState":
        """The states of some rows, in the order of `rows` (int64 indices)."""
        return StreamState(
            self.length[rows],
            self.time[rows],
            self.frame_slots[rows],
            self.num_frames[rows],
            self.prefix[rows],
        )

    def keep(self, kept: Tensor) -> "StreamState":
        """The state after the cache has dropped all slots but `kept`, `(B, S)` bool.

        The prefix (what precedes the first frame) is always among them.
        """
        slots = self.frame_slots.clamp(0, kept.shape[1] - 1)
        listed = torch.arange(slots.shape[1], device=kept.device) < self.num_frames[:, None]
        stays = listed & kept.gather(1, slots)
        order = (~stays).int().argsort(dim=1, stable=True)[:, : int(stays.sum(1).max())]
        rank = (kept.cumsum(1) - 1).gather(1, slots)
        return replace(
            self,
            length=kept.sum(1),
            frame_slots=rank.gather(1, order),
            num_frames=stays.sum(1),
        )


@dataclass(frozen=True)
class Plan:
    """Positions and visibility of tokens.

    Attributes:
        position_ids: `(B, 3, L)` int64. Time, row and column of each token. Text has the same
            position on all three axes. A latent in row r and column c of a frame at time t has
            (t, t + r, t + c).
        visible: `(B, 3, 2, L)` int32. Query q may attend to the keys in the union of
            `[visible[b, k, 0, q], visible[b, k, 1, q])` over k; empty where start >= stop.
        path: `(B, 2, 2, L)` int32. All tokens up to each token, as two intervals like those of
            `visible`. `PathIntegration` sums over them, whether the window hides them or not. The
            first interval is in the cached columns.
        state: Where each row stands after these tokens.
    """

    position_ids: Tensor
    visible: Tensor
    path: Tensor
    state: StreamState


def plan_stream(
    input_ids: Tensor,
    config: UnifiedConfig,
    state: StreamState | None = None,
    num_tokens: Tensor | None = None,
    num_cached: int | None = None,
    lead: Tensor | None = None,
    memory: Memory | None = None,
) -> Plan:
    """Positions and visibility of tokens that follow a (possibly empty) cache.

    Keys are counted in columns: first S cached slots, then the L new tokens. A row shorter than S
    leaves the rest of the cached columns invisible.

    Args:
        input_ids: `(B, L)` int64. Whole frames only: latents never start in mid-frame.
        config: Names the markers, the frame's grid and the window.
        state: Where each row stands; None is a fresh start.
        num_tokens: `(B,)` int64. Real tokens of each row, the rest is padding; None is all.
        num_cached: S; None is the longest row's length, and it may not be less.
        lead: `(B,)` int64. Padding in front of each row's tokens; None is none. The rest of the
            padding is behind them.
        memory: What is remembered; None is the config's. By place, all that the cache still holds
            is seen.

    Returns:
        The plan. Padding sees only itself, so that no softmax is empty.
    """
    batch, length = input_ids.shape
    device = input_ids.device
    if state is None:
        state = StreamState.fresh(batch, device)
    if num_tokens is None:
        num_tokens = torch.full((batch,), length, dtype=torch.int64, device=device)
    memory = read_memory(config.memory) if memory is None else memory
    window = seen_frames(memory, config)
    index = torch.arange(length, device=device).expand(batch, length)
    if lead is not None:
        index = index - lead[:, None]
    is_real = (index >= 0) & (index < num_tokens[:, None])

    # Positions. A frame's latents share one time; all else advances it by one. Rows and columns
    # count from that time, so that offsets between any two tokens depend on nothing before them.
    is_latent = input_ids == config.latent_token_id
    before = torch.nn.functional.pad(is_latent, (1, 0))[:, :-1]
    is_first = is_latent & ~before
    first = torch.where(is_first, index, 0).cummax(dim=1).values
    advances = (~is_latent | is_first) & (index >= 0)
    time = state.time[:, None] + advances.cumsum(1) - 1
    offset = index - first
    columns = config.latent_grid[1]
    row = time + torch.where(is_latent, offset // columns, 0)
    column = time + torch.where(is_latent, offset % columns, 0)
    position_ids = torch.stack([time, row, column], dim=1)

    # Slots at which the window of each token starts, and at which what it sees ends.
    slot = state.length[:, None] + index
    is_marker = (input_ids == config.frame_token_id) & is_real
    ordinal = state.num_frames[:, None] + is_marker.cumsum(1)
    room = int(ordinal[:, -1].max()) if length else 0
    frame_slots = torch.nn.functional.pad(
        state.frame_slots, (0, max(0, room - state.frame_slots.shape[1]) + 1)
    )
    spare = frame_slots.shape[1] - 1  # where tokens that are no marker write
    frame_slots = frame_slots.scatter(1, torch.where(is_marker, ordinal - 1, spare), slot)
    first_free = min(memory.sinks, spare)  # the first frame that may be forgotten
    is_open = (state.num_frames <= first_free) & (ordinal[:, -1] > first_free)
    prefix = torch.where(is_open, frame_slots[:, first_free], state.prefix)
    is_windowed = ordinal > window
    start = frame_slots.gather(1, (ordinal - window).clamp(min=0))
    start = torch.where(is_windowed, torch.maximum(start, prefix[:, None]), 0)
    stop = torch.where(is_latent, slot - offset + config.frame_tokens, slot + 1)
    sink = torch.where(is_windowed, prefix[:, None], 0)

    # From slots to columns: what is cached stays, what is new moves behind the S cached columns.
    cached = state.length[:, None]
    if num_cached is None:
        num_cached = int(state.length.max()) if batch else 0
    shift = num_cached - cached
    if lead is not None:
        shift = shift + lead[:, None]
    zero = torch.zeros_like(slot)
    sink_is_new = sink > cached
    visible = torch.stack(
        [
            torch.stack([zero, torch.minimum(sink, cached)], 1),
            torch.stack(
                [
                    torch.where(sink_is_new, cached + shift, torch.minimum(start, cached)),
                    torch.where(sink_is_new, sink + shift, cached.expand_as(slot)),
                ],
                1,
            ),
            torch.stack([torch.maximum(start, cached) + shift, stop + shift], 1),
        ],
        dim=1,
    )
    alone = torch.stack([slot + shift, slot + shift + 1], 1)[:, None]
    alone = torch.cat([torch.zeros_like(alone).expand(-1, 2, -1, -1), alone], 1)
    visible = torch.where(is_real[:, None, None], visible, alone).to(torch.int32)
    own = slot + shift
    path = torch.stack(
        [
            torch.stack([zero, cached.expand_as(slot)], 1),
            torch.stack([(cached + shift).expand_as(slot), own + 1], 1),
        ],
        dim=1,
    ).to(torch.int32)

    last = (num_tokens - 1).clamp(min=0)[:, None]
    if lead is not None:
        last = last + lead[:, None] * (num_tokens > 0)[:, None]
    moved = num_tokens > 0
    after = StreamState(
        length=state.length + num_tokens,
        time=torch.where(moved, time.gather(1, last)[:, 0] + 1, state.time),
        frame_slots=frame_slots[:, :spare],
        num_frames=state.num_frames + is_marker.sum(1),
        prefix=prefix,
    )
    return Plan(position_ids, visible, path, after)


def seen_frames(memory: Memory, config: UnifiedConfig) -> int:
    """How many of the frames in the cache a token sees, its own included."""
    if memory.kind == "place":
        return 2**62
    return memory.frames or config.window_frames


@dataclass(frozen=True)
class TrainingRow:
    """One or more documents laid out for training, L tokens in all; fields as in `forward`.

    Attributes:
        input_ids: `(L,)` int64.
        position_ids: `(3, L)` int64.
        visible: `(3, 2, L)` int32, keys counted from the row's start.
        path: `(2, 2, L)` int32, likewise.
        latents: `(L, latent_size)` float32, zero where the token is no latent.
        noise_levels: `(L,)` float32 in [0, 1], zero where the token is no latent.
        labels: `(L,)` int64. What to predict after each token.
        label_weights: `(L,)` float32.
        flow_weights: `(L,)` float32, above zero only on latents that are learned.
        motions: `(L, 3)` float32, NaN where none was measured.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    path: Tensor
    latents: Tensor
    noise_levels: Tensor
    labels: Tensor
    label_weights: Tensor
    flow_weights: Tensor
    motions: Tensor

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)


def plan_training(
    stream: TokenStream,
    config: UnifiedConfig,
    *,
    spans: list[tuple[int, int]],
    noise_levels: Tensor,
    context_noise_levels: Tensor | None = None,
    latent_weights: Tensor | None = None,
    learn_context: bool = False,
    bidirectional: bool = False,
    start_time: int = 0,
    skips: Tensor | None = None,
) -> TrainingRow:
    """The clean stream of one document, followed by its noisy spans, with labels.

    Args:
        stream: The conversation as tokens, with T frames.
        config: Names the markers, the frame's grid and the window.
        spans: Half-open ranges of frames to copy, each a noisy span (see `span_ranges`).
        noise_levels: `(num_spans, T)` float32 in [0, 1]. Level of each frame in each span.
        context_noise_levels: `(T,)` float32. Levels of the clean stream's frames; None is 0.
        latent_weights: `(T, n)` float32. Weight of each latent in the flow loss, beside its
            frame's; None is 1.
        learn_context: Whether the stream's own frames are in the flow loss too, where they are
            noised. Without spans this is Diffusion Forcing (arXiv:2407.01392) at half the tokens;
            but frames, words and actions are then predicted from noisy frames.
        bidirectional: Whether every token of a span sees the whole span (full-sequence diffusion).
            Otherwise a span is causal from frame to frame.
        start_time: Time position of the first frame, when the document is a later part of an
            episode: its task stays at the beginning. 0 keeps it right behind the task.
        skips: `(T,)` int64. Time that passes before each frame besides, as where frames between
            were seen and forgotten; None is none.

    Returns:
        The row, on the stream's device.
    """
    ids = stream.input_ids
    length = len(ids)
    plan = plan_stream(ids[None], config)
    position_ids, visible, path = plan.position_ids[0], plan.visible[0], plan.path[0]
    is_latent = ids == config.latent_token_id
    n = config.frame_tokens
    num_frames = len(stream.latents)
    if int(is_latent.sum()) != num_frames * n:
        raise ValueError(
            f"{int(is_latent.sum())} latent tokens do not match {num_frames} frames of {n} tokens; "
            f"each frame is <frame>, {n} x <latent>, </frame>"
        )
    if start_time and num_frames:
        first_marker = int(plan.state.frame_slots[0, 0])
        later = torch.arange(length, device=ids.device) >= first_marker
        position_ids = position_ids + max(0, start_time - first_marker) * later

    if skips is not None and num_frames:
        steps = torch.zeros(length, dtype=torch.int64, device=ids.device)
        steps[plan.state.frame_slots[0, :num_frames]] = skips.to(steps)
        position_ids = position_ids + steps.cumsum(0)

    frame_of = is_latent.cumsum(0).sub(1) // n
    latents = stream.latents.new_zeros(length, config.latent_size)
    latents[is_latent] = stream.latents.reshape(num_frames * n, config.latent_size)
    clean_levels = stream.latents.new_zeros(length)
    if context_noise_levels is not None:
        clean_levels[is_latent] = context_noise_levels.repeat_interleave(n)
    labels, label_weights = next_token_labels(stream, is_latent)

    # Copies: token indices of every span, in one run.
    slots = plan.state.frame_slots[0, :num_frames] + 1  # a frame's first latent
    starts = [int(slots[i]) for i, _ in spans]
    stops = [int(slots[j - 1]) + n for _, j in spans]
    sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
    copied = torch.cat(
        [torch.arange(a, b) for a, b in zip(starts, stops, strict=True)] or [torch.arange(0)]
    ).to(ids.device)
    per_span = torch.tensor(sizes, dtype=torch.int64, device=ids.device)
    span_of = torch.repeat_interleave(torch.arange(len(spans), device=ids.device), per_span)
    clean_start = torch.tensor(starts, dtype=torch.int64, device=ids.device)[span_of]
    span_size = per_span[span_of]
    new_start = (length + per_span.cumsum(0) - per_span)[span_of]

    sink, window, own = visible.long()[:, :, copied]  # of the originals: [0, s), -, [start, stop)
    sink_stop = torch.maximum(sink[1], window[1])  # fresh streams keep the sink in either place
    offset = new_start - clean_start
    own_stop = new_start + span_size if bidirectional else own[1] + offset
    span_visible = torch.stack(
        [
            torch.stack([torch.zeros_like(sink_stop), torch.minimum(sink_stop, clean_start)]),
            torch.stack([own[0], clean_start]),
            torch.stack([torch.maximum(own[0], clean_start) + offset, own_stop]),
        ]
    )
    own_place = length + torch.arange(len(copied), device=ids.device)
    span_path = torch.stack(  # its own copies: the clean actions know the clean frames between
        [
            torch.stack([torch.zeros_like(clean_start), clean_start]),
            torch.stack([new_start, own_place + 1]),
        ]
    )
    copied_latent = is_latent[copied]
    frames = frame_of[copied].clamp(min=0)
    levels = torch.where(copied_latent, noise_levels[span_of, frames], 0.0)
    weights = stream.latents.new_zeros(length)  # of the stream's latents, if they were learned
    weights[is_latent] = stream.frame_weights.repeat_interleave(n)
    if latent_weights is not None:
        weights[is_latent] *= latent_weights.flatten()
    clean_weights = weights * (clean_levels > 0) * learn_context
    zeros = weights.new_zeros
    return TrainingRow(
        input_ids=torch.cat([ids, ids[copied]]),
        position_ids=torch.cat([position_ids, position_ids[:, copied]], 1),
        visible=torch.cat([visible, span_visible.to(torch.int32)], 2),
        path=torch.cat([path, span_path.to(torch.int32)], 2),
        latents=torch.cat([latents, latents[copied]]),
        noise_levels=torch.cat([clean_levels, levels]),
        labels=torch.cat([labels, torch.full_like(copied, -100)]),
        label_weights=torch.cat([label_weights, zeros(len(copied))]),
        flow_weights=torch.cat([clean_weights, weights[copied]]),
        motions=torch.cat([stream.motions, stream.motions[copied]]),
    )


def next_token_labels(stream: TokenStream, is_latent: Tensor) -> tuple[Tensor, Tensor]:
    """What to predict after each token, `(L,)` int64, and with which weight, `(L,)` float32.

    A label of weight 0 is -100, which cross-entropy ignores. Latent tokens are never labels: they
    are denoised, not predicted.
    """
    after = torch.arange(1, len(stream) + 1, device=is_latent.device).clamp(max=len(stream) - 1)
    weights = torch.where(is_latent[after], 0.0, stream.weights[after])
    weights[-1:] = 0.0
    labels = torch.where(weights > 0, stream.targets[after], -100)
    return labels, weights


def span_ranges(
    num_frames: int, kind: SpanKind, chunk_frames: int = 1, first_frame: int = 0
) -> list[tuple[int, int]]:
    """Which frames are noised together.

    `frame`: each frame on its own, teacher forcing. `chunk`: runs of `chunk_frames`. `sequence`:
    all in one causal span with their own levels, Diffusion Forcing (arXiv:2407.01392).
    `bidirectional`: all in one span without a causal mask, full-sequence diffusion.

    >>> span_ranges(5, "chunk", 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    if kind in ("sequence", "bidirectional"):
        return [(first_frame, num_frames)] if num_frames > first_frame else []
    if kind not in ("frame", "chunk"):
        raise ValueError(
            f"span kind {kind!r} is unknown; use frame, chunk, sequence, bidirectional"
        )
    size = 1 if kind == "frame" else chunk_frames
    return [(i, min(i + size, num_frames)) for i in range(first_frame, num_frames, size)]


def pack(rows: list[TrainingRow]) -> TrainingRow:
    """Several documents in one row; none sees another."""
    offsets = torch.tensor([0] + [len(row) for row in rows[:-1]]).cumsum(0).tolist()
    moved = [
        replace(row, visible=row.visible + offset, path=row.path + offset)
        for row, offset in zip(rows, offsets, strict=True)
    ]
    return TrainingRow(
        **{
            name: torch.cat([getattr(row, name) for row in moved], dim=dim)
            for name, dim in _TOKEN_DIM.items()
        }
    )


def collate(rows: list[TrainingRow], config: UnifiedConfig, length: int) -> dict[str, Tensor]:
    """Rows as one batch of model inputs, padded to `length` tokens; padding sees only itself.

    Raises:
        ValueError: If a row is longer than `length`.
    """
    batch: dict[str, Tensor] = {}
    for row in rows:
        if len(row) > length:
            raise ValueError(
                f"a row of {len(row)} tokens does not fit {length}; raise the row length or pack "
                "less"
            )
    for name, dim in _TOKEN_DIM.items():
        value = {"input_ids": config.pad_token_id, **_PADDING}.get(name, 0)
        tensors = []
        for row in rows:
            tensor = getattr(row, name)
            shape = list(tensor.shape)
            shape[dim] = length - shape[dim]
            tensors.append(torch.cat([tensor, tensor.new_full(shape, value)], dim=dim))
        batch[name] = torch.stack(tensors)
    own = torch.arange(length, dtype=torch.int32)
    sizes = torch.tensor([len(row) for row in rows])
    is_padding = own >= sizes[:, None]
    batch["visible"][:, 2, 0] = torch.where(is_padding, own, batch["visible"][:, 2, 0])
    batch["visible"][:, 2, 1] = torch.where(is_padding, own + 1, batch["visible"][:, 2, 1])
    return batch


_PADDING = {"labels": -100, "motions": torch.nan}
_TOKEN_DIM = {
    "input_ids": 0,
    "position_ids": 1,
    "visible": 2,
    "path": 2,
    "latents": 0,
    "noise_levels": 0,
    "labels": 0,
    "label_weights": 0,
    "flow_weights": 0,
    "motions": 0,
}
