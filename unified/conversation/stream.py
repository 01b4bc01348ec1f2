"""TokenStream: a conversation as tokens, and frames as latent tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from unified.configuration import UnifiedConfig


@dataclass(frozen=True)
class TokenStream:
    """A conversation as tokens: what `plan` reads. L tokens, T frames of n latent tokens.

    Attributes:
        input_ids: `(L,)` int64. Every latent token holds the latent placeholder's id.
        targets: `(L,)` int64. The id to predict at this place; differs from `input_ids` where
            the expert's action is learned while another one was taken.
        weights: `(L,)` float32. Loss weight of predicting `targets` here.
        latents: `(T, n, latent_size)` float32. Clean latents, patched, in frame order.
        frame_weights: `(T,)` float32. Weight of each frame in the flow loss.
        motions: `(L, 3)` float32. What each action did (see `Segment.motion`), at its last token
            and zero at those before; NaN elsewhere, and where it was not measured.
    """

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    latents: Tensor
    frame_weights: Tensor
    motions: Tensor

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)


def as_latents(latents: Any, where: str) -> Tensor:
    """A frame's latents as `(c, h, w)` float32 on the CPU, without a gradient.

    Raises:
        ValueError: If they are no numbers of that shape.
    """
    try:
        # A copy of an array, which may be a read-only part of a file.
        source = np.array(latents) if isinstance(latents, np.ndarray) else latents
        tensor = torch.as_tensor(source).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where}: latents are a {type(latents).__name__} ({error}); give a tensor"
        ) from error
    if tensor.dim() != 3 or not tensor.is_floating_point():
        raise ValueError(
            f"{where}: latents of shape {tuple(tensor.shape)} and dtype {tensor.dtype}; give "
            "(channels, rows, columns) floating point numbers"
        )
    return tensor.float()


def patchify(latents: Tensor, patch_size: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Latents as tokens: `(..., c, h, w)` to `(..., (h/p) (w/p), c p p)`.

    Args:
        latents: Of frames of one size.
        patch_size: Side p of a token.
        grid: Rows and columns of tokens that there must be; None is any.

    Raises:
        ValueError: If height or width is not a multiple of the patch size, or of another grid.
    """
    *batch, c, h, w = latents.shape
    p = patch_size
    if grid is not None and (h, w) != (grid[0] * p, grid[1] * p):
        raise ValueError(
            f"a frame has {h}x{w} latents, the model's have {grid[0] * p}x{grid[1] * p} "
            "(height x width); resize the frames before they are encoded"
        )
    if h % p or w % p:
        raise ValueError(f"latents of {h}x{w} cannot be cut into patches of {p}x{p}; pad the frame")
    tokens = latents.reshape(-1, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(*batch, (h // p) * (w // p), c * p * p)


def unpatchify(tokens: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Tokens as latents, the inverse of `patchify`: `(..., rows cols, c p p)` to `(..., c, h, w)`.

    >>> import torch
    >>> latents = torch.arange(32.0).reshape(2, 4, 4)
    >>> torch.equal(unpatchify(patchify(latents, 2), 2, (2, 2)), latents)
    True
    """
    *batch, _, size = tokens.shape
    rows, cols = grid
    p = patch_size
    c = size // (p * p)
    latents = tokens.reshape(-1, rows, cols, c, p, p).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(*batch, c, rows * p, cols * p)


def place_tokens(tokens: Tensor, config: UnifiedConfig) -> Tensor:
    """A model's latent tokens `(..., n, C)` as latents `(..., c, h, w)` float32."""
    rows, columns = config.latent_grid
    return unpatchify(tokens.float(), config.latent_patch_size, (rows, columns))
