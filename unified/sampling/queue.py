"""Queued tokens: those of a conversation that the model has not seen yet.

The logits after a token are not needed if the grammar forces the next token, or if that token is
given. Such tokens are queued, and join the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueuedTokens:
    """Ragged tokens, padded on the right.

    Attributes:
        input_ids: `(B, L)` int64.
        num_tokens: `(B,)` int64, of each row.
        latents: `(B, L, C)`; None where no token is a latent.
    """

    input_ids: Tensor
    num_tokens: Tensor
    latents: Tensor | None = None

    def __len__(self) -> int:
        """Tokens of the longest row, with its padding."""
        return self.input_ids.shape[1]

    def then(self, more: QueuedTokens) -> QueuedTokens:
        """These tokens, and `more` behind them in each row."""
        if not len(self):
            return more
        length = int((self.num_tokens + more.num_tokens).max())
        index = torch.arange(len(more), device=more.num_tokens.device)
        rows, tokens = (index < more.num_tokens[:, None]).nonzero(as_tuple=True)
        places = self.num_tokens[rows] + tokens

        def join(first: Tensor | None, second: Tensor | None) -> Tensor | None:
            known = second if first is None else first
            if known is None:
                return None
            dtype = torch.promote_types(known.dtype, (known if second is None else second).dtype)
            out = known.new_zeros(known.shape[0], length, *known.shape[2:], dtype=dtype)
            if first is not None:
                out[:, : len(self)] = first[:, :length]
            if second is not None:
                out[rows, places] = second[rows, tokens].to(dtype)
            elif first is not None:
                out[rows, places] = 0
            return out

        input_ids = join(self.input_ids, more.input_ids)
        assert input_ids is not None
        return QueuedTokens(
            input_ids,
            self.num_tokens + more.num_tokens,
            join(self.latents, more.latents),
        )

    def between(self, start: Tensor, stop: Tensor) -> QueuedTokens:
        """The tokens from `start` to `stop`, `(B,)` each, of each row."""
        size = stop - start
        index = torch.arange(int(size.max()))
        at = torch.where(index < size[:, None], start[:, None] + index, 0)
        latents = self.latents
        if latents is not None:
            where = at.to(latents.device)[..., None].expand(-1, -1, latents.shape[2])
            latents = latents.gather(1, where)
        return QueuedTokens(self.input_ids.gather(1, at), size, latents)

    def aligned_right(self, length: int) -> tuple[Tensor, Tensor]:
        """Ids `(B, length)` with the padding in front, and how much of it each row has, `(B,)`."""
        lead = length - self.num_tokens
        index = torch.arange(length) - lead[:, None]
        ids = self.input_ids.gather(1, index.clamp(min=0)) if len(self) else index
        return torch.where(index >= 0, ids, 0), lead

    def select(self, rows: Tensor) -> QueuedTokens:
        """The tokens of some rows (int64 indices, repeats allowed)."""
        return QueuedTokens(
            self.input_ids[rows],
            self.num_tokens[rows],
            None if self.latents is None else self.latents[rows],
        )

    def without(self, rows: Tensor) -> QueuedTokens:
        """All but the tokens of the rows where `(B,)` bool is True."""
        kept = self.num_tokens.masked_fill(rows, 0)
        return QueuedTokens(self.input_ids, kept, self.latents)


def no_tokens(batch_size: int) -> QueuedTokens:
    """No token in any row."""
    counts = torch.zeros(batch_size, dtype=torch.int64)
    return QueuedTokens(counts[:, None][:, :0], counts)
