import pandas as pd
import pytest

from eelib.evaluation.sizes import PYTHIA_SIZES, gain_by_size


def test_no_exits_cost_the_heads_and_exits_pay_more_on_larger_models():
    shares = pd.DataFrame({"decoder": ["never", "half"], "share_1": [0, 0.5], "share_2": 0, "share_3": 0, "share_4": 0})
    table = gain_by_size(shares).set_index(["decoder", "size"])
    assert len(table) == 2 * len(PYTHIA_SIZES)
    never, half = table.loc["never"], table.loc["half"]
    assert never.speed_ratio_computed["70M"] == pytest.approx(1 / (1 + 4 * never.head_share["70M"]))
    assert (never.speed_ratio_computed < 1).all() and half.speed_ratio_computed["2.8B"] > half.speed_ratio_computed[
        "70M"
    ]
    weights, full = 32 * 12 * 2560**2, 32 * 12 * 2560**2 + 50304 * 2560
    read = 0.5 * 6 / 32 * weights + 0.5 * full + 2.5 * half.head_share["2.8B"] * full
    assert half.speed_ratio_computed["2.8B"] == pytest.approx(full / read)
