import numpy as np

from eelib.statistics import format_interval, mean_interval, median_interval, on_front, ratio_interval


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


def test_pareto_front():
    assert on_front([1, 2, 3, 2, 3], [1, 2, 3, 3, 4]) == [True, True, True, False, False]
    assert on_front([1, 1], [1, 1]) == [True, True]


def test_an_interval_as_text():
    row = {"speed": 1.234, "speed_low": 1.0, "speed_high": 2.0}
    assert format_interval(row, "speed") == "1.23 [1.00, 2.00]"
    assert format_interval(row, "speed", "+.1f") == "+1.2 [+1.0, +2.0]"
