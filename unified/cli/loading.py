"""A model and its processor on a device, as a command names them."""

import torch

from unified.conversation.processing import UnifiedProcessor
from unified.media.pictures import Fit
from unified.modeling import UnifiedModel


def load_processor(name: str, device: str, resize: Fit | None = None) -> UnifiedProcessor:
    """Loads what reads the prompt.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    processor = UnifiedProcessor.from_pretrained(name, resize=resize)
    if processor.codec is not None:
        processor.codec.to(device)
    return processor


def load_model(name: str, device: str) -> UnifiedModel:
    """Loads what answers it.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    model = UnifiedModel.from_pretrained(name).eval()
    torch.nn.Module.to(model, device)
    return model
