import numpy as np
import pytest

from eval.statistics import balanced_accuracy, ratio_over_episodes, wilson_interval


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
    estimate = ratio_over_episodes(hits, totals, np.random.default_rng(0))
    assert estimate.value == 0.95
    assert estimate.low <= 0.85
    assert estimate.high == 1
    assert wilson_interval(sum(hits), sum(totals)).low > 0.94


def test_ratio_over_episodes_is_reproducible_and_leaves_out_empty_episodes():
    run = ratio_over_episodes([3, 0, 4], [4, 0, 4], np.random.default_rng(1))
    again = ratio_over_episodes([3, 4], [4, 4], np.random.default_rng(1))
    assert run == again
    assert run.value == 7 / 8


def test_ratio_over_episodes_is_not_certain_at_a_hundred_per_cent():
    estimate = ratio_over_episodes([5] * 10, [5] * 10, np.random.default_rng(0))
    assert estimate == wilson_interval(10, 10)


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
        ratio_over_episodes(hits, totals, np.random.default_rng(0))
