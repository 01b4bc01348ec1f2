"""Inpainting: what is known of a frame, so that a model draws the rest of it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import frame_segment


def known_latents(processor: UnifiedProcessor, frame: Any, mask: np.ndarray) -> Tensor:
    """What is known of a frame, for `generate(known=...)`.

    Args:
        processor: The model's.
        frame: What `UnifiedProcessor.read_frame` takes: pixels, a picture or its path.
        mask: `(H, W)` bool, in the size of the model's frames, True where the picture is known.

    Returns:
        `(1, n, C)` float32, NaN in tokens of which a pixel is not known.

    Raises:
        ValueError: If the frame cannot be read, or the mask is no such array.
    """
    pixels = processor.read_frame(frame, "the frame")
    mask = np.asarray(mask)
    if mask.shape != pixels.shape[:2] or mask.dtype != bool:
        raise ValueError(
            f"mask is {mask.shape} {mask.dtype}; give bool of the frame's height and width, "
            f"{pixels.shape[:2]}"
        )
    latents = processor.encode_pixels(pixels[None])
    tokens = processor.frame_latents([frame_segment(latents=latents[0])])
    rows, columns = (side // processor.latent_patch_size for side in latents.shape[2:])
    blocks = mask.reshape(rows, len(mask) // rows, columns, -1)
    is_known = torch.from_numpy(blocks.all(axis=(1, 3))).flatten()
    return torch.where(is_known[None, :, None], tokens, torch.nan)
