import numpy as np
import pytest
from tiny import drawn

from eelib.calibration.cascade import TARGETS
from eelib.calibration.violations import Population, synthetic, violation_rates
from eelib.errors import CorpusError

POPULATION = synthetic(sequences=400, tokens=15, depths=(1, 2), seed=1)


def test_draws_are_the_population_in_the_mean():
    thresholds, generator = (1.0, 0.8), np.random.default_rng(0)
    for target in TARGETS:
        draws = [POPULATION.draw(50, generator).losses(thresholds, target, 0.8).mean() for _ in range(400)]
        error = np.std(draws) / np.sqrt(len(draws))
        assert np.mean(draws) == pytest.approx(POPULATION.risk(thresholds, target, 0.8), abs=4 * error)


def test_tokens_of_a_sequence_depend_on_each_other():
    right = POPULATION.tokens.agrees[:, 0].reshape(400, 15)
    assert right.mean(axis=1).var() > 4 * right.mean() * (1 - right.mean()) / 15


def test_the_oracle_meets_the_target_and_anything_looser_on_its_path_does_not():
    for target in TARGETS:
        found = POPULATION.oracle(target, 0.8)
        assert POPULATION.risk(found, target, 0.8) <= 0.2 and POPULATION.coverage(found) > 0.05


def test_parts_of_a_population_overlap_and_so_have_no_interval():
    pool = Population(POPULATION.tokens, independent=False)
    drawn = pool.draw(200, np.random.default_rng(0))
    assert drawn.n_sequences == 200 and len(np.unique(drawn.scores[:, 0])) == 200 * 15, "no sequence twice"
    table = violation_rates(pool, epsilon=0.8, delta=0.1, sequences=200, trials=10)
    assert table.rate_low.isna().all() and table.rate.between(0, 1).all() and table.coverage.between(0, 1).all()
    with pytest.raises(CorpusError, match="nothing to be new"):
        pool.draw(400, np.random.default_rng(0))


def test_risk_keeps_its_promise_where_the_others_break_it():
    table = violation_rates(POPULATION, epsilon=0.8, delta=0.1, sequences=80, trials=150).set_index(
        ["method", "target"]
    )
    for target in TARGETS:
        assert table.loc[("risk", target), "rate_low"] <= 0.1
        assert 0 < table.loc[("risk", target), "coverage_of_oracle"] < 1.1
    assert table.loc[("empirical", "exit_agreement"), "rate_low"] > 0.1, "nothing to lose against"


@pytest.mark.slow
@pytest.mark.parametrize("dependence", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("epsilon", [0.7, 0.9])
def test_risk_keeps_its_promise_over_a_thousand_draws(dependence, epsilon):
    population = synthetic(dependence=dependence)
    table = violation_rates(population, epsilon=epsilon, delta=0.1, sequences=300, methods=("risk",))
    print(table.to_string(index=False))
    assert (table.rate_low <= 0.1).all()


def test_a_population_of_two_splits_holds_the_sequences_of_both():
    first, second = drawn(4, seed=0), drawn(3, seed=1)
    pool = Population.of_traces([first, second], "margin")
    assert not pool.independent and pool.tokens.n_sequences == 7 and pool.tokens.depths == (2, 4)
    scores = [table[table.depth == 2].margin for table in (first, second)]
    assert pool.tokens.scores[:, 0].tolist() == [*scores[0], *scores[1]]
    assert pool.tokens.sequence.tolist() == [*np.repeat(np.arange(7), 20)]
