"""Words alone, outside of any conversation: what a language model would say."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unified.model.transformer import UnifiedTransformer
from unified.sampling.generation import Session


@torch.no_grad()
def complete(
    model: UnifiedTransformer,
    input_ids: Tensor,
    *,
    max_new_tokens: int = 64,
    stop: Sequence[int] = (),
) -> Tensor:
    """Goes on with words alone, outside of any conversation: what the language model would say.

    Args:
        model: A `UnifiedModel` made from a language model.
        input_ids: `(L,)` int64, words.
        max_new_tokens: At most so many.
        stop: Ids that end it.

    Returns:
        `(M,)` int64: the likeliest words, the one that ended it included.
    """
    session = Session(model, input_ids[None])
    first, last = model.config.text_token_ids
    said: list[int] = []
    while len(said) < max_new_tokens and not (said and said[-1] in stop):
        token = session.logits[:, first:last].argmax(-1).cpu() + first
        said.append(int(token))
        session.extend(token[:, None], torch.ones(1, dtype=torch.int64))
    return torch.tensor(said)
