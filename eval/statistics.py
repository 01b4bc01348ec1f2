"""Intervals for shares, so that no figure stands without its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] with its two-sided interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The three in per cent.

        Example:
            >>> str(Estimate(0.5, 0.25, 0.75))
            '50.00 % [25.00, 75.00]'
        """
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval, good near 0 and 1 too.

    Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1. Trials must be independent: count
    episodes, not tiles (for tiles see `ratio_over_episodes`).

    Args:
        successes: How many succeeded.
        trials: How many were tried, at least 1.
        confidence: Coverage in (0, 1).

    Returns:
        The share and its interval.

    Raises:
        ValueError: If nothing was tried, or more succeeded than were tried.

    Example:
        >>> print(wilson_interval(128, 128))
        100.00 % [97.09, 100.00]
    """
    if trials < 1:
        raise ValueError(f"a share needs at least one trial, got {trials}; evaluate more")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be from 0 to trials ({trials}), got {successes}")
    z = _normal_quantile(confidence)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # Exactly 0 and 1 at the ends, where the formula is right but for rounding.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return Estimate(share, low, high)


@dataclass(frozen=True)
class BalancedAccuracy(Estimate):
    """Mean recall over the classes that occur, with each class's own recall."""

    recalls: dict[str, Estimate]


def balanced_accuracy(
    truth: ArrayLike, predicted: ArrayLike, confidence: float = 0.95
) -> BalancedAccuracy:
    """Mean recall over the classes that occur in `truth`, each class weighing the same.

    The interval joins the classes' Wilson intervals (MOVER: Zou and Donner 2008, equation 4), so it
    stays honest at 100 %, where a bootstrap would claim certainty.

    Args:
        truth: `(N,)` true classes, names or integers.
        predicted: `(N,)` predicted classes; one that never occurs in `truth` is simply wrong.
        confidence: Coverage in (0, 1).

    Returns:
        The mean with its interval, and the recall of each class under `str(class)`.

    Raises:
        ValueError: If the two differ in length or are empty.

    Example:
        >>> result = balanced_accuracy(["a", "a", "a", "b"], ["a", "a", "b", "b"])
        >>> round(result.value, 4), sorted(result.recalls)
        (0.8333, ['a', 'b'])
    """
    true, guessed = np.asarray(truth), np.asarray(predicted)
    if true.ndim != 1 or true.shape != guessed.shape or len(true) == 0:
        raise ValueError(
            f"truth {true.shape} and predicted {guessed.shape} must be equally long and not empty"
        )
    recalls = {}
    for name in np.unique(true):
        of_class = true == name
        hits = int((guessed[of_class] == name).sum())
        recalls[str(name)] = wilson_interval(hits, int(of_class.sum()), confidence)
    values = list(recalls.values())
    mean = sum(r.value for r in values) / len(values)
    below = math.sqrt(sum((r.value - r.low) ** 2 for r in values)) / len(values)
    above = math.sqrt(sum((r.high - r.value) ** 2 for r in values)) / len(values)
    return BalancedAccuracy(mean, max(0.0, mean - below), min(1.0, mean + above), recalls)


def mean_over_episodes(
    values: Sequence[Sequence[float]],
    generator: np.random.Generator,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of what was measured on frames, with an interval that resamples episodes.

    Args:
        values: Of each episode its values; episodes without any are left out.
        generator: Draws the resamples.
        num_resamples: How many resamples.
        confidence: Coverage in (0, 1).

    Raises:
        ValueError: If nothing was measured.

    Example:
        >>> print(mean_over_episodes([[0.5], [0.5, 0.5]], np.random.default_rng(0)))
        50.00 % [50.00, 50.00]
    """
    sums = np.array([sum(found) for found in values if len(found)])
    counts = np.array([len(found) for found in values if len(found)])
    if not len(counts):
        raise ValueError("a mean needs at least one value; evaluate more episodes")
    drawn = generator.integers(len(counts), size=(num_resamples, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def ratio_over_episodes(
    hits: ArrayLike,
    totals: ArrayLike,
    generator: np.random.Generator,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Share of tiles (or the like) that are right, with an interval that resamples episodes.

    Tiles of one episode go wrong together, so the episode is the unit that is drawn again
    (percentile cluster bootstrap). When all tiles are right, or none, the bootstrap knows no
    spread: then the interval is Wilson's over the episodes.

    Args:
        hits: `(N,)` right ones in each episode.
        totals: `(N,)` all of each episode; episodes with 0 are left out.
        generator: Draws the resamples.
        num_resamples: How many resamples.
        confidence: Coverage in (0, 1).

    Returns:
        Sum of hits over sum of totals, with its interval.

    Raises:
        ValueError: If nothing was counted, or an episode has more hits than tiles.

    Example:
        >>> print(ratio_over_episodes([10, 8], [10, 10], np.random.default_rng(0)))
        90.00 % [80.00, 100.00]
    """
    hit, total = np.asarray(hits, dtype=np.int64), np.asarray(totals, dtype=np.int64)
    if hit.ndim != 1 or hit.shape != total.shape:
        raise ValueError(f"hits {hit.shape} and totals {total.shape} must be two equal vectors")
    if (hit < 0).any() or (hit > total).any():
        raise ValueError("each episode's hits must be from 0 to its total; check their order")
    hit, total = hit[total > 0], total[total > 0]
    if len(total) == 0:
        raise ValueError("a share needs at least one counted tile; evaluate more episodes")
    value = float(hit.sum() / total.sum())
    if value in (0.0, 1.0):
        return wilson_interval(len(total) if value else 0, len(total), confidence)
    tail = 100 * (1 - confidence) / 2
    drawn = generator.integers(len(total), size=(num_resamples, len(total)))
    ratios = hit[drawn].sum(1) / total[drawn].sum(1)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
