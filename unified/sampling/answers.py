"""When a query is answered, and what else a token that was chosen says about what follows.

Letters: B rows, V vocabulary.
"""

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.conversation.grammar import Grammar


def is_answered(
    query: str, token: Tensor, moved: Tensor, acted: Tensor, grammar: Grammar
) -> Tensor:
    """Rows whose query is answered by the token they just committed, `(B,)` bool.

    Args:
        query: policy, forward, inverse or joint.
        token: `(B,)` int64.
        moved: `(B,)` bool, rows that committed it.
        acted: `(B,)` bool, rows in which it ends an action.
        grammar: The model's.
    """
    config = grammar.config
    is_outcome = moved & torch.isin(token, torch.tensor(config.outcome_token_ids))
    spoke = moved & (token == grammar.eos)
    if query == "forward":
        return is_outcome | spoke
    is_final = is_outcome & (token != config.ongoing_token_id)
    if query == "joint":
        return is_final | spoke
    if query == "inverse":
        return acted
    return acted | is_final | spoke


def whole_sizes(token: Tensor, rest: list[list[tuple[int, int]]], config: UnifiedConfig) -> Tensor:
    """Tokens of what a token begins, `(B,)`: a frame and an action are whole or not there.

    Args:
        token: `(B,)` int64.
        rest: What is missing of each row's action that has begun.
        config: The model's.
    """
    sizes = torch.ones_like(token)
    sizes[token == config.frame_token_id] = config.frame_tokens + 2
    first, stop = config.action_token_ids
    for row in ((token >= first) & (token < stop)).nonzero()[:, 0].tolist():
        if not rest[row]:
            sizes[row] = len(config.action_format(int(token[row])))
    return sizes


def run_of(like: Tensor, start: int, stop: int) -> Tensor:
    """A `(1, V)` bool mask, True in [start, stop)."""
    mask = torch.zeros_like(like[:1])
    mask[:, start:stop] = True
    return mask
