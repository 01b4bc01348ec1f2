"""Drawing a frame: all its denoise steps, and the pass that commits it, as one call.

The first pass includes the queued tokens, those since the last frame. Every pass reads the cache
and the tokens of the call. The last pass writes the clean frame to the cache. No step waits for the
host, and no shape changes for a given number of cached slots, so that a GPU can replay the whole
call as one CUDA graph.

Letters: B rows, L tokens, n latent tokens of a frame, C latent size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from unified.model.cache import KVCache
from unified.model.flow import to_sample
from unified.model.transformer import Layout, UnifiedTransformer
from unified.sampling.sampler import SOLVERS

SLOTS = 256
"""Cached slots come in multiples of this, so that a compiled call serves many frames."""
MAX_QUEUED = 8
"""Most queued tokens that join the first pass. A compiled call always has so many, some of them
padding."""


@dataclass(frozen=True)
class FrameInputs:
    """Inputs of a call: the tokens of one frame in each row, behind the queued tokens.

    Attributes:
        input_ids: `(B, L)` int64. The last n + 1 are the frame's; padding is in front.
        position_ids: `(B, 3, L)` int64, from the plan, as the following.
        visible: `(B, 3, 2, L)` int32.
        path: `(B, 2, 2, L)` int32.
        slots: `(B, L)` int64, slots to commit to; -1 for padding, and in rows that draw nothing.
        noise: `(B, n, C)`, standard normal.
        schedule: `(S + 1,)`, noise levels from 1 to 0.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    path: Tensor
    slots: Tensor
    noise: Tensor
    schedule: Tensor

    def to(self, device: torch.device) -> FrameInputs:
        """All tensors on the device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def draw_frame(
    model: UnifiedTransformer,
    cache: KVCache,
    inputs: FrameInputs,
    num_cached: int,
    solver: str,
    is_compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Denoises frames and commits them.

    Args:
        model: Read only.
        cache: The tokens are written to it, at the slots of the inputs.
        inputs: On the model's device.
        num_cached: Slots in front of the tokens, at least those of the longest row.
        solver: Key of `SOLVERS`.
        is_compiled: See `DecoderLayer.forward`.

    Returns:
        Latents `(B, n, C)` in the noise's dtype, and logits `(B, V)` of what follows the frame.
    """
    config = model.config
    n = config.frame_tokens
    num_queued = inputs.input_ids.shape[1] - n - 1
    ids = inputs.input_ids[:, num_queued:]
    layout: Layout | None = None

    def lay_out(first: int) -> Layout:
        return model.lay_out(
            inputs.input_ids[:, first:],
            inputs.position_ids[..., first:],
            inputs.visible[..., first:],
            inputs.path[..., first:],
            num_cached + first,
        )

    def see_all(latents: Tensor, levels: Tensor) -> Tensor:
        """The first pass, with the queued tokens; their keys and values stay as scratch."""
        nonlocal layout
        whole = lay_out(0)
        padded = torch.nn.functional.pad(latents, (0, 0, num_queued, 1))
        hidden = model.embed(inputs.input_ids, padded, levels, whole)
        hidden, motions = model.decode(hidden, whole, cache, num_cached, is_compiled)
        places = None
        if motions is not None:
            acted = motions * whole.is_action
            cos, sin = model.place_rotary(acted, whole, cache, num_cached)
            places = cos[:, :, num_queued:], sin[:, :, num_queued:]
        layout = replace(lay_out(num_queued), places=places)  # no action among the frame's tokens
        return hidden[:, num_queued:]

    def see(latents: Tensor, levels: Tensor) -> Tensor:
        """Hidden states `(B, n + 1, D)` of latents `(B, n, C)` at levels `(B, 1)`."""
        if layout is None:
            return see_all(latents, levels)
        padded = torch.nn.functional.pad(latents, (0, 0, 0, 1))
        hidden = model.embed(ids, padded, levels, layout)
        return model.decode(hidden, layout, cache, num_cached + num_queued, is_compiled)[0]

    def denoise(noisy: Tensor, levels: Tensor) -> Tensor:
        seen = model.latent_head(see(noisy[:, 0], levels)[:, :n]).to(noisy.dtype)
        sample = to_sample(seen, noisy[:, 0], levels[..., None], config.prediction_type)
        return sample[:, None]

    schedule = inputs.schedule[:, None]  # one frame: a single column
    latents = SOLVERS[solver](denoise, inputs.noise[:, None], schedule)[:, 0]
    level = latents.new_full((len(ids), 1), config.context_noise_level)
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
        self._graphs: dict[tuple[int, int, int, str], _Graph] = {}

    def __call__(
        self, cache: KVCache, inputs: FrameInputs, num_cached: int, solver: str
    ) -> tuple[Tensor, Tensor]:
        """Arguments and result as in `draw_frame`."""

        def draw(given: FrameInputs) -> tuple[Tensor, Tensor]:
            return draw_frame(self.model, cache, given, num_cached, solver, is_compiled=True)

        if inputs.noise.device.type != "cuda":
            return draw(inputs)
        address = cache.states.data_ptr()
        key = (address, num_cached, len(inputs.schedule), solver)
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
