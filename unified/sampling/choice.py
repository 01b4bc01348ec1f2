"""The next token of each row: the likeliest legal one, or a sample.

Letters: B rows, V vocabulary.
"""

import torch
from torch import Tensor

from unified.sampling.options import Options


def choose(
    logits: Tensor,
    legal: Tensor,
    waits: Tensor,
    options: Options,
    generators: list[torch.Generator],
) -> Tensor:
    """Picks a token in each row.

    Args:
        logits: `(B, V)` float32.
        legal: `(B, V)` bool, on the CPU.
        waits: `(B,)` bool, rows that are asked; what is picked in the others means nothing.
        options: Temperature, `top_k` and `top_p`.
        generators: One for each row, which it draws from only where it has a choice.

    Returns:
        `(B,)` int64, on the CPU.

    Raises:
        ValueError: If a row's logits are not finite.
    """
    is_legal = legal.to(logits.device)
    scores = logits.masked_fill(~is_legal, -torch.inf)
    if options.temperature > 0:
        # Masked again: at a great temperature, minus infinity becomes NaN.
        scores = (scores / options.temperature).masked_fill(~is_legal, -torch.inf)
        if options.top_k is not None:
            kept = scores.topk(min(options.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < kept, -torch.inf)
        if options.top_p is not None:
            scores = _nucleus(scores, options.top_p)
        # Gumbel's trick.
        for row in (waits & (legal.sum(1) > 1)).nonzero()[:, 0].tolist():
            uniform = torch.rand(scores.shape[-1], generator=generators[row])
            scores[row] -= (-uniform.clamp(min=1e-20).log()).log().to(scores)
    is_sane = torch.isfinite(logits).all(1)
    token, is_sane = torch.stack([scores.argmax(-1), is_sane]).cpu()  # waits for the GPU once
    if not bool(is_sane[waits].all()):
        raise ValueError("the model's logits hold NaN or infinity; the weights are broken")
    return token


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Only the likeliest tokens that have the probability `top_p` together (arXiv:1904.09751)."""
    ordered, places = scores.sort(descending=True, stable=True)
    shares = ordered.softmax(-1)
    before = shares.cumsum(-1) - shares
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(scores).scatter_(-1, places, ordered)
