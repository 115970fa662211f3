import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import eelib
from eelib.confidence.combined import Combined
from eelib.confidence.metrics import BUILT_IN
from eelib.confidence.separation import measure_separation
from eelib.errors import CorpusError


def drawn(n, seed):
    """Right where two metrics together say so; neither alone knows."""
    draw = np.random.default_rng(seed)
    scores = {metric: draw.normal(size=n) for metric in BUILT_IN}
    table = pd.DataFrame(
        {"sequence": np.arange(n) // 10, "position": np.arange(n) % 10, "head": 0, "depth": 4, **scores}
    )
    table["agrees"] = table.entropy + table.max_logit + draw.normal(size=n) / 2 > 0
    table["head_token"] = np.where(draw.random(n) < 0.1, -1, 7)
    return table


def test_it_finds_what_no_single_metric_holds_on_text_it_has_not_seen():
    combined, new = Combined.fit(drawn(600, 0)), drawn(600, 1)
    scores = combined.score(new)
    declined = new.head_token < 0
    assert np.isneginf(scores[declined]).all() and np.isfinite(scores[~declined]).all()
    spoken = new.assign(combined=scores)[~declined]
    best = max(roc_auc_score(spoken.agrees, spoken[metric]) for metric in BUILT_IN)
    assert roc_auc_score(spoken.agrees, spoken.combined) > best + 0.1
    table = measure_separation(new.assign(combined=scores), ["entropy", "combined"], resamples=50).set_index("metric")
    assert table.p["combined"] < 1e-6


def test_it_is_calibrated_like_a_metric_but_not_decoded_with():
    traces = drawn(400, 0)
    traces["combined"] = Combined.fit(drawn(400, 1)).score(traces)
    found = eelib.calibrate(traces, "combined", 0.9)
    assert found.table.coverage[0] > eelib.calibrate(traces, "entropy", 0.9).table.coverage[0]
    with pytest.raises(eelib.errors.InvalidInputError, match="Unknown metric"):
        eelib.Confidence.from_calibration(found)


def test_nothing_to_learn_from():
    always = drawn(50, 0).assign(agrees=True)
    with pytest.raises(CorpusError, match="both right and wrong"):
        Combined.fit(always)
    both = pd.concat([drawn(200, 0), always.assign(depth=8)])
    scores = Combined.fit(both).score(both)
    assert (scores[(both.depth == 8) & (both.head_token >= 0)] == 0).all()
