"""Futures: several frames drawn together, with the actions between them given.

The frames and the tokens between them are one noisy span over the cache, laid out as training lays
out its spans. A scheduling matrix says how noisy each frame is at each step (Diffusion Forcing,
arXiv:2407.01392), so one after another, in chunks, as a pyramid, or all at once are one mechanism.
What is drawn is then committed as if it had come frame by frame.

Letters: B rows, T frames, L tokens, n latent tokens of a frame, C latent size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unified.model.flow import to_sample
from unified.model.plan import Plan
from unified.sampling.diffusion.schedules import scheduling_matrix
from unified.sampling.diffusion.solvers import read_solver
from unified.sampling.drawing import steps_of, told_sizes
from unified.sampling.options import Options
from unified.settings import split_settings

if TYPE_CHECKING:
    from unified.sampling.generation import Session

SCHEDULES: dict[str, dict[str, int]] = {
    "autoregressive": {},
    "chunked": {"frames": 2},
    "pyramid": {"lag": 1},
    "full": {},
    "bidirectional": {},
}
"""Kind -> its settings and their defaults."""
MOST_FRAMES = 256


@dataclass(frozen=True)
class Schedule:
    """How frames are drawn together.

    Attributes:
        kind: `autoregressive` draws one frame after another. `chunked` draws runs of frames, each
            run at once. `pyramid` starts each frame some steps after the one before. `full` draws
            all at once, each frame seeing those before it; `bidirectional` likewise, each seeing
            all.
        frames: Of a chunk.
        lag: Steps by which a pyramid's frames follow each other.
    """

    kind: str
    frames: int = 2
    lag: int = 1


def read_schedule(text: str) -> Schedule:
    """A schedule as it is written, such as "chunked:frames=4".

    Raises:
        ValueError: If the kind or a setting is unknown, or a number is too small.

    >>> read_schedule("pyramid:lag=2").lag
    2
    """
    kind, told = split_settings("schedule", text, SCHEDULES, "chunked:frames=4")
    settings = dict(SCHEDULES[kind])
    for name, number in told.items():
        if not number.isdecimal() or not 1 <= int(number) <= MOST_FRAMES:
            raise ValueError(
                f"schedule {text!r}: {name} is {number!r}, and must be a whole number from 1 to "
                f"{MOST_FRAMES}"
            )
        settings[name] = int(number)
    return Schedule(kind, **settings)


@torch.no_grad()
def draw_frames(
    session: Session,
    turns: list[list[Tensor]],
    options: Options,
    schedule: Schedule,
    known: Tensor | None = None,
) -> Tensor:
    """Draws the next T frames of each row, and commits them.

    Args:
        session: Stands where the world's turn begins, behind an action.
        turns: For each row T runs of token ids: what is said before each frame, with its opening
            marker. The first run may be empty if that has been added already.
        options: Steps and solver.
        schedule: How frames are drawn together.
        known: `(B, T, n, C)`, latents that are given, NaN where they are to be drawn: parts of
            frames, or whole ones between which the others are drawn.

    Returns:
        Latents `(B, T, n, C)`.

    Raises:
        ValueError: If there are no frames, or rows differ in their number.
    """
    counts = {len(row) for row in turns}
    count = counts.pop() if len(counts) == 1 else 0
    if len(turns) != session.batch_size or not 1 <= count <= MOST_FRAMES:
        raise ValueError(
            f"turns are of {[len(row) for row in turns]} frames for {session.batch_size} rows; "
            f"give each the same number, from 1 to {MOST_FRAMES}"
        )
    if options.guidance_scale.parts:
        raise ValueError("guidance_scale is for single frames; leave it out, or draw one by one")
    size = {"autoregressive": 1, "chunked": schedule.frames}.get(schedule.kind, count)
    drawn = []
    for first in range(0, count, size):
        part = [row[first : first + size] for row in turns]
        given = None if known is None else known[:, first : first + size]
        drawn.append(_draw_span(session, part, options, schedule, given))
    return torch.cat(drawn, 1)


def _draw_span(
    session: Session,
    turns: list[list[Tensor]],
    options: Options,
    schedule: Schedule,
    known: Tensor | None,
) -> Tensor:
    """Draws the frames of one span at once."""
    config, model = session.config, session.model
    n, count = config.frame_tokens, len(turns[0])
    heads = [row[0] for row in turns]
    session.extend(*_ragged(heads, config.pad_token_id or 0))
    session._commit()
    frame = torch.full((n + 1,), config.latent_token_id)
    frame[n] = config.frame_end_token_id
    spans = [
        torch.cat([part for turn in row[1:] for part in (frame, turn)] + [frame]) for row in turns
    ]
    ids, num_tokens = _ragged(spans, config.pad_token_id or 0)
    is_latent = ids == config.latent_token_id
    at = torch.stack([row.nonzero()[:, 0] for row in is_latent])  # (B, T n)
    num_cached = session._make_room(ids.shape[1])
    plan = session._plan(ids, num_tokens, num_cached)
    slots = session._slots(num_tokens, ids.shape[1])
    levels_of = steps_of(options, model)
    kind = "pyramid" if schedule.kind == "pyramid" else "full"
    matrix = scheduling_matrix(count, levels_of, kind, lag=schedule.lag)
    noise, fresh_noise = _noise(session, count, len(matrix) - 1, options.solver)
    device = model.device
    given = torch.full_like(noise, torch.nan) if known is None else known.to(noise)
    given, at, ids_there = given.to(device), at.to(device), ids.to(device)
    seen = _seen(plan, num_tokens, num_cached, schedule.kind == "bidirectional")

    def spread(latents: Tensor) -> Tensor:
        """Frames `(B, T, n, C)` at their tokens, `(B, L, C)`."""
        where = at[..., None].expand(-1, -1, latents.shape[-1])
        return latents.new_zeros(*ids.shape, latents.shape[-1]).scatter(
            1, where, latents.flatten(1, 2)
        )

    def see(
        latents: Tensor, levels: Tensor, visible: Tensor, sizes: Tensor | None = None
    ) -> Tensor:
        """Hidden states `(B, L, D)` of frames `(B, T, n, C)` at levels `(B, T)`."""
        told, sizes = (
            None if x is None else spread(x[..., None, None].expand(-1, -1, n, 1))[..., 0]
            for x in (levels, sizes)
        )
        layout = model.lay_out(
            ids_there,
            plan.position_ids.to(device),
            visible.to(device),
            plan.path.to(device),
            num_cached,
        )
        hidden = model.embed(ids_there, spread(latents), told, layout, sizes)
        return model.decode(hidden, layout, session.cache, num_cached)[0]

    def denoise(noisy: Tensor, levels: Tensor) -> Tensor:
        sizes = told_sizes(model, options.solver, levels_of.to(device), levels)
        hidden = see(noisy, levels, seen, sizes)
        latent = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
        said = model.latent_head(latent).to(noisy.dtype).view_as(noisy)
        sample = to_sample(
            said, noisy, levels[..., None, None], config.prediction_type, model.noise_path
        )
        return torch.where(given.isnan(), sample, given)

    latents = read_solver(options.solver)(
        denoise, noise.to(device), matrix.to(device), model.noise_path, fresh_noise.to(device)
    )
    if not bool(torch.isfinite(latents).all()):
        raise ValueError("the generated latents hold NaN or infinity; the weights are broken")
    # Once more, clean: what is committed is what frames that came one by one would have left.
    level = latents.new_full(latents.shape[:2], config.context_noise_level)
    hidden = see(latents, level, plan.visible)
    session.cache.commit(num_cached, slots.to(device))
    ends = (num_tokens - 1).to(device)[:, None, None].expand(-1, 1, hidden.shape[-1])
    session._logits = model.token_logits(hidden.gather(1, ends))[:, 0].float()
    drawn = spread(latents)
    session._settle(ids, drawn, slots, plan)
    session._note(ids, num_tokens, drawn)
    return latents


def _ragged(rows: list[Tensor], padding: int) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right, and how many each row has."""
    sizes = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(sizes.max())), padding)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return ids, sizes


def _noise(session: Session, count: int, steps: int, solver: str) -> tuple[Tensor, Tensor]:
    """First noise `(B, T, n, C)`, and that of each step, where the solver adds any.

    Each row draws from its own generator, frame by frame, as when frames come one by one.
    """
    config = session.config
    fresh = steps if read_solver(solver).is_stochastic else 0
    shape = (session.batch_size, count, config.frame_tokens, config.latent_size)
    noise, added = torch.zeros(shape), torch.zeros(fresh, *shape)
    for row, generator in enumerate(session.generators):
        for frame in range(count):
            for target in (noise, *added):
                target[row, frame] = torch.randn(shape[2:], generator=generator)
    return noise, added


def _seen(plan: Plan, num_tokens: Tensor, num_cached: int, is_bidirectional: bool) -> Tensor:
    """What noisy frames see: the plan's, or all of the span besides (see `plan_training`)."""
    if not is_bidirectional:
        return plan.visible
    visible = plan.visible.clone()
    is_real = torch.arange(visible.shape[-1]) < num_tokens[:, None]
    stop = (num_cached + num_tokens)[:, None].expand_as(is_real).to(visible)
    visible[:, 2, 1] = torch.where(is_real, stop, visible[:, 2, 1])
    return visible
