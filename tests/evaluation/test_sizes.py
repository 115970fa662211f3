import numpy as np
import pandas as pd
import pytest
import torch
from tiny import PROJECT, letters, tiny_model
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

import eelib
from eelib.errors import InvalidInputError
from eelib.evaluation.sizes import (
    LARGE_SIZES,
    PYTHIA_SIZES,
    gain_by_size,
    larger_gain_more,
    mlp_head_parameters,
    read_claims,
    read_sizes,
    training_cost_by_size,
)


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


def test_what_training_is_computed_to_cost():
    model = tiny_model("gpt_neox", torch.float32)
    heads = eelib.ExitHeads.init(model, 2, "mlp", 8, sequences=[torch.arange(20)], tokenizer=letters())
    assert heads.parameter_count()["trained"] == 2 * mlp_head_parameters(model.config.hidden_size)
    table = training_cost_by_size().set_index("size")
    assert list(table.index) == list(PYTHIA_SIZES)
    assert table.heads_share["2.8B"] < table.heads_share["70M"]
    assert (table.linear_share > table.heads_share).all() and table.gigabytes.is_monotonic_increasing
    assert training_cost_by_size(2 * 8_192_000).minutes.tolist() == pytest.approx((2 * table.minutes).tolist())
    written = pd.read_csv(PROJECT / "docs" / "results" / "heads_pythia.csv").set_index("size")
    pd.testing.assert_frame_equal(written, table, rtol=1e-4, check_dtype=False)


def test_what_training_of_large_models_is_computed_to_cost():
    """The committed table; sizes are those that transformers counts."""
    counted = {
        "Pythia-12B": GPTNeoXConfig(
            vocab_size=50688, hidden_size=5120, num_hidden_layers=36, num_attention_heads=40, intermediate_size=20480
        ),
        "Llama-3-70B": LlamaConfig(
            vocab_size=128256, hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
            intermediate_size=28672,
        ),
    }  # fmt: skip
    for name, config in counted.items():
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        blocks, hidden, block_weights, vocabulary = LARGE_SIZES[name]
        assert parameters == pytest.approx(blocks * block_weights + 2 * vocabulary * hidden, rel=2e-3)
    one, eight = (training_cost_by_size(sizes=LARGE_SIZES, shards=shards) for shards in (1, 8))
    assert (eight.minutes * 8).tolist() == pytest.approx(one.minutes.tolist())
    assert (eight.gigabytes < one.gigabytes).all() and (eight.gigabytes > one.gigabytes / 8).all()
    table = pd.concat([one.assign(shards=1), eight.assign(shards=8)], ignore_index=True)
    written = pd.read_csv(PROJECT / "docs" / "results" / "heads_large.csv")
    pd.testing.assert_frame_equal(written, table, rtol=1e-4, check_dtype=False)


def folder_of(tmp_path, name, parameters, agreement, speed):
    """The three tables that a model's notebooks leave, as far as they are read."""
    folder = tmp_path / name
    folder.mkdir()
    own = {"text": "own", "depth": [5, 10], "metric": "entropy", "auroc": 0.8, "auroc_low": 0.7, "auroc_high": 0.9}
    own |= {"agreement": agreement, "agreement_low": agreement - 0.01, "agreement_high": agreement + 0.01}
    other = {"text": "prose", "depth": 5, "metric": "entropy", "auroc": 0.1, "agreement": 0.1}
    pd.concat([pd.DataFrame(own), pd.DataFrame([other])]).to_csv(folder / "02_auroc.csv", index=False)
    exits = {"epsilon": [1.0, 0.9], "generated_blocks": [1.0, 0.75], "speed_ratio": [1.0, 1.2]}
    exits |= {"speed_ratio_low": [1.0, 1.1], "speed_ratio_high": [1.0, 1.3]}
    pd.DataFrame(exits).to_csv(folder / "04_exits.csv", index=False)
    tuned = {"decoder": ["plain", "DSSD"], "acceptance_rate": [None, 0.6], "speed_ratio": [1.0, speed]}
    tuned |= {"speed_ratio_low": [1.0, speed - 0.1], "speed_ratio_high": [1.0, speed + 0.1]}
    pd.DataFrame({**tuned, "parameters": parameters, "n_blocks": 20}).to_csv(folder / "05_speed.csv", index=False)
    return folder


def test_models_side_by_side(tmp_path):
    folders = {
        "small": folder_of(tmp_path, "small", 10**8, 0.4, 1.2),
        "large": folder_of(tmp_path, "large", 10**9, 0.6, 1.3),
    }
    table = read_sizes(folders)
    small = table[table.model == "small"].set_index(["measure", "at"]).value
    assert small["agreement", 0.25] == 0.4 and small["auroc of entropy", 0.5] == 0.8
    assert small["blocks saved", 0.9] == 0.25 and small["early exit, speed", 0.9] == 1.2
    assert small["speed", "DSSD"] == 1.2 and small["acceptance", "DSSD"] == 0.6
    assert ("acceptance", "plain") not in small and ("early exit, speed", 1.0) not in small
    (tmp_path / "unfinished").mkdir()
    (folders["large"] / "02_auroc.csv").rename(tmp_path / "unfinished" / "02_auroc.csv")
    pd.testing.assert_frame_equal(read_sizes(tmp_path), table[table.model == "small"])
    (tmp_path / "unfinished" / "02_auroc.csv").rename(folders["large"] / "02_auroc.csv")
    pd.testing.assert_frame_equal(read_sizes(tmp_path), table)  # "large" comes first by name
    among = read_sizes(tmp_path, among=["large", "not run"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(among, table[table.model == "large"].reset_index(drop=True))
    found = larger_gain_more(table, "small", "large").set_index(["measure", "at"]).verdict
    assert found["agreement", 0.25] == "more" and found["speed", "DSSD"] == "undecided"
    assert found["blocks saved", 0.9] == "one run" and found["auroc of entropy", 0.5] == "undecided"
    back = larger_gain_more(table, "large", "small").set_index(["measure", "at"]).verdict
    assert back["agreement", 0.25] == "less"


def test_tables_that_are_not_there_or_too_old(tmp_path):
    folder = folder_of(tmp_path, "small", 10**8, 0.4, 1.2)
    pd.read_csv(folder / "05_speed.csv").drop(columns="parameters").to_csv(folder / "05_speed.csv", index=False)
    with pytest.raises(InvalidInputError, match=r"05_speed\.csv has no column parameters.*earlier version"):
        read_sizes({"small": folder})
    (folder / "05_speed.csv").unlink()
    with pytest.raises(InvalidInputError, match=r"05_speed\.csv cannot be read"):
        read_sizes({"small": folder})
    for given in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidInputError, match=r"holds no folder with 02_auroc\.csv, 04_exits"):
            read_sizes(given)
    with pytest.raises(InvalidInputError, match="holds no folder of tiny, other with"):
        read_sizes(tmp_path, among=["tiny", "other"])
    with pytest.raises(InvalidInputError, match="small or large is not in the table"):
        larger_gain_more(pd.DataFrame({"model": ["small"]}), "small", "large")


def claims_of(folder, sled=True):
    """What 10_popular_claims leaves, beside a speed of LayerSkip."""
    rows = [
        {"threshold": threshold, "speed_ratio": speed, "speed_ratio_low": speed - 0.1, "speed_ratio_high": speed + 0.1,
         "compute_saved": saved, "task": task, "setting": f"max_prob ≥ {threshold}", "value": 0.4,
         "value_less_full": -0.1, "value_less_full_low": -0.15, "value_less_full_high": -0.05}
        for threshold, speed, saved in ((0.7, 1.2, 0.35), (0.95, 0.9, 0.0))
        for task in ("offline_hellaswag", "offline_truthfulqa_mc1")
    ]  # fmt: skip
    factual = {"setting": "SLED", "task": "offline_truthfulqa_mc1", "value": 0.3, "value_less_full": 0.03}
    pd.DataFrame(rows + [factual] * sled).to_csv(folder / "10_claims.csv", index=False)
    speed = pd.read_csv(folder / "05_speed.csv")
    own = speed.tail(1).assign(decoder="LayerSkip, our heads", speed_ratio=1.1, speed_ratio_low=1.0)
    pd.concat([speed, own]).to_csv(folder / "05_speed.csv", index=False)


def test_popular_claims_beside_what_models_measured(tmp_path):
    large, small = (folder_of(tmp_path, name, size, 0.4, 1.2) for name, size in (("a", 10**9), ("b", 10**8)))
    claims_of(small)
    table = read_claims(tmp_path)
    assert list(table.model.unique()) == ["b"] and len(table) == 7, "the other has no table of claims"
    found = table.set_index("claim")
    three = found.loc["max_prob ≥ 0.7: 3 times"]
    assert three[["claimed_low", "value", "value_low", "value_high"]].tolist() == pytest.approx([3, 1.2, 1.1, 1.3])
    assert found.value["LayerSkip: 2 times"] == 1.1 and found.value["SLED: 2.1 points better"] == 0.03
    assert found.value["max_prob ≥ 0.7: 30 to 60%"] == 0.35
    worse = found.loc["max_prob ≥ 0.7: 5 to 10% worse"]
    assert worse[["claimed_low", "claimed_high"]].tolist() == pytest.approx([-0.05, -0.025]), "of 0.5"
    assert np.isnan(found.value_low["max_prob ≥ 0.7: 30 to 60%"]), "a count"
    claims_of(large, sled=False)
    with pytest.raises(InvalidInputError, match=r"a/10_claims\.csv has no row for 'SLED: 2.1 points better'"):
        read_claims(tmp_path)
    claims_of(large)
    assert list(read_claims(tmp_path).model.unique()) == ["b", "a"], "smallest first"
    with pytest.raises(InvalidInputError, match=r"no folder of c with 05_speed\.csv, 10_claims\.csv"):
        read_claims(tmp_path, among=["c"])
