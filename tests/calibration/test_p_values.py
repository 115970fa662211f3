import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelib.calibration.p_values import (
    P_VALUES,
    AgreementSequence,
    SequentialTest,
    alarm_times,
    betting,
    hoeffding_bentkus,
)
from eelib.errors import InvalidInputError

losses = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def test_hoeffding_bentkus_passes_where_the_literature_says():
    """At alpha 0.1 and δ 0.05, below an empirical risk of 0.047, 0.060, 0.070 with 150, 250, 500 sequences."""
    for n, most in ((150, 0.047), (250, 0.060), (500, 0.070)):
        passing = max(k for k in range(n) if hoeffding_bentkus(np.repeat([1.0, 0.0], [k, n - k]), 0.1) <= 0.05) / n
        assert passing == pytest.approx(most, abs=1 / n)


def test_betting_by_hand():
    # One loss of 0 and alpha 0.5: bets 0.05 ... 1 win half of themselves each, on average 0.2625.
    assert betting(np.array([0.0]), 0.5) == pytest.approx(1 / 1.2625)
    assert betting(np.array([1.0]), 0.5) == 1.0


@given(losses, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_p_values_fall_as_alpha_rises_and_lie_between_0_and_1(found, a, b):
    for p_value in P_VALUES.values():
        strict, loose = (p_value(np.array(found), alpha) for alpha in sorted((a, b)))
        assert 0 <= loose <= strict + 1e-9 <= 1 + 1e-9


@pytest.mark.parametrize("name", list(P_VALUES))
@pytest.mark.parametrize("spread", ["coins", "narrow", "skewed"])
def test_a_false_hypothesis_is_rarely_proved(name, spread):
    """Losses whose mean is just alpha: p ≤ δ in at most δ of 4,000 draws, but for chance (four standard errors)."""
    draw = np.random.default_rng(0)
    alpha, shape = 0.2, (4000, 80)
    drawn = {
        "coins": draw.random(shape) < alpha, "narrow": draw.uniform(0.1, 0.3, shape),
        "skewed": draw.beta(0.1, 0.4, shape),
    }[spread]  # fmt: skip
    found = np.array([P_VALUES[name](row.astype(float), alpha) for row in drawn])
    for delta in (0.05, 0.2):
        assert (found <= delta).mean() <= delta + 4 * np.sqrt(delta * (1 - delta) / len(found))


def test_betting_sees_what_the_mean_alone_does_not():
    narrow = np.random.default_rng(1).uniform(0.05, 0.09, 100)
    assert betting(narrow, 0.1) < hoeffding_bentkus(narrow, 0.1)


@pytest.mark.parametrize("name", list(P_VALUES))
def test_bad_input(name):
    for values, alpha in (([0.5], 0.0), ([0.5], 1.0), ([], 0.5), ([1.5], 0.5), ([float("nan")], 0.5), ([[0.5]], 0.5)):
        with pytest.raises(InvalidInputError):
            P_VALUES[name](np.array(values), alpha)


def test_alarm_times_are_those_of_the_test_run_loss_by_loss():
    losses, draw = np.array([0.1, 0.5, 0.9]), np.random.default_rng(7)
    found = alarm_times(losses, 0.3, false_alarm=0.1, runs=1, sequences=60, seed=7)[0]
    test = SequentialTest(0.3)
    evidence = [test.add(draw.choice(losses, 1)[0]) for _ in range(60)]
    assert found == 1 + next(i for i, value in enumerate(evidence) if value >= 10)


def test_false_alarms_and_delays():
    losses = np.repeat([0.0, 1.0], [8, 2])
    at_the_bound = alarm_times(losses, 0.2, false_alarm=0.1, runs=2000, sequences=200)
    assert np.isfinite(at_the_bound).mean() <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 2000)
    slow, quick = (np.median(alarm_times(losses, alpha, false_alarm=0.1, runs=200)) for alpha in (0.12, 0.05))
    assert quick < slow < 300


def shares(n, agreement, seed=0, tokens=20):
    """Wrong and exited tokens of n sequences, as shares."""
    draw = np.random.default_rng(seed)
    exited = draw.binomial(tokens, 0.6, n)
    return (exited - draw.binomial(exited, agreement)) / tokens, exited / tokens


def limits(sequence, wrong, exited):
    return np.array([sequence.add(*one) for one in zip(wrong, exited, strict=True)])


def test_the_upper_limit_falls_to_a_promise_just_when_its_own_test_raises_the_alarm():
    wrong, exited = shares(150, 0.8)
    found, test = limits(AgreementSequence(0.01, 0.8735), wrong, exited), SequentialTest(1 - 0.8735)
    alone = [test.add((1 - 0.8735) + w - (1 - 0.8735) * e) >= 100 for w, e in zip(wrong, exited, strict=True)]
    assert ((found[:, 1] <= 0.8735) == np.maximum.accumulate(alone)).all() and alone[-1] and not alone[0]


def test_limits_close_in_on_the_agreement_and_never_open_again():
    low, high = limits(AgreementSequence(0.05, 0.9), *shares(600, 0.8)).T
    assert (np.diff(low) >= 0).all() and (np.diff(high) <= 0).all()
    assert low[0] < 0.1 and high[0] == 1 and 0.7 < low[-1] <= 0.8 <= high[-1] < 0.9


def test_a_limit_is_rarely_wrong_however_long_one_looks():
    """Of 150 runs of 80 sequences, at most δ a side, but for chance (four standard errors)."""
    outside = np.zeros(2)
    for seed in range(150):
        low, high = limits(AgreementSequence(0.1, 0.9), *shares(80, 0.8, seed))[-1]
        outside += low > 0.8, high < 0.8
    assert (outside / 150 <= 0.1 + 4 * np.sqrt(0.1 * 0.9 / 150)).all()


def test_limits_of_the_agreement_of_all_tokens_and_of_one_that_changes():
    wrong, _ = shares(300, 0.8, seed=3)
    low, high = limits(AgreementSequence(0.05, 0.9), wrong, np.ones(300))[-1]
    assert low <= 1 - wrong.mean() <= high
    changing = AgreementSequence(0.05, 0.9)
    limits(changing, *shares(300, 0.95))
    low, high = limits(changing, *shares(300, 0.3))[-1]
    assert low > high
