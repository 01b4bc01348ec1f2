"""Counting: what was right, of how many, by figure and episode."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from eval.babyai.tiles import legal_tiles, read_frame
from eval.babyai.truth import TileClasses, View
from eval.statistics import Estimate, ratio_over_episodes


def _no_counts() -> dict[str, dict[str, list[int]]]:
    return defaultdict(lambda: defaultdict(lambda: [0, 0]))


@dataclass
class Tally:
    """Right and all, by figure and episode: tiles of one episode go wrong together.

    Attributes:
        counts: Figure -> episode -> [right, all].
        errors: Figure -> measured values.
    """

    counts: dict[str, dict[str, list[int]]] = field(default_factory=_no_counts)
    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, figure: str, episode: str, right: int, total: int) -> None:
        """Counts `right` of `total` for one episode."""
        cell = self.counts[figure][episode]
        cell[0] += int(right)
        cell[1] += int(total)

    def merge(self, other: "Tally") -> None:
        """Adds another tally's counts and values."""
        for figure, cells in other.counts.items():
            for episode, (right, total) in cells.items():
                self.add(figure, episode, right, total)
        for figure, values in other.errors.items():
            self.errors[figure].extend(values)

    def estimate(self, figure: str) -> Estimate | None:
        """The share with its 95 % interval; None where nothing was counted."""
        cells = np.array(list(self.counts.get(figure, {}).values())).reshape(-1, 2)
        if not cells[:, 1].sum():
            return None
        return ratio_over_episodes(cells[:, 0], cells[:, 1], np.random.default_rng(0))

    def total(self, figure: str) -> int:
        """How many were counted."""
        return sum(cell[1] for cell in self.counts.get(figure, {}).values())

    def mean(self, figure: str) -> float | None:
        """The mean of a measured figure; None where nothing was measured."""
        values = self.errors.get(figure)
        return float(np.mean(values)) if values else None


def score_frame(
    tally: Tally,
    figure: str,
    episode: str,
    pixels: np.ndarray,
    known: View,
    truth: View,
    classes: TileClasses,
) -> bool:
    """Counts one generated frame: by class of tile, whole, in decibels; beside its floor.

    Args:
        tally: Where to count, under names that begin with `figure`.
        figure: For example "next" or "rollout/16".
        episode: Whose frame it is.
        pixels: `(56, 56, 3)` uint8, the generated frame.
        known: The last true view of the context; repeating it is the floor.
        truth: What really follows.
        classes: Which tiles the context determines.

    Returns:
        Whether all determined tiles are right.
    """
    right = read_frame(pixels)[0] == truth.sprites
    repeated = known.sprites == truth.sprites
    for name, tiles in (("model", right), ("repeat", repeated)):
        for group in ("determined", "changed"):
            mask = getattr(classes, group)
            tally.add(f"{figure}/{group}/{name}", episode, tiles[mask].sum(), mask.sum())
        tally.add(f"{figure}/all/{name}", episode, tiles.sum(), tiles.size)
        if classes.determined.any():
            tally.add(f"{figure}/frame/{name}", episode, tiles[classes.determined].all(), 1)
    legal = legal_tiles(pixels)[classes.revealed]
    tally.add(f"{figure}/revealed/legal", episode, legal.sum(), legal.size)
    tally.errors[f"{figure}/psnr/model"].append(psnr(pixels, truth.frame))
    tally.errors[f"{figure}/psnr/repeat"].append(psnr(known.frame, truth.frame))
    return bool(right[classes.determined].all())


def psnr(pixels: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, capped at 60 for (nearly) equal frames."""
    error = float(np.mean((pixels.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return min(60.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))
