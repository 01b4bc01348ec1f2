"""Watching a frame as it loses its noise."""

import torch
from torch import Tensor

from unified.conversation.stream import place_tokens
from unified.sampling.generation import Session
from unified.sampling.options import Options


def denoise_steps(session: Session, num_inference_steps: int) -> Tensor:
    """Draws the next frame of a session of one row, which then has it.

    Args:
        session: Stands behind an action, or where a first frame may come.
        num_inference_steps: S.

    Returns:
        Latents `(S + 1, c, h, w)`: as the model saw them at each step, from pure noise on, and as
        it drew them.
    """
    config = session.config
    session.extend(torch.tensor([[config.frame_token_id]]), torch.tensor([1]))
    seen: list[Tensor] = []
    options = Options(num_inference_steps=num_inference_steps)
    session._draw_frame(torch.tensor([True]), options, watch=seen)
    drawn = session.history(0)[1][None, -1 - config.frame_tokens : -1]
    return place_tokens(torch.cat([*seen, drawn]), config)
