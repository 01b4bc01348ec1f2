"""What a prompt has to be before a session takes it: shapes, padding, grids, generators.

Letters: B rows, L tokens, C latent size.
"""

import torch
from torch import Tensor

from unified.model.configuration import UnifiedConfig


def row_generators(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int
) -> list[torch.Generator]:
    """One CPU generator for each row.

    Raises:
        ValueError: If a list of another length is given, or one is on a GPU.
    """
    if isinstance(generator, list):
        if len(generator) != batch_size:
            raise ValueError(
                f"{len(generator)} generators for {batch_size} rows; give one for each"
            )
        for one in generator:
            _check_generator(one)
        return generator
    _check_generator(generator)
    seeds = torch.randint(2**62, (batch_size,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"the generator is on {generator.device}; give torch.Generator(), so that a seed means "
            "the same on every device"
        )


def count_tokens(input_ids: Tensor, attention_mask: Tensor | None, config: UnifiedConfig) -> Tensor:
    """Number of tokens of each prompt, `(B,)` int64.

    Raises:
        ValueError: If ids or mask have a wrong shape or range, the mask is not one run of ones
            from the left, or a prompt is empty or too long.
    """
    if input_ids.dim() != 2 or input_ids.is_floating_point():
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
    if not bool(torch.isfinite(latents[is_latent.to(latents.device)]).all()):
        raise ValueError("latents hold NaN or infinity; check the frames and the codec")
