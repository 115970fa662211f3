import numpy as np
import pytest

from eelib.statistics import (
    format_interval,
    mean_interval,
    median_interval,
    on_front,
    ratio_interval,
    ratio_of_ratios_interval,
)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator, hits = np.random.default_rng(1), 0
    for _ in range(200):
        _, low, high = mean_interval(generator.normal(size=40), resamples=400)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_intervals_of_nothing_and_of_equal_values():
    assert mean_interval([2.0, 2.0]) == (2, 2, 2)
    assert median_interval([3.0]) == (3, 3, 3)
    assert np.isnan(ratio_interval([0, 0], [0, 0])[0])
    assert ratio_interval([1, 2, 3], [2, 4, 6])[0] == 0.5


def test_a_ratio_of_ratios_is_paired():
    draw = np.random.default_rng(0)
    drafted = draw.integers(5, 30, size=40)
    ease = draw.uniform(0.1, 0.9, size=40)  # of a prompt, for both
    theirs, ours = drafted * ease, 1.5 * drafted * ease
    assert ratio_of_ratios_interval((ours, drafted), (theirs, drafted)) == pytest.approx((1.5, 1.5, 1.5))
    value, low, high = ratio_of_ratios_interval((ours, drafted), (theirs[::-1], drafted[::-1]))
    assert value == pytest.approx(1.5) and low < 1.4 and high > 1.6
    noisy = theirs * draw.uniform(0.9, 1.1, size=40)
    value, low, high = ratio_of_ratios_interval((ours, drafted), (noisy, 2 * drafted))
    assert value == pytest.approx(ours.sum() / noisy.sum() * 2) and 2.8 < low < value < high < 3.2


def test_a_ratio_of_ratios_without_a_divisor():
    some, none = (np.array([1, 2, 3]), np.array([4, 4, 4])), (np.zeros(3), np.array([4, 4, 4]))
    assert ratio_of_ratios_interval(none, some) == (0, 0, 0)
    for undefined in ((some, none), ((np.zeros(3), np.zeros(3)), some), (some, (np.zeros(3), np.zeros(3)))):
        assert np.isnan(ratio_of_ratios_interval(*undefined)).all()
    value, low, high = ratio_of_ratios_interval(some, (np.array([0, 0, 2]), np.array([4, 4, 4])))
    assert value == 3 and np.isnan(low) and np.isnan(high)  # in some resamples the second accepts nothing


def test_pareto_front():
    assert on_front([1, 2, 3, 2, 3], [1, 2, 3, 3, 4]) == [True, True, True, False, False]
    assert on_front([1, 1], [1, 1]) == [True, True]


def test_an_interval_as_text():
    row = {"speed": 1.234, "speed_low": 1.0, "speed_high": 2.0}
    assert format_interval(row, "speed") == "1.23 [1.00, 2.00]"
    assert format_interval(row, "speed", "+.1f") == "+1.2 [+1.0, +2.0]"
