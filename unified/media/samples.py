"""First frames to try a model with: some are shipped, minigrid makes all others."""

import contextlib
import io
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unified.files import atomic_path

FOLDER = Path(__file__).parents[1] / "samples"
SEED = 1_000_000
"""Of the shipped frames: the first of the seeds that are never trained on."""
_TILE = 8


@dataclass(frozen=True)
class Sample:
    """The beginning of an episode.

    Attributes:
        frame: 56x56 pixels, RGB.
        task: What the level asks for, in words.
    """

    frame: Image.Image
    task: str

    def save(self, path: Path) -> None:
        """Writes a PNG that holds the task as well."""
        info = PngInfo()
        info.add_text("task", self.task)
        with atomic_path(path) as temporary:
            self.frame.save(temporary, format="PNG", pnginfo=info)


def sample(level: str = "OpenDoor", seed: int = SEED) -> Sample:
    """The first frame and the task of a BabyAI level.

    Args:
        level: Such as "GoToRedBall".
        seed: Of the environment. Seeds below a million may have been trained on.

    Raises:
        ValueError: If the frame is not shipped, and minigrid is missing or has no such level.

    >>> sample("OpenDoor").task
    'open the door on your right'
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise ValueError(f"seed={seed!r} must be a whole number")
    path = FOLDER / f"{level}.png"
    if seed != SEED or level not in shipped_levels():
        return _made(level, seed)
    with Image.open(path) as image:
        return Sample(image.convert("RGB"), str(image.info["task"]))


def shipped_levels() -> list[str]:
    """Levels whose first frame is in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.png"))


def _made(level: str, seed: int) -> Sample:
    """The first frame and the task of a level, made by minigrid."""
    shipped = f"{', '.join(shipped_levels())} with seed {SEED}"
    try:
        import gymnasium
        from minigrid.wrappers import RGBImgPartialObsWrapper
    except ImportError as error:
        raise ValueError(
            f"level {level!r} with seed {seed} is not shipped, and {error.name} is not installed "
            f"to make it; use {shipped}, or pip install minigrid"
        ) from error
    name = f"BabyAI-{level}-v0"
    if name not in gymnasium.registry:
        raise ValueError(
            f"level {level!r} is unknown; name a BabyAI level like 'GoToRedBall', or use {shipped}"
        )
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; give one from 0 up")
    env = RGBImgPartialObsWrapper(gymnasium.make(name, disable_env_checker=True), tile_size=_TILE)
    with contextlib.redirect_stdout(io.StringIO()):  # minigrid tells of its attempts
        seen, _ = env.reset(seed=seed)
    return Sample(Image.fromarray(seen["image"]), str(seen["mission"]))
