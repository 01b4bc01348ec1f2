import numpy as np
import pytest

from eval.statistics import (
    Estimate,
    balanced_accuracy,
    mean_of_estimates,
    mean_over_episodes,
    ratio_over_episodes,
    wilson_interval,
)

REPETITIONS = 1500


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # by hand, z = 1.959964: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
        (5, 10, 0.236593, 0.763407),
        (1, 10, 0.017876, 0.404150),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
    ],
)
def test_wilson_interval_equals_hand_values(successes, trials, low, high):
    estimate = wilson_interval(successes, trials)
    assert estimate.value == successes / trials
    assert estimate.low == pytest.approx(low, abs=1e-6)
    assert estimate.high == pytest.approx(high, abs=1e-6)


def test_wilson_interval_covers_the_truth_about_as_often_as_it_says():
    drawn = np.random.default_rng(0).binomial(128, 0.97, size=2000)
    intervals = [wilson_interval(int(count), 128) for count in drawn]
    covered = np.mean([i.low <= 0.97 <= i.high for i in intervals])
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(
    ("successes", "trials", "message"),
    [(0, 0, "at least one trial, got 0"), (3, 2, r"from 0 to trials \(2\), got 3"), (-1, 2, "-1")],
)
def test_wilson_interval_refuses_impossible_counts(successes, trials, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(successes, trials)


def test_confidence_must_be_a_probability():
    with pytest.raises(ValueError, match="between 0 and 1, got 95; 0.95 is usual"):
        wilson_interval(1, 2, confidence=95)


def test_balanced_accuracy_weighs_classes_alike():
    truth = ["left"] * 10 + ["pickup"] * 2
    predicted = ["left"] * 10 + ["left", "pickup"]
    result = balanced_accuracy(truth, predicted)
    assert result.value == 0.75
    assert result.recalls["left"].value == 1
    assert result.recalls["pickup"].value == 0.5
    # Wilson for 10 of 10 and 1 of 2, joined: 0.75 - sqrt(0.277533^2 + 0.405469^2) / 2
    assert result.low == pytest.approx(0.504319, abs=1e-5)
    assert result.high == pytest.approx(0.952734, abs=1e-5)


def test_balanced_accuracy_of_one_class_is_its_wilson_interval():
    result = balanced_accuracy([3] * 10, [3] * 9 + [1])
    expected = wilson_interval(9, 10)
    got = (result.value, result.low, result.high)
    assert got == pytest.approx((expected.value, expected.low, expected.high))


def test_balanced_accuracy_is_not_certain_at_a_hundred_per_cent():
    result = balanced_accuracy([0, 1] * 5, [0, 1] * 5)
    assert (result.value, result.high) == (1, 1)
    assert result.low < 0.9


@pytest.mark.parametrize(("truth", "predicted"), [([], []), ([1, 2], [1])])
def test_balanced_accuracy_refuses_unequal_or_empty_lists(truth, predicted):
    with pytest.raises(ValueError, match="equally long and not empty"):
        balanced_accuracy(truth, predicted)


def test_ratio_over_episodes_is_wider_than_if_tiles_were_independent():
    hits, totals = [49 * 10] * 19 + [0], [49 * 10] * 20
    estimate = ratio_over_episodes(hits, totals)
    assert estimate.value == 0.95
    assert estimate.low <= 0.85
    assert 0.98 < estimate.high < 1
    assert wilson_interval(sum(hits), sum(totals)).low > 0.94


def test_ratio_over_episodes_leaves_out_empty_episodes():
    assert ratio_over_episodes([3, 0, 4], [4, 0, 4]) == ratio_over_episodes([3, 4], [4, 4])
    assert ratio_over_episodes([3, 4], [4, 4]).value == 7 / 8


def test_ratio_over_episodes_is_wilsons_over_episodes_at_a_hundred_per_cent():
    estimate, expected = ratio_over_episodes([5] * 10, [5] * 10), wilson_interval(10, 10)
    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(expected.low)


def test_one_wrong_tile_of_thousands_is_no_certainty():
    certain = ratio_over_episodes([700] * 96, [700] * 96)
    one = ratio_over_episodes([699] + [700] * 95, [700] * 96)
    few = ratio_over_episodes([697] * 9 + [700] * 87, [700] * 96)
    assert certain.low == pytest.approx(wilson_interval(96, 96).low)
    assert certain.low < one.low < few.low < few.value
    assert one.low < 0.99
    assert one.high < 1


def test_ratio_over_episodes_of_one_tile_each_is_nearly_wilsons():
    estimate, expected = (
        ratio_over_episodes([1] * 90 + [0] * 10, [1] * 100),
        wilson_interval(90, 100),
    )
    assert estimate.low == pytest.approx(expected.low, abs=0.003)
    assert estimate.high == pytest.approx(expected.high, abs=0.003)


def spread_errors(generator, num_episodes, share, like):
    """Right tiles of episodes whose own shares differ; `like` is how little they do."""
    totals = generator.integers(5, 40, num_episodes)
    own = generator.beta(share * like, (1 - share) * like, num_episodes)
    return generator.binomial(totals, own), totals


def bad_episodes(generator, num_episodes, bad, share):
    """Most episodes are perfect; in a few of them a part of the tiles is wrong."""
    totals = generator.integers(300, 500, num_episodes)
    own = np.where(generator.random(num_episodes) < bad, share, 1.0)
    return generator.binomial(totals, own), totals


@pytest.mark.parametrize(
    ("draw", "options", "truth"),
    [
        (spread_errors, (24, 0.5, 3.0), 0.5),
        (spread_errors, (24, 0.9, 5.0), 0.9),
        (spread_errors, (96, 0.9, 5.0), 0.9),
        (spread_errors, (96, 0.9, 1e6), 0.9),  # tiles are independent
        (spread_errors, (192, 0.97, 3.0), 0.97),
        (bad_episodes, (96, 0.1, 0.5), 0.95),
        (bad_episodes, (192, 0.1, 0.9), 0.99),
    ],
)
def test_intervals_of_shares_cover_the_truth_in_93_to_97_per_cent(draw, options, truth):
    generator = np.random.default_rng(0)
    drawn = [ratio_over_episodes(*draw(generator, *options)) for _ in range(REPETITIONS)]
    covered = np.mean([e.low <= truth <= e.high for e in drawn])
    assert 0.93 < covered < 0.97


def test_intervals_of_balanced_accuracy_cover_the_truth_in_93_to_97_per_cent():
    generator, classes = np.random.default_rng(0), np.array(["forward", "left", "toggle"])
    covered, as_if_independent = [], []
    for _ in range(REPETITIONS // 2):
        episodes = np.repeat(np.arange(96), 15)
        truth = generator.choice(classes, len(episodes), p=[0.6, 0.3, 0.1])
        own = generator.beta(4.5, 0.5, 96)[episodes]  # a lost episode is wrong in every class
        predicted = np.where(generator.random(len(episodes)) < own, truth, "done")
        for found, steps in ((covered, episodes), (as_if_independent, None)):
            estimate = balanced_accuracy(truth, predicted, steps)
            found.append(estimate.low <= 0.9 <= estimate.high)
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(as_if_independent) < 0.88


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_of_means_cover_the_truth_in_93_to_97_per_cent(skewed):
    generator, covered = np.random.default_rng(0), []
    for _ in range(REPETITIONS):
        own = 20 + generator.exponential(8.0, 96) if skewed else generator.normal(28, 6, 96)
        counts = generator.integers(5, 20, 96)
        values = [
            generator.normal(mean, 3.0, n).tolist() for mean, n in zip(own, counts, strict=True)
        ]
        found = mean_over_episodes(values)
        covered.append(found.low <= 28 <= found.high)
    assert 0.93 < np.mean(covered) < 0.97


def test_the_mean_of_levels_covers_the_truth_in_93_to_97_per_cent():
    generator, truths, covered = np.random.default_rng(0), (0.98, 0.9, 0.7, 0.5), []
    for _ in range(REPETITIONS):
        levels = [wilson_interval(int(generator.binomial(128, p)), 128) for p in truths]
        found = mean_of_estimates(levels)
        covered.append(found.low <= np.mean(truths) <= found.high)
    assert 0.93 < np.mean(covered) < 0.97


def test_a_mean_of_estimates_that_move_together_is_as_wide_as_each():
    parts = [Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.6, 0.8)]
    together = mean_of_estimates(parts, np.ones((2, 2)))
    assert (together.low, together.high) == pytest.approx((0.5, 0.7))
    alone = mean_of_estimates(parts)
    half = 0.1 / 2**0.5
    assert (alone.low, alone.high) == pytest.approx((0.6 - half, 0.6 + half))
    with pytest.raises(ValueError, match="at least one estimate"):
        mean_of_estimates([])


def test_a_mean_over_one_episode_knows_no_bounds():
    assert mean_over_episodes([[3.0, 5.0]]) == Estimate(4.0, -np.inf, np.inf)


@pytest.mark.parametrize(
    ("hits", "totals", "message"),
    [
        ([2], [1], "from 0 to its total"),
        ([0], [0], "at least one counted tile"),
        ([1, 2], [3], "two equal vectors"),
    ],
)
def test_ratio_over_episodes_refuses_impossible_counts(hits, totals, message):
    with pytest.raises(ValueError, match=message):
        ratio_over_episodes(hits, totals)
