import numpy as np
import pandas as pd
import pytest
from tiny import drawn

import eelib
from eelib.calibration.promises import achieved_table, halves, shift_table
from eelib.calibration.thresholds import achieved_agreement
from eelib.errors import CorpusError


@pytest.fixture(scope="module")
def texts():
    """Two kinds of text, the second one whose scores say less; (to calibrate on, to use thresholds on)."""
    return {"own": (drawn(60, 0), drawn(60, 1)), "prose": (drawn(60, 2, skill=0.5), drawn(60, 3, skill=0.5))}


def test_every_target_metric_method_and_epsilon_has_the_row_of_its_own_calibration(texts):
    fitting, test = texts["own"][0], texts["prose"][1]
    table = achieved_table(fitting, test, ["entropy", "margin"], [0.6, 0.9], delta=0.2)
    assert len(table) == 2 * 2 * 3 * 2 and not table.duplicated(["target", "metric", "method", "epsilon"]).any()
    given = {"risk": 0.2}
    for row in table.itertuples():
        calibration = eelib.calibrate(fitting, row.metric, row.epsilon, row.method, given.get(row.method), row.target)
        found = achieved_agreement(test, calibration)
        assert {name: getattr(row, name) for name in found} == pytest.approx(found, nan_ok=True)
    assert (table.short == (table.achieved_high < table.epsilon)).all() and table.short.any() and not table.short.all()


def test_thresholds_of_each_kind_of_text_on_each(texts):
    table = shift_table(texts, "entropy", 0.8, methods=("cascade",))
    assert table[["calibrated_on", "used_on"]].to_numpy().tolist() == [
        ["own", "own"], ["own", "prose"], ["prose", "own"], ["prose", "prose"],
    ]  # fmt: skip
    found = table.set_index(["calibrated_on", "used_on"])
    calibration = eelib.calibrate(texts["own"][0], "entropy", 0.8, "cascade")
    expected = achieved_agreement(texts["prose"][1], calibration)
    assert found.loc[("own", "prose"), list(expected)].to_dict() == pytest.approx(expected)
    assert found.achieved["own", "prose"] < found.achieved["own", "own"], "harder text"
    assert found.missed_by["own", "prose"] == pytest.approx(0.8 - found.achieved["own", "prose"])
    assert (found.missed_by >= 0).all()


def test_where_nothing_exits_nothing_is_missed(texts):
    few = {"own": (texts["own"][0].query("sequence < 3"), texts["own"][1])}
    table = shift_table(few, "entropy", 0.95, delta=0.01, methods=("risk",))
    assert table.coverage[0] == 0 and np.isnan(table.achieved[0]) and np.isnan(table.missed_by[0])


def test_halves_share_no_sequence(texts):
    traces = texts["own"][0]
    even, odd = halves(traces)
    assert set(even.sequence) == {*range(0, 60, 2)} and set(odd.sequence) == {*range(1, 60, 2)}
    assert pd.concat([even, odd]).sort_index().equals(traces)
    with pytest.raises(CorpusError, match="too few sequences to halve"):
        halves(traces[traces.sequence == 4])
