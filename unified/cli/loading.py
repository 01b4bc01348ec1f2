"""A model and its processor on a device, as a command names them."""

import torch

from unified.conversation.processing import UnifiedProcessor
from unified.media.pictures import Fit
from unified.modeling import UnifiedModel


def device_of(name: str | None) -> torch.device:
    """A device by name; None is a GPU where there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name!r} cannot be used ({reason}); use cpu or cuda") from error
    return device


def load_processor(name: str, device: torch.device, resize: Fit | None = None) -> UnifiedProcessor:
    """Loads what reads the prompt.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    processor = UnifiedProcessor.from_pretrained(name, resize=resize)
    if processor.codec is not None:
        processor.codec.to(device)
    return processor


def load_model(name: str, device: torch.device) -> UnifiedModel:
    """Loads what answers it.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    model = UnifiedModel.from_pretrained(name).eval()
    torch.nn.Module.to(model, device)
    return model
