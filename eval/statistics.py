"""Intervals, so that no figure stands without its uncertainty.

What is measured within one episode goes right or wrong together, so the episode is the unit. All
intervals rest on one estimate of the variance: the jackknife over episodes, with Student's
quantile. A share takes it as an effective number of trials in Wilson's interval (Korn and Graubard
1998; Franco et al. 2019), which is good near 0 and 1 too; a mean takes it as it is.
`tests/eval/test_statistics.py` simulates how often the intervals cover the truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1], or a mean, with its two-sided interval."""

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
    return _wilson(successes / trials, trials, z)


def _wilson(share: float, trials: float, z: float) -> Estimate:
    """Wilson's interval of a share, of any effective number of trials."""
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # Exactly 0 and 1 at the ends, where the formula is right but for rounding.
    low = 0.0 if share == 0 else (centre - spread) / scale
    high = 1.0 if share == 1 else (centre + spread) / scale
    return Estimate(share, low, high)


def _residuals(sums: np.ndarray, counts: np.ndarray, value: float) -> np.ndarray:
    """How far each episode pulls the ratio of the sums from `value`, by the jackknife."""
    left = 1 - counts / counts.sum()
    return (sums - value * counts) / counts.sum() / np.where(left > 0, left, 1.0)


def _quantile(num_episodes: int, confidence: float) -> float:
    _normal_quantile(confidence)  # refuses what is no confidence
    return float(student.ppf((1 + confidence) / 2, num_episodes - 1))


@dataclass(frozen=True)
class BalancedAccuracy(Estimate):
    """Mean recall over the classes that occur, with each class's own recall."""

    recalls: dict[str, Estimate]


def balanced_accuracy(
    truth: ArrayLike,
    predicted: ArrayLike,
    episodes: ArrayLike | None = None,
    confidence: float = 0.95,
) -> BalancedAccuracy:
    """Mean recall over the classes that occur in `truth`, each class weighing the same.

    Each recall has its interval over episodes. They are joined (MOVER: Zou and Donner 2008,
    equation 4; its form for dependent parts, Zou 2007) by how the episodes move them together.

    Args:
        truth: `(N,)` true classes, names or integers.
        predicted: `(N,)` predicted classes; one that never occurs in `truth` is simply wrong.
        episodes: `(N,)` names of the episodes that were asked; None if each was asked once.
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
    units = np.arange(len(true)) if episodes is None else np.asarray(episodes)
    if units.shape != true.shape:
        raise ValueError(f"episodes {units.shape} must name one for each of {len(true)} answers")
    place = np.unique(units, return_inverse=True)[1]
    recalls, pulls = {}, []
    for name in np.unique(true):
        of_class = true == name
        totals = np.bincount(place, of_class).astype(np.int64)
        hits = np.bincount(place, of_class & (guessed == name)).astype(np.int64)
        if episodes is None:
            recalls[str(name)] = wilson_interval(int(hits.sum()), int(totals.sum()), confidence)
        else:
            recalls[str(name)] = ratio_over_episodes(hits, totals, confidence)
        pulls.append(_residuals(hits, totals, recalls[str(name)].value))
    together = _correlations(np.array(pulls)) if episodes is not None else None
    mean = mean_of_estimates(list(recalls.values()), together)
    return BalancedAccuracy(mean.value, mean.low, mean.high, recalls)


def _correlations(pulls: np.ndarray) -> np.ndarray:
    """How rows go together, `(C, C)`; those that never move go with nobody."""
    products = pulls @ pulls.T
    norms = np.sqrt(np.diag(products))
    scale = np.outer(norms, norms)
    together = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(together, 1.0)
    return together


def mean_of_estimates(
    estimates: Sequence[Estimate], together: np.ndarray | None = None
) -> Estimate:
    """The plain mean of several shares or means, with an interval from theirs.

    Args:
        estimates: At least one.
        together: `(N, N)` correlations between them; None if they are of different episodes.

    Raises:
        ValueError: If there are none.

    Example:
        >>> print(mean_of_estimates([Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.6, 0.8)]))
        60.00 % [52.93, 67.07]
    """
    if not estimates:
        raise ValueError("a mean needs at least one estimate; evaluate more levels")
    matrix = np.eye(len(estimates)) if together is None else together
    values, low, high = (np.array([getattr(e, k) for e in estimates]) for k in _FIELDS)
    below, above = values - low, high - values
    mean, count = float(values.mean()), len(estimates)
    down = math.sqrt(max(0.0, float(below @ matrix @ below))) / count
    up = math.sqrt(max(0.0, float(above @ matrix @ above))) / count
    return Estimate(mean, max(float(low.min()), mean - down), min(float(high.max()), mean + up))


_FIELDS = ("value", "low", "high")


def mean_over_episodes(values: Sequence[Sequence[float]], confidence: float = 0.95) -> Estimate:
    """Mean of what was measured on frames, with an interval over episodes.

    Args:
        values: Values of each episode; episodes without any are left out.
        confidence: Coverage in (0, 1).

    Returns:
        The mean; its interval is without bounds when only one episode was measured.

    Raises:
        ValueError: If nothing was measured.

    Example:
        >>> print(mean_over_episodes([[0.5], [0.5, 0.5]]))
        50.00 % [50.00, 50.00]
    """
    sums = np.array([sum(found) for found in values if len(found)])
    counts = np.array([len(found) for found in values if len(found)])
    if not len(counts):
        raise ValueError("a mean needs at least one value; evaluate more episodes")
    mean = float(sums.sum() / counts.sum())
    if len(counts) == 1:
        return Estimate(mean, -math.inf, math.inf)
    error = math.sqrt(float((_residuals(sums, counts, mean) ** 2).sum()))
    half = _quantile(len(counts), confidence) * error
    return Estimate(mean, mean - half, mean + half)


def ratio_over_episodes(hits: ArrayLike, totals: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Share of tiles (or the like) that are right, with an interval over episodes.

    Wilson's interval on the effective number of tiles: as many independent ones as would vary like
    these. How much the tiles of an episode go together can be seen only where episodes differ. As
    long as few of them have both right and wrong tiles to show, the number is drawn towards that
    of episodes; if all tiles are right, it is that.

    Args:
        hits: `(N,)` right ones in each episode.
        totals: `(N,)` all of each episode; episodes with 0 are left out.
        confidence: Coverage in (0, 1).

    Returns:
        Sum of hits over sum of totals, with its interval.

    Raises:
        ValueError: If nothing was counted, or an episode has more hits than tiles.

    Example:
        >>> print(ratio_over_episodes([10, 10, 10, 10], [10, 10, 10, 10]))
        100.00 % [51.01, 100.00]
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
    num_tiles = float(total.sum())
    design = float((total.astype(np.float64) ** 2).sum()) / num_tiles  # all of an episode as one
    if value in (0.0, 1.0) or len(total) == 1:
        return _wilson(value, num_tiles / design, _normal_quantile(confidence))
    observed = float((_residuals(hit, total, value) ** 2).sum()) * num_tiles / (value * (1 - value))
    telling = float(min((hit > 0).sum(), (hit < total).sum())) ** 2
    design = (telling * observed + design) / (telling + 1)
    return _wilson(value, num_tiles / design, _quantile(len(total), confidence))
