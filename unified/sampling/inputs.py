"""Checks of a prompt before a session takes it: shapes, padding, grids, generators.

Letters: B rows, L tokens, C latent size.
"""

from typing import Any

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig


def row_generators(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int
) -> list[torch.Generator]:
    """One CPU generator for each row.

    Raises:
        ValueError: If a list of another length is given, or one is on a GPU.
    """
    for one in generator if isinstance(generator, list) else [generator]:
        if one is not None and not isinstance(one, torch.Generator):
            raise ValueError(
                f"generator is {one!r}; give torch.Generator().manual_seed(0), or seed=0"
            )
        if one is not None and one.device.type != "cpu":
            raise ValueError(
                f"the generator is on {one.device}; make it on the CPU, torch.Generator(), so that "
                "a seed means the same on every device"
            )
    if isinstance(generator, list):
        if len(generator) != batch_size:
            raise ValueError(
                f"{len(generator)} generators for {batch_size} rows; give one for each"
            )
        return generator
    seeds = torch.randint(2**62, (batch_size,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def check_tensor(name: str, value: Any, is_needed: bool = False) -> Any:
    """Refuses what is no tensor, and returns what is one.

    Raises:
        ValueError: Naming the input.
    """
    if not isinstance(value, Tensor) and (is_needed or value is not None):
        raise ValueError(
            f"{name} is a {type(value).__name__}, no tensor; give **inputs as the processor makes "
            "them, with return_tensors='pt'"
        )
    return value


def check_inverse(histories: list[list[Tensor]], config: UnifiedConfig) -> None:
    """Refuses to name the action between frames where there are no two.

    Args:
        histories: Token ids of each row that is asked, in pieces.
        config: The model's.

    Raises:
        ValueError: Naming the first such row and the fix.
    """
    for row, pieces in enumerate(histories):
        frames = 0
        for ids in reversed(pieces):
            frames += int((ids == config.frame_token_id).sum())
            if frames > 1:
                break
        else:
            raise ValueError(
                f"prompt {row} has {frames} frame, and 'inverse' names the action between two; "
                "show the frame before, an unknown action, and the frame after"
            )


def count_tokens(input_ids: Tensor, attention_mask: Tensor | None, config: UnifiedConfig) -> Tensor:
    """Number of tokens of each prompt, `(B,)` int64.

    Raises:
        ValueError: If ids or mask have a wrong shape or range, the mask is not one run of ones
            from the left, or a prompt is empty or too long.
    """
    is_integer = not (input_ids.is_floating_point() or input_ids.is_complex())
    if input_ids.dim() != 2 or not is_integer or input_ids.dtype == torch.bool:
        raise ValueError(
            f"input_ids of shape {tuple(input_ids.shape)} and dtype {input_ids.dtype} do not fit; "
            "give (rows, tokens) int64"
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} does not fit; give "
            f"{tuple(input_ids.shape)}"
        )
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise ValueError(
            f"attention_mask is {attention_mask.dtype}; give 1 for tokens and 0 for padding, as "
            "int64 or bool"
        )
    attention_mask = attention_mask.long()
    if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError("attention_mask holds other numbers than 1 for tokens and 0 for padding")
    if bool((attention_mask.diff(dim=1) > 0).any()):
        raise ValueError("attention_mask pads in front of tokens; pad prompts on the right")
    num_tokens = attention_mask.sum(1)
    if not input_ids.numel() or not bool((num_tokens > 0).all()):
        raise ValueError("a prompt is empty; give at least a task or a frame")
    limit = config.max_position_embeddings
    if int(num_tokens.max()) > limit:
        raise ValueError(f"a prompt of {int(num_tokens.max())} tokens exceeds {limit}; shorten it")
    if int(input_ids.min()) < 0 or int(input_ids.max()) >= config.vocab_size:
        raise ValueError(
            f"input_ids in [{int(input_ids.min())}, {int(input_ids.max())}] leave the vocabulary "
            f"of {config.vocab_size}; use the model's own processor"
        )
    return num_tokens


def check_frames(
    input_ids: Tensor, num_tokens: Tensor, latents: Tensor | None, config: UnifiedConfig
) -> None:
    """Refuses frames that no plan can be made of.

    Raises:
        ValueError: If frames have another grid than the model's, or if latents are missing, of
            another size, or not finite.
    """
    is_real = torch.arange(input_ids.shape[1], device=input_ids.device) < num_tokens[:, None]
    is_latent = (input_ids == config.latent_token_id) & is_real
    num_latents = is_latent.sum(1)
    num_frames = ((input_ids == config.frame_token_id) & is_real).sum(1)
    if not torch.equal(num_latents, num_frames * config.frame_tokens):
        rows, cols = config.latent_grid
        raise ValueError(
            f"{num_latents.tolist()} latent tokens for {num_frames.tolist()} frames; this "
            f"model's frames are {rows}x{cols} tokens: resize the frames"
        )
    if not bool(is_latent.any()):
        return
    if latents is None or latents.shape != (*input_ids.shape, config.latent_size):
        shape = None if latents is None else tuple(latents.shape)
        raise ValueError(
            f"latents of shape {shape} do not fit; give {(*input_ids.shape, config.latent_size)}"
        )
    if not latents.is_floating_point():
        raise ValueError(f"latents are {latents.dtype}; give floating point numbers")
    if not bool(torch.isfinite(latents[is_latent.to(latents.device)]).all()):
        raise ValueError("latents hold NaN or infinity; check the frames and the codec")


def check_known(known: Any, batch_size: int, config: UnifiedConfig) -> Tensor | None:
    """Latents of the next frame that are given, as float32 on the CPU; None stays None.

    Raises:
        ValueError: If they have another shape, or hold infinity.
    """
    if known is None:
        return None
    known = check_tensor("known", known, is_needed=True).detach().cpu()
    shape = (batch_size, config.frame_tokens, config.latent_size)
    if known.shape != shape or not known.is_floating_point():
        raise ValueError(
            f"known is {tuple(known.shape)} {known.dtype}; give {shape} floating point numbers, "
            "NaN where the frame is to be drawn, as processor.known_latents makes them"
        )
    if bool(known.isinf().any()):
        raise ValueError("known holds infinity; give numbers, or NaN where the frame is drawn")
    return known.float()
