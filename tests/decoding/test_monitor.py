import numpy as np
import pandas as pd
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tiny import drawn, prompts, tiny_model

import eelib
from eelib.calibration.cascade import HeadScores
from eelib.calibration.p_values import SequentialTest
from eelib.calibration.thresholds import achieved
from eelib.decoding.monitor import ExitMonitor, agreement_so_far, compare_monitors, openmetrics, read_export
from eelib.errors import CorpusError, InvalidInputError


def calibration(epsilon=0.7, target="exit_agreement", thresholds=(1.0, 1.0)):
    found = eelib.calibrate(drawn(4), "margin", epsilon, target=target)
    return eelib.Calibration((2, 4), thresholds, "margin", epsilon, target, "empirical", None, found.table)


def test_an_audit_counts_what_calibration_counts():
    traces, found = drawn(10), calibration()
    monitor = ExitMonitor(found)
    monitor.audit(traces[traces.sequence < 4])
    monitor.audit(traces[traces.sequence >= 4])
    expected = achieved(traces, found).groupby("sequence")[["exited", "agreed"]].sum()
    assert monitor.table[["exited", "agreed"]].to_numpy().tolist() == expected.to_numpy().tolist()
    assert monitor.recalibrate().thresholds == eelib.calibrate(traces, "margin", 0.7).thresholds


@pytest.mark.parametrize("target", ["exit_agreement", "output_agreement"])
def test_false_alarms_are_rarer_than_promised_and_a_shift_is_seen(target):
    """400 runs of 100 sequences each, at a risk of just 1 - ε; then with heads that are right less often."""
    pool = drawn(400, seed=5)
    tokens = HeadScores.of(pool, "margin")
    exits = tokens.exits((1.0, 1.0))
    wrong, exited = (exits & ~tokens.agrees).sum(), exits.sum()
    epsilon = float(1 - wrong / exited if target == "exit_agreement" else 1 - wrong / len(exits))
    losses = tokens.losses((1.0, 1.0), target, epsilon)
    assert losses.mean() == pytest.approx(1 - epsilon), "the promise is just kept"
    draw, alarms = np.random.default_rng(0), 0
    for _ in range(400):
        test = SequentialTest(1 - epsilon)
        alarms += any(test.add(loss) >= 10 for loss in draw.choice(losses, 100))
    assert alarms / 400 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400)
    monitor = ExitMonitor(calibration(epsilon, target))
    monitor.audit(drawn(150, seed=6, skill=0.0))
    assert monitor.alarm and monitor.summary().alarm_at[0] < 150


@pytest.fixture(scope="module")
def decoded():
    model = tiny_model("llama")
    heads = eelib.ExitHeads.init(model, [2, 4], "none")
    policy = eelib.Confidence("margin", (0.05, 0.05), max_draft=4, back_off=False)
    return (
        model,
        heads,
        [
            eelib.generate(model, p, policy=policy, heads=heads, max_new_tokens=30, eos_token_id=None)
            for p in prompts(4)
        ],
    )


def test_what_decoding_verifies_is_what_the_traces_say(decoded):
    """A draft is compared with the model's own token behind the model's own text, just as in traces."""
    model, heads, outputs = decoded
    for output in outputs:
        monitor = ExitMonitor(calibration(thresholds=(0.05, 0.05)))
        monitor.observe(output)
        traces = eelib.record_traces(model, heads, [output.sequences[0]])
        traces["exits"] = traces.margin >= 0.05
        first = traces[traces.exits].groupby("position").first()  # what would exit at each position
        trace = output.trace
        asked = trace[trace.drafted & trace.accepted].position.tolist()
        assert monitor.table.agreed[0] == len(asked) and all(first.agrees[p - 1] for p in asked)
        refused = monitor.table.exited[0] - monitor.table.agreed[0]
        own = trace[~trace.drafted & (trace["round"] > 0)]
        rejected = trace[trace.drafted & ~trace.accepted].merge(own[["round", "position"]])
        assert refused == len(rejected) and not any(first.agrees[p - 1] for p in rejected.position)
    assert sum(o.stats.accepted for o in outputs) > 0 and sum(o.stats.drafted - o.stats.accepted for o in outputs) > 0


def test_two_policies_side_by_side(decoded):
    first, second = (ExitMonitor(calibration()) for _ in range(2))
    for output in decoded[2]:
        first.observe(output)
        second.observe(output)
    table = compare_monitors(first, second).set_index("measure")
    assert (table.difference == 0).all() and (table.difference_low <= 0).all() and (table.difference_high >= 0).all()
    assert table.loc["coverage", "first"] == first.summary().coverage[0]
    with pytest.raises(CorpusError, match="audited"):
        compare_monitors(first, second, "audited")


def test_early_exit_tells_shares_and_time_but_no_agreement(decoded):
    model, heads, _ = decoded
    policy = eelib.Confidence("margin", (0.05, 0.05))
    output = eelib.generate(
        model, prompts(1)[0], policy=policy, heads=heads, verify=False, max_new_tokens=20, eos_token_id=None
    )
    monitor = ExitMonitor(calibration())
    monitor.observe(output)
    assert monitor.table.exited[0] == (output.trace.depth < model.config.num_hidden_layers).sum() > 0
    assert np.isnan(monitor.table.agreed[0]) and not monitor.alarm


def test_audits_are_drawn_at_the_share_asked_for():
    monitor = ExitMonitor(calibration(), audit_share=0.25)
    assert 200 < sum(monitor.due() for _ in range(1000)) < 300
    assert not any(ExitMonitor(calibration()).due() for _ in range(20))
    with pytest.raises(CorpusError, match="no sequence was audited"):
        monitor.recalibrate()
    for wrong in ({"false_alarm": 0.0}, {"false_alarm": 1.0}, {"audit_share": -0.1}, {"audit_share": 1.5}):
        with pytest.raises(InvalidInputError):
            ExitMonitor(calibration(), **wrong)


def observed(decoded, n=4, **options):
    monitor = ExitMonitor(calibration(**options))
    for output in decoded[2][:n]:
        monitor.observe(output)
    return monitor


def test_drafts_and_settled_tokens_are_those_of_the_engine(decoded):
    table = observed(decoded).table
    for row, output in zip(table.itertuples(), decoded[2], strict=True):
        assert (row.drafted, row.accepted) == (output.stats.drafted, output.stats.accepted)
        assert row.settled_2 + row.settled_4 == output.stats.accepted
        assert row.settled_2 + row.settled_4 + row.settled_full == row.tokens == output.stats.emitted
    audited = ExitMonitor(calibration())
    audited.audit(drawn(5))
    assert (audited.table.settled_2 + audited.table.settled_4 == audited.table.exited).all()
    assert (audited.table.settled_full == audited.table.tokens - audited.table.exited).all()


def test_the_alarm_is_raised_when_the_upper_limit_falls_to_the_promise():
    monitor = ExitMonitor(calibration(0.8))
    monitor.audit(drawn(120, seed=6, skill=0.0))
    table = monitor.to_frame()
    reached = (table.evidence >= 100).cummax()
    assert ((table.agreement_high <= 0.8) == reached).all() and reached.iloc[-1] and not reached[0]
    assert table.agreement_low.iloc[-1] < agreement_so_far(table).iloc[-1] < table.agreement_high.iloc[-1]


def test_exports_are_read_back_and_compared_like_monitors(decoded, tmp_path):
    first, second = observed(decoded, 2), observed(decoded)
    first.to_frame().to_csv(tmp_path / "first.csv", index=False)
    second.to_frame().to_parquet(tmp_path / "second.parquet")
    files = tmp_path / "first.csv", str(tmp_path / "second.parquet")
    pd.testing.assert_frame_equal(compare_monitors(*files), compare_monitors(first, second))
    mixed = pd.concat([first.to_frame(), observed(decoded, 1, epsilon=0.9).to_frame()])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    for wrong, words in (
        (tmp_path / "absent.csv", "cannot be read"), (tmp_path / "damaged.parquet", "cannot be read"),
        ("a.txt", r"\.csv"), (first.table, "epsilon"), (mixed, "one monitor"), (3, "ExitMonitor"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=words):
            read_export(wrong)


def test_followers_are_told_of_every_record_until_they_end(decoded):
    monitor, told = ExitMonitor(calibration()), []
    end = monitor.follow(lambda: told.append(len(monitor.table)))
    monitor.observe(decoded[2][0])
    monitor.audit(drawn(3))
    end()
    end()
    monitor.observe(decoded[2][1])
    assert told == [1, 4]


def families(text):
    """As a strict reader has them: the value of each sample by its name and labels."""
    found = {family.name: family for family in text_string_to_metric_families(text)}
    values = {
        (sample.name, frozenset(sample.labels.items())): sample.value for f in found.values() for sample in f.samples
    }
    return found, lambda name, **labels: values[name, frozenset(labels.items())]


def test_openmetrics_says_what_the_table_says(decoded):
    monitor = observed(decoded)
    monitor.audit(drawn(30))
    found, value = families(openmetrics(monitor))
    table = monitor.to_frame()
    verified = table[table.population == "verified"]
    of = {"population": "verified"}
    assert value("eelib_sequences_total", **of) == 4
    assert value("eelib_tokens_total", **of) == verified.tokens.sum()
    assert value("eelib_accepted_tokens_total", **of) == verified.accepted.sum() > 0
    assert value("eelib_settled_tokens_total", **of, depth="full") == verified.settled_full.sum()
    assert value("eelib_decoding_seconds_total", **of) == pytest.approx(verified.seconds.sum())
    assert value("eelib_token_seconds_count", **of) == value("eelib_token_seconds_bucket", **of, le="+Inf") == 4
    assert value("eelib_evidence", population="audited") == table.evidence.iloc[-1]
    assert value("eelib_agreement_ratio", population="audited") == agreement_so_far(table[4:]).iloc[-1]
    assert ("eelib_decoding_seconds_total", frozenset({("population", "audited")})) not in found
    assert found["eelib_calibration"].type == "info" and found["eelib_token_seconds"].unit == "seconds"


def test_openmetrics_of_several_monitors_with_labels_of_any_text(decoded):
    strange = 'a "quoted" \\ back\nslash, é }'
    empty = ExitMonitor(calibration())
    found, value = families(openmetrics({strange: observed(decoded), "new": empty}, {"model": strange}))
    assert value("eelib_sequences_total", population="verified", monitor=strange, model=strange) == 4
    assert value("eelib_alarm", monitor="new", model=strange) == 0
    assert len(found["eelib_sequences"].samples) == 1
    for labels in ({"population": "x"}, {"1st": "x"}, {"__own": "x"}, {"a-b": "x"}):
        with pytest.raises(InvalidInputError, match="labels"):
            openmetrics(empty, labels)
    with pytest.raises(InvalidInputError, match="ExitMonitor"):
        openmetrics(None)


def test_openmetrics_without_verification_tells_no_agreement(decoded):
    model, heads, _ = decoded
    policy = eelib.Confidence("margin", (0.05, 0.05))
    monitor = ExitMonitor(calibration())
    monitor.observe(eelib.generate(model, prompts(1)[0], policy=policy, heads=heads, verify=False, max_new_tokens=9))
    text = openmetrics(monitor)
    found, _ = families(text)
    assert found["eelib_exited_tokens"].samples and not found["eelib_agreed_tokens"].samples and "NaN" not in text
