"""Counting: what was right, of how many, by figure and episode."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from eval.babyai.tiles import KINDS, legal_tiles, read_frame, sprite_kinds
from eval.babyai.truth import TileClasses, View
from eval.statistics import Estimate, mean_over_episodes, ratio_over_episodes


def _no_counts() -> dict[str, dict[str, list[int]]]:
    return defaultdict(lambda: defaultdict(lambda: [0, 0]))


def _no_values() -> dict[str, dict[str, list[float]]]:
    return defaultdict(lambda: defaultdict(list))


@dataclass
class Tally:
    """Right and all, by figure and episode: tiles of one episode go wrong together.

    Attributes:
        counts: Figure -> episode -> [right, all].
        errors: Figure -> episode -> measured values.
    """

    counts: dict[str, dict[str, list[int]]] = field(default_factory=_no_counts)
    errors: dict[str, dict[str, list[float]]] = field(default_factory=_no_values)

    def add(self, figure: str, episode: str, right: int, total: int) -> None:
        """Counts `right` of `total` for one episode."""
        cell = self.counts[figure][episode]
        cell[0] += int(right)
        cell[1] += int(total)

    def measure(self, figure: str, episode: str, value: float) -> None:
        """Writes down a value, such as a distance, of one episode."""
        self.errors[figure][episode].append(value)

    def merge(self, other: "Tally") -> None:
        """Adds another tally's counts and values."""
        for figure, cells in other.counts.items():
            for episode, (right, total) in cells.items():
                self.add(figure, episode, right, total)
        for figure, episodes in other.errors.items():
            for episode, values in episodes.items():
                self.errors[figure][episode].extend(values)

    def estimate(self, figure: str) -> Estimate | None:
        """The share with its 95 % interval; None where nothing was counted."""
        cells = np.array(list(self.counts.get(figure, {}).values())).reshape(-1, 2)
        return ratio_over_episodes(cells[:, 0], cells[:, 1]) if cells[:, 1].sum() else None

    def total(self, figure: str) -> int:
        """How many were counted."""
        return sum(cell[1] for cell in self.counts.get(figure, {}).values())

    def mean(self, figure: str) -> Estimate | None:
        """The mean of a measured figure with its interval; None where nothing was measured."""
        values = list(self.errors.get(figure, {}).values())
        return mean_over_episodes(values) if values else None


def score_frame(
    tally: Tally,
    figure: str,
    episode: str,
    pixels: np.ndarray,
    known: View,
    truth: View,
    classes: TileClasses,
    floors: Mapping[str, np.ndarray] | None = None,
) -> bool:
    """Counts one generated frame: by class and kind of tile, whole, in decibels; beside floors.

    Args:
        tally: Where to count, under names that begin with `figure` and end with who drew.
        figure: For example "next" or "rollout/16".
        episode: Whose frame it is.
        pixels: `(56, 56, 3)` uint8, the generated frame.
        known: The last true view of the context; repeating it is one floor.
        truth: What really follows.
        classes: Which tiles the context determines.
        floors: What other rules drew, by name.

    Returns:
        Whether all determined tiles are right.
    """
    kinds = sprite_kinds()[truth.sprites]
    drawn = {"model": pixels, "repeat": known.frame, **(floors or {})}
    for name, frame in drawn.items():
        tiles = read_frame(frame)[0] == truth.sprites
        for group in ("determined", "changed"):
            mask = getattr(classes, group)
            tally.add(f"{figure}/{group}/{name}", episode, tiles[mask].sum(), mask.sum())
        for place, kind in enumerate(KINDS):
            mask = classes.determined & (kinds == place)
            if mask.any():
                tally.add(f"{figure}/{kind}/{name}", episode, tiles[mask].sum(), mask.sum())
        tally.add(f"{figure}/all/{name}", episode, tiles.sum(), tiles.size)
        if classes.determined.any():
            tally.add(f"{figure}/frame/{name}", episode, tiles[classes.determined].all(), 1)
        tally.measure(f"{figure}/psnr/{name}", episode, psnr(frame, truth.frame))
    legal = legal_tiles(pixels)[classes.revealed]
    tally.add(f"{figure}/revealed/legal", episode, legal.sum(), legal.size)
    right = read_frame(pixels)[0] == truth.sprites
    return bool(right[classes.determined].all())


def psnr(pixels: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, capped at 60 for (nearly) equal frames."""
    error = float(np.mean((pixels.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return min(60.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))
