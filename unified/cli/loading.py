"""A model and its processor on a device, as a command names them."""

import torch

from unified.conversation.processing import UnifiedProcessor
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


def load(name: str, device: str | None) -> tuple[UnifiedModel, UnifiedProcessor]:
    """Loads both.

    Raises:
        ValueError: If there is no such checkpoint or device.
    """
    place = device_of(device)
    processor = UnifiedProcessor.from_pretrained(name)
    model = UnifiedModel.from_pretrained(name).eval()
    torch.nn.Module.to(model, place)
    if processor.codec is not None:
        processor.codec.to(place)
    return model, processor
