"""How far the mouse moves in recordings, without the slips of a few moments."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unified.media.actions import KeyboardMouseActions

QUANTILE = 0.99
SLIP = 3.0
"""A movement so many times as far as nearly all others is cut off: it would take all bins."""


@dataclass(frozen=True)
class MouseRange:
    """Farthest movements that are told, and what lies beyond.

    Attributes:
        farthest: To the right or left, and down or up.
        clipped: How many movements were farther, in each direction.
        slip: The farthest of all, in each direction.
        count: Movements in all.
    """

    farthest: tuple[float, float]
    clipped: tuple[int, int]
    slip: tuple[float, float]
    count: int

    @classmethod
    def of(
        cls, movements: Sequence[Sequence[float]], given: Sequence[float] | None = None
    ) -> "MouseRange":
        """The range of recorded movements.

        Within it lie all of them, unless the farthest is more than three times as far as 99 % of
        those that move at all; then it is what these do.

        Args:
            movements: `[right, down]` each.
            given: The range, if somebody knows it.

        Raises:
            ValueError: If a given range is not positive.
        """
        moved = np.abs(np.asarray(movements, dtype=np.float64).reshape(-1, 2))
        if given is not None and not (np.isfinite(given).all() and min(given) > 0):
            raise ValueError(f"the mouse's range {list(given)} must be two positive numbers")
        farthest = [_reach(axis) for axis in moved.T] if given is None else list(given)
        clipped = (moved > farthest).sum(0).tolist()
        slip = moved.max(0, initial=0.0).tolist()
        return cls((farthest[0], farthest[1]), tuple(clipped), tuple(slip), len(moved))

    def clip(self, movement: Sequence[float]) -> list[float]:
        """A movement within the range."""
        limit = np.array(self.farthest)
        return np.clip(np.asarray(movement, dtype=np.float64), -limit, limit).tolist()

    def report(self, space: KeyboardMouseActions) -> str:
        """Range, resolution and what was cut off, per axis."""
        axes = []
        for place, name in enumerate(("right", "down")):
            line = f"{name} within {space.resolution[place]:.3g} of {self.farthest[place]:g}"
            if self.clipped[place]:
                line += (
                    f", {self.clipped[place]} of {self.count} movements clipped to it "
                    f"(farthest {self.slip[place]:g})"
                )
            axes.append(line)
        return "; ".join(axes)


def _reach(moved: np.ndarray) -> float:
    moved = moved[moved > 0]
    if not len(moved):
        return 1.0
    usual = float(np.quantile(moved, QUANTILE, method="lower"))
    farthest = float(moved.max())
    return usual if farthest > SLIP * usual else farthest
