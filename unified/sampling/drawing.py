"""Drawing a frame: all its denoise steps, and the pass that commits it, as one call.

The first pass includes the queued tokens, those since the last frame. Every pass reads the cache
and the tokens of the call. The last pass writes the clean frame to the cache. No step waits for the
host, and no shape changes for a given number of cached slots, so that a GPU can replay the whole
call as one CUDA graph.

Letters: B rows, L tokens, n latent tokens of a frame, C latent size, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from unified.model.cache import KVCache
from unified.model.flow import to_sample
from unified.model.transformer import Layout, UnifiedTransformer
from unified.sampling.diffusion.schedules import noise_schedule
from unified.sampling.diffusion.solvers import read_solver
from unified.sampling.options import Options

SLOTS = 256
"""Cached slots come in multiples of this, so that a compiled call serves many frames."""
MAX_QUEUED = 8
"""Most queued tokens that join the first pass. A compiled call always has so many, some of them
padding."""


@dataclass(frozen=True)
class FrameInputs:
    """Inputs of a call: the tokens of one frame in each row, behind the queued tokens.

    Attributes:
        input_ids: `(B, L)` int64. The last n + 1 are the frame's, but for copies; padding is in
            front.
        position_ids: `(B, 3, L)` int64, from the plan, as the following.
        visible: `(B, 3, 2, L)` int32.
        path: `(B, 2, 2, L)` int32.
        slots: `(B, L)` int64, slots to commit to, without copies; -1 for padding, and in rows that
            draw nothing.
        noise: `(B, n, C)`, standard normal.
        schedule: `(S + 1,)`, noise levels from 1 to 0.
        fresh_noise: `(S, B, n, C)`, likewise, for a stochastic solver; else `(0, B, n, C)`.
        known: `(B, n, C)`, latents that are given, NaN where they are to be drawn.
        scales: `(K,)`, guidance of the copies; the tokens of copies follow the frame's, see
            `unified.sampling.diffusion.guidance`.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    path: Tensor
    slots: Tensor
    noise: Tensor
    schedule: Tensor
    fresh_noise: Tensor
    known: Tensor
    scales: Tensor

    def to(self, device: torch.device) -> FrameInputs:
        """All tensors on the device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def steps_of(options: Options, model: UnifiedTransformer) -> Tensor:
    """Noise levels of a frame's denoise steps, `(S + 1,)` from 1 to 0, as they are asked for."""
    if options.timesteps is not None:
        return torch.tensor(options.timesteps)
    steps = options.num_inference_steps or model.config.num_inference_steps
    learned = model.config.learned_steps
    if learned and steps not in learned:
        warnings.warn(
            f"{steps} denoise steps are asked of a model that was distilled for "
            f"{', '.join(map(str, learned))}; it takes them as before it was distilled",
            stacklevel=2,
        )
    return noise_schedule(steps, options.time_grid, model.noise_path)


def told_sizes(
    model: UnifiedTransformer, solver: str, schedule: Tensor, levels: Tensor
) -> Tensor | None:
    """How far the steps go that begin at these levels, for a model that learned such steps.

    Args:
        model: Perhaps a distilled one.
        solver: As `read_solver` takes it.
        schedule: `(S + 1,)`, a frame's levels from 1 to 0.
        levels: `(B, T)`.

    Returns:
        `(B, T)`; None where the model is told nothing.
    """
    knows = model.step_size_embedding is not None and read_solver(solver).takes_whole_steps
    if not knows or len(schedule) - 1 not in (model.config.learned_steps or ()):
        return None
    below = torch.where(schedule < levels[..., None], schedule, 0.0)
    return levels - below.amax(-1)


def draw_frame(
    model: UnifiedTransformer,
    cache: KVCache,
    inputs: FrameInputs,
    num_cached: int,
    solver: str,
    is_compiled: bool = False,
    watch: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoises frames and commits them.

    Args:
        model: Read only.
        cache: The tokens are written to it, at the slots of the inputs.
        inputs: On the model's device.
        num_cached: Slots in front of the tokens, at least those of the longest row.
        solver: As `read_solver` takes it.
        is_compiled: See `DecoderLayer.forward`.
        watch: Takes the noisy latents `(B, n, C)` that the model sees, one by one.

    Returns:
        Latents `(B, n, C)` in the noise's dtype, and logits `(B, V)` of what follows the frame.
    """
    config, path = model.config, model.noise_path
    n = config.frame_tokens
    num_queued = inputs.slots.shape[1] - n - 1
    num_copies = len(inputs.scales)
    copy_tokens = (inputs.input_ids.shape[1] - inputs.slots.shape[1]) // max(num_copies, 1)
    latest = max(copy_tokens - n, 0)  # tokens of a copy in front of its latents
    layout: Layout | None = None

    def lay_out(first: int, stop: int | None = None) -> Layout:
        return model.lay_out(
            inputs.input_ids[:, first:stop],
            inputs.position_ids[..., first:stop],
            inputs.visible[..., first:stop],
            inputs.path[..., first:stop],
            num_cached + first,
        )

    def spread(latents: Tensor, first: int) -> Tensor:
        """Latents `(B, n, C)` at the frame's tokens and at each copy's, from a token on."""
        copy = torch.nn.functional.pad(latents, (0, 0, latest, 0))
        frame = torch.nn.functional.pad(latents, (0, 0, num_queued - first, 1))
        return torch.cat([frame, *[copy] * num_copies], 1)

    def see_all(latents: Tensor, levels: Tensor) -> Tensor:
        """The first pass, with the queued tokens; their keys and values stay as scratch."""
        nonlocal layout
        whole = lay_out(0)
        sizes = told_sizes(model, solver, inputs.schedule, levels)
        hidden = model.embed(inputs.input_ids, spread(latents, 0), levels, whole, sizes)
        hidden, motions = model.decode(hidden, whole, cache, num_cached, is_compiled)
        places = None
        if motions is not None:
            acted = motions * whole.is_action
            cos, sin = model.place_rotary(acted, whole, cache, num_cached)
            places = cos[:, :, num_queued:], sin[:, :, num_queued:]
        layout = replace(lay_out(num_queued), places=places)  # what moved the view is known
        return hidden[:, num_queued:]

    def see(latents: Tensor, levels: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Hidden states `(B, n + 1 + copies, D)` of latents `(B, n, C)` at levels `(B, 1)`."""
        if layout is None:
            return see_all(latents, levels)
        ids = inputs.input_ids[:, num_queued:]
        hidden = model.embed(ids, spread(latents, num_queued), levels, layout, sizes)
        return model.decode(hidden, layout, cache, num_cached + num_queued, is_compiled)[0]

    def denoise(noisy: Tensor, levels: Tensor) -> Tensor:
        if watch is not None:
            watch.append(noisy[:, 0])
        hidden = see(noisy[:, 0], levels, told_sizes(model, solver, inputs.schedule, levels))

        def sample_at(first: int) -> Tensor:
            seen = model.latent_head(hidden[:, first : first + n]).to(noisy.dtype)
            kind = config.prediction_type
            return to_sample(seen, noisy[:, 0], levels[..., None], kind, path)

        drawn = sample = sample_at(0)
        for copy, scale in enumerate(inputs.scales):
            without = sample_at(n + 1 + copy * copy_tokens + latest)
            sample = sample + (scale - 1) * (drawn - without)
        return torch.where(inputs.known.isnan(), sample, inputs.known)[:, None]

    schedule = inputs.schedule[:, None]  # one frame: a single column
    fresh_noise = inputs.fresh_noise[:, :, None]
    latents = read_solver(solver)(denoise, inputs.noise[:, None], schedule, path, fresh_noise)[:, 0]
    level = latents.new_full((len(latents), 1), config.context_noise_level)
    if num_copies:  # they are not committed
        assert layout is not None
        stop = num_queued + n + 1
        places = layout.places and (
            layout.places[0][:, :, : n + 1],
            layout.places[1][:, :, : n + 1],
        )
        layout, num_copies = replace(lay_out(num_queued, stop), places=places), 0
        inputs = replace(inputs, input_ids=inputs.input_ids[:, :stop])
    last = see(latents, level)[:, -1:]
    cache.commit(num_cached, inputs.slots)
    return latents, model.token_logits(last)[:, 0].float()


class CompiledDrawing:
    """`draw_frame` for many frames of one session: compiled, and on a GPU replayed as a graph.

    A CUDA graph has fixed addresses and sizes. So there is one for each multiple of `SLOTS`, and
    all belong to one cache.
    """

    def __init__(self, model: UnifiedTransformer):
        """Keeps the model; code is compiled when it first draws."""
        self.model = model
        self._graphs: dict[tuple[int, int, tuple[int, ...], str], _Graph] = {}

    def __call__(
        self, cache: KVCache, inputs: FrameInputs, num_cached: int, solver: str
    ) -> tuple[Tensor, Tensor]:
        """Arguments and result as in `draw_frame`."""

        def draw(given: FrameInputs) -> tuple[Tensor, Tensor]:
            return draw_frame(self.model, cache, given, num_cached, solver, is_compiled=True)

        if inputs.noise.device.type != "cuda":
            return draw(inputs)
        address = cache.states.data_ptr()
        sizes = (*inputs.input_ids.shape, len(inputs.schedule), len(inputs.scales))
        key = (address, num_cached, sizes, solver)
        if key not in self._graphs:
            # A cache that has grown lies elsewhere, and what was captured before is void.
            self._graphs = {k: graph for k, graph in self._graphs.items() if k[0] == address}
            self._graphs[key] = _Graph(draw, inputs)
        return self._graphs[key](inputs)


class _Graph:
    """A captured CUDA graph. The next call overwrites its results, so copies are returned."""

    def __init__(self, draw: Callable[[FrameInputs], tuple[Tensor, Tensor]], inputs: FrameInputs):
        self.inputs = replace(
            inputs, **{f.name: getattr(inputs, f.name).clone() for f in fields(inputs)}
        )
        # Kernels are chosen and compiled on another stream, before anything is recorded. The frame
        # is committed to the same slots each time, so doing it twice changes nothing.
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a graph may not read casts that are freed later
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            draw(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = draw(self.inputs)
        torch.set_autocast_cache_enabled(cached)

    def __call__(self, inputs: FrameInputs) -> tuple[Tensor, Tensor]:
        for field in fields(inputs):
            getattr(self.inputs, field.name).copy_(getattr(inputs, field.name))
        self.graph.replay()
        latents, logits = self.result
        return latents.clone(), logits.clone()
