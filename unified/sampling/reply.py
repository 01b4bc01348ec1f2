"""What a run adds to each conversation.

Letters: B rows, L tokens, C latent size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig

Callback = Callable[[int, Tensor, Tensor | None], None]
"""Called with the row, the token ids `(L,)` of a finished segment, and its latents `(L, C)`."""


@dataclass
class Generation:
    """What a run added to each row.

    Attributes:
        input_ids: New token ids of each row, `(L,)` int64.
        latents: Latents at those tokens, `(L, C)`, zero where the token is no latent.
        config: The model's, to read the tokens by.
        prompts: Token ids of each prompt, `(L,)`; empty where a session ran.
    """

    input_ids: list[Tensor]
    latents: list[Tensor]
    config: UnifiedConfig
    prompts: list[Tensor] = field(default_factory=list)

    @property
    def sequences(self) -> Tensor:
        """Prompts and replies, `(B, L)` int64, padded on the right."""
        prompts = self.prompts or [ids[:0] for ids in self.input_ids]
        rows = [torch.cat(pair) for pair in zip(prompts, self.input_ids, strict=True)]
        padding = self.config.pad_token_id or 0
        return torch.nn.utils.rnn.pad_sequence(rows, True, padding)

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids and latents, row by row."""
        return zip(self.input_ids, self.latents, strict=True)
