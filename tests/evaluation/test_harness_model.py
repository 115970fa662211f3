import importlib
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import DEPTHS, letters, own_text, prompts, random_heads, scored_by_hand, tiny_model

import eelib
from eelib.confidence.metrics import confidence
from eelib.errors import HeadsError, InvalidInputError, MissingExtraError, UnsupportedError
from eelib.evaluation.harness_model import EarlyExitLM, LogitsLM

CASES = {
    "the cat": ("sat down", "flew", "is not here"),
    "a longer context is here:": ("yes", "no"),
    "x": ("first of all", "second"),
}


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def tiny(request):
    model = tiny_model(request.param)
    return model, random_heads(model)


@pytest.fixture(scope="module")
def with_heads(llama):
    return llama, random_heads(llama)


def instances(arguments, kind="loglikelihood"):
    return [Instance(kind, {}, given, 0, metadata=("t", number, 1), resps=[]) for number, given in enumerate(arguments)]


def choices():
    """Every choice of CASES as a request; those of one case belong together."""
    return [
        Instance("loglikelihood", {}, (context, f" {choice}"), j, metadata=("t", i, 1))
        for i, (context, offered) in enumerate(CASES.items())
        for j, choice in enumerate(offered)
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_full_model_scores_as_the_harness_does(tiny, batch_size):
    model, heads = tiny
    tokenizer = letters()
    context = tokenizer.decode(prompts(1)[0][0])
    greedy = tokenizer.decode(own_text(model, tokenizer(context, return_tensors="pt").input_ids, max_new_tokens=3)[0])
    asked = [
        ("the cat", " sat"),
        ("", "no context"),
        ("ab ", "c"),
        (context, greedy[len(context) :]),
        ("long " * 70, "er"),
    ]
    asked += [("one of", letter) for letter in "abc"]  # these three share a pass
    theirs = HFLM(model, tokenizer=tokenizer, backend="causal").loglikelihood(instances(asked), disable_tqdm=True)
    lm = EarlyExitLM(model, letters(), heads, "margin", batch_size=batch_size)
    ours = lm.loglikelihood(instances(asked), disable_tqdm=True)
    assert [found for _, found in ours] == [found for _, found in theirs]
    assert {found for _, found in ours} == {True, False}
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in theirs], atol=1e-4)
    assert lm.blocks == 1 and [record["tokens"] for record in lm.records] == [
        4,
        10,
        2,
        3,
        3,
        1,
        1,
        1,
    ]  # with the spaces before


def test_whole_texts_are_scored_in_the_harness_s_windows(with_heads):
    model, heads = with_heads
    texts = [("a text that is longer than a window " * 3,), ("short",)]
    theirs = HFLM(model, tokenizer=letters(), backend="causal", max_length=20)
    expected = theirs.loglikelihood_rolling(instances(texts), disable_tqdm=True)
    lm = EarlyExitLM(model, letters(), heads, "margin", {1: 0.3}, max_length=20, batch_size=2)
    assert lm.with_thresholds().loglikelihood_rolling(instances(texts)) == pytest.approx(expected, abs=1e-3)
    assert lm.loglikelihood_rolling(instances(texts)) != pytest.approx(expected, abs=1e-3)
    assert [record["tokens"] for record in lm.records] == [len(text) for (text,) in texts] and lm.blocks < 1


def midway(heads, depth, metric, number):
    """A threshold between the `number` lowest scores of the head before the tokens of the choices and the others: none
    is near it, whatever shares its pass."""
    found = []
    for request in choices():
        context, choice = request.args
        state = heads.backbone.states(letters()(context + choice, return_tensors="pt").input_ids, [depth])[depth]
        found.append(confidence(heads.logits(depth, state[0, len(context) - 1 : -1]), [metric])[metric])
    low, high = torch.cat(found).round(decimals=6).unique()[number - 1 : number + 1]
    assert high - low > 1e-5
    return (low + high).item() / 2


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize(
    "metric,below",  # by depth how many of the scores are below the threshold; None: it is -inf
    [("entropy", {1: None}), ("max_prob", {1: 30, 5: 10}), ("margin", {3: 20, 5: 20}), ("max_prob", {})],
)
def test_choices_by_hand(family, metric, below):
    model = tiny_model(family)
    heads = random_heads(model)
    thresholds = {d: -float("inf") if n is None else midway(heads, d, metric, n) for d, n in below.items()}
    given = dict.fromkeys(DEPTHS) | thresholds if below else {}  # None: never exits
    lm = EarlyExitLM(model, letters(), heads, metric, given, batch_size=4)
    found = lm.loglikelihood(choices(), disable_tqdm=True)
    blocks = []
    for request, (log_prob, _), record in zip(choices(), found, lm.records, strict=True):
        context, choice = request.args
        text = letters()(context + choice, return_tensors="pt").input_ids[0]
        expected, ran = scored_by_hand(heads, text, len(context), metric, thresholds)
        assert log_prob == pytest.approx(expected, rel=1e-5) and record["blocks"] == pytest.approx(ran / 6)
        assert record["tokens"] == len(choice)
        blocks.append((request.doc_id, len(choice), ran))
    for case, ran in lm.blocks_by_case()["t"].items():
        of_case = [(n, ran) for number, n, ran in blocks if number == case]
        assert ran == pytest.approx(sum(n * each for n, each in of_case) / sum(n for n, _ in of_case) / 6)
    assert (lm.blocks == 1) == (not below) and (lm.blocks == pytest.approx(1 / 6)) == (below == {1: None})


def test_the_first_head_alone_is_its_own_scoring(with_heads):
    model, heads = with_heads
    lm = EarlyExitLM(model, letters(), heads, "entropy", {1: -float("inf")})
    ((found, _),) = lm.loglikelihood(instances([("the cat", " flew")]), disable_tqdm=True)
    tokens = letters()("the cat flew", return_tensors="pt").input_ids
    state = eelib.Backbone.of(model).states(tokens, [1])[1]
    by_hand = heads.full_logits(1, state)[0].log_softmax(-1)[range(6, 11), tokens[0, 7:]].sum().item()
    assert found == pytest.approx(by_hand, abs=1e-4)
    assert lm.records == [{"task": "t", "case": 0, "request": 0, "tokens": 5, "blocks": pytest.approx(1 / 6)}]


def test_blocks_by_hand():
    model = tiny_model("llama")
    heads = random_heads(model)
    tokens = letters()("the cat flew", return_tensors="pt").input_ids
    at_first = heads.logits(1, eelib.Backbone.of(model).states(tokens, [1])[1])[0, 6:11].softmax(-1).amax(-1).sort()
    threshold = at_first.values[1:3].mean().item()  # no score is near it: three of five leave
    lm = EarlyExitLM(model, letters(), heads, "max_prob", {1: threshold})
    lm.loglikelihood(instances([("the cat", " flew")]), disable_tqdm=True)
    assert lm.blocks == pytest.approx((3 * 1 + 2 * 6) / 5 / 6)


def test_any_logits_score_texts():
    model = tiny_model("llama")
    harness = HFLM(model, tokenizer=letters(), backend="causal")
    same = LogitsLM(model, letters(), lambda tokens: model(tokens).logits, batch_size=1)
    assert same.loglikelihood(choices(), disable_tqdm=True) == harness.loglikelihood(choices(), disable_tqdm=True)
    even = LogitsLM(model, letters(), lambda tokens: torch.zeros(*tokens.shape, 97), batch_size=3, max_length=64)
    for request, (found, _) in zip(choices(), even.loglikelihood(choices(), disable_tqdm=True), strict=True):
        assert found == pytest.approx(-len(request.args[1]) * np.log(97), rel=1e-5)


def test_a_head_that_declines_never_scores():
    model = tiny_model("llama", torch.float32)
    heads = eelib.HeadConfig(DEPTHS, "affine", draft_vocab_size=20)
    heads = eelib.ExitHeads(heads, model, torch.arange(10, 30)).requires_grad_(False)
    heads.others["1"].bias.fill_(1e4)  # "other" always leads
    heads.others["3"].bias.fill_(-1e4)  # and never here
    asked = instances([("the cat", " flew")])
    always = {1: -float("inf"), 3: -float("inf")}
    lm = EarlyExitLM(model, letters(), heads, "entropy", always)
    found = lm.loglikelihood(asked, disable_tqdm=True)
    assert lm.blocks == pytest.approx(3 / 6)
    assert (
        lm.with_thresholds({1: -float("inf")}).loglikelihood(asked)
        == lm.with_thresholds().loglikelihood(asked)
        != found
    )


def generated(lm, texts, **options):
    given = {"until": [], "max_gen_toks": 24, "do_sample": False} | options
    return lm.generate_until(instances([(text, dict(given)) for text in texts], "generate_until"), disable_tqdm=True)


TEXTS = ["the cat", "a longer prompt, which goes on", "x"]


def test_greedy_generation_is_the_harness_s(tiny):
    model, heads = tiny
    lm = EarlyExitLM(model, letters(), heads, "entropy", dict.fromkeys(DEPTHS, -float("inf")), verify=True)
    harness = HFLM(model, tokenizer=letters(), backend="causal")
    expected = generated(harness, TEXTS)
    assert generated(lm, TEXTS) == generated(lm.with_thresholds(), TEXTS) == expected
    assert lm.blocks == 1 and all(0 < record["tokens"] <= 24 for record in lm.records)
    assert generated(lm, TEXTS, temperature=1.0) == expected  # do_sample=False has the last word
    assert generated(lm, TEXTS, do_sample=True, temperature=1e-5) == expected


@pytest.mark.parametrize("batch_size", [2, "auto"])
@pytest.mark.parametrize("verify", [True, False])
def test_prompts_generated_in_batches_are_those_of_one_at_a_time(batch_size, verify):
    """Texts of several lengths and stop strings, with what each of them took; none is left for the next call."""
    model = tiny_model("llama", dtype=torch.float64)
    given = model, letters(), random_heads(model), "entropy", dict.fromkeys(DEPTHS, -float("inf"))
    alone, together = (EarlyExitLM(*given, verify=verify, batch_size=size) for size in (1, batch_size))
    for until in ([], ["e", "o"], [generated(alone, TEXTS)[1][3:5]]):
        alone.records.clear(), together.records.clear()
        texts = [*TEXTS, *reversed(TEXTS)]
        assert generated(together, texts, until=until) == generated(alone, texts, until=until)
        assert together.records == alone.records and len(alone.records) == 6
    torch.manual_seed(0)
    drawn = generated(together, TEXTS[:1] * 4, do_sample=True, temperature=2.0)
    assert len(set(drawn)) > 1
    torch.manual_seed(0)
    assert generated(together, TEXTS[:1] * 4, do_sample=True, temperature=2.0) == drawn


def test_a_prompt_that_fails_in_a_batch_says_why_and_leaves_nothing_behind(with_heads):
    model, heads = with_heads
    lm = EarlyExitLM(model, letters(), heads, "entropy", {1: -float("inf")}, batch_size=2)
    with pytest.raises(UnsupportedError, match="num_beams"):
        generated(lm, TEXTS, num_beams=2)
    assert generated(lm, TEXTS[:1]) == generated(EarlyExitLM(model, letters(), heads, "entropy", {1: -1e9}), TEXTS[:1])


def test_stop_strings_count_in_what_stays_only(with_heads):
    """Heads that draft wildly, and a stop string each: a draft that is rejected must not end the text."""
    model, heads = with_heads
    lm = EarlyExitLM(model, letters(), heads, "entropy", dict.fromkeys(DEPTHS, -float("inf")), verify=True)
    harness, text = HFLM(model, tokenizer=letters(), backend="causal"), TEXTS[1:2]
    prompt = letters()(text, return_tensors="pt").input_ids
    out = eelib.generate(model, prompt, heads=heads, policy=lm.policy, max_new_tokens=24)
    rejected = out.trace[out.trace.drafted & ~out.trace.accepted].token_id.to_list()
    spoken = generated(harness, text)[0]
    assert len(rejected) > 3 and len(spoken) > 12
    for until in (*letters().decode(rejected), spoken[5], spoken[7:9]):
        for given in (until, [until, "never said"]):
            assert generated(lm, text, until=given) == generated(harness, text, until=given)
    assert generated(lm, text, until=spoken[5])[0] == spoken[: spoken.index(spoken[5])]


def test_unverified_generation_is_the_engine_s_and_counts_its_blocks(with_heads):
    model, heads = with_heads
    lm = EarlyExitLM(model, letters(), heads, "entropy", {1: -float("inf")})
    (text,) = generated(lm, TEXTS[:1], max_gen_toks=10)
    prompt = letters()(TEXTS[0], return_tensors="pt").input_ids
    out = eelib.generate(model, prompt, heads=heads, policy=lm.policy, verify=False, max_new_tokens=10)
    assert text == letters().decode(out.sequences[0, 7:], skip_special_tokens=True)
    n = lm.records[0]["tokens"]
    assert n == out.stats.emitted > 1 and lm.blocks == pytest.approx((6 + (n - 1)) / n / 6)  # the prompt's own first
    with pytest.raises(UnsupportedError, match="num_beams"):
        generated(lm, TEXTS[:1], num_beams=2)


def calibration(metric="max_prob", depths=DEPTHS, thresholds=(0.4, None, 0.2), fingerprint=None):
    table = pd.DataFrame({"depth": depths})
    given = metric, 0.9, "exit_agreement", "empirical", None, table
    return eelib.Calibration(depths, thresholds, *given, heads_fingerprint=fingerprint)


def test_a_calibration_brings_its_metric(with_heads):
    model, heads = with_heads
    lm = EarlyExitLM(model, letters(), heads, "entropy").with_thresholds(calibration(fingerprint=heads.fingerprint()))
    assert lm.metric == "max_prob" and lm.limits == {1: 0.4, 5: 0.2}
    same = EarlyExitLM(model, letters(), heads, "max_prob", {1: 0.4, 5: 0.2})
    assert lm.loglikelihood(choices(), disable_tqdm=True) == same.loglikelihood(choices(), disable_tqdm=True)


@pytest.mark.parametrize(
    "metric,thresholds,error,message",
    [
        ("surprise", None, InvalidInputError, "Unknown metric 'surprise'"),
        (None, {1: 0.5}, InvalidInputError, "without a metric"),
        ("max_prob", {2: 0.5}, HeadsError, r"depths \[2\].*\[1, 3, 5\]"),
        ("max_prob", {1: float("nan")}, InvalidInputError, "expected a number"),
        ("max_prob", {1: True}, InvalidInputError, "expected a number"),
        ("max_prob", {1: "half"}, InvalidInputError, "expected a number"),
        ("max_prob", {1: 1.5}, InvalidInputError, "between 0 and 1"),
        ("entropy", {1: 0.5}, InvalidInputError, "between -inf and 0"),
        ("entropy", calibration(), InvalidInputError, "the calibration is of max_prob"),
        (None, calibration(depths=(1, 3, 4)), HeadsError, r"Calibrated for depths \[1, 3, 4\]"),
        (None, calibration(fingerprint="0" * 64), HeadsError, "calibrate anew"),
    ],
)
def test_what_cannot_be_is_refused(with_heads, metric, thresholds, error, message):
    model, heads = with_heads
    with pytest.raises(error, match=message):
        EarlyExitLM(model, letters(), heads, metric, thresholds)
    with pytest.raises(error, match=message):
        EarlyExitLM(model, letters(), heads).with_thresholds(thresholds, metric)


def test_what_cannot_be_together_is_refused(with_heads):
    model, heads = with_heads
    with pytest.raises(HeadsError, match="another model object"):
        EarlyExitLM(tiny_model("llama"), letters(), heads)
    with pytest.raises(HeadsError, match="without heads"):
        EarlyExitLM(model, letters(), None, "entropy", {1: -1.0})
    for batch_size in (0, "many", True):
        with pytest.raises((InvalidInputError, TypeError), match="batch_size"):
            EarlyExitLM(model, letters(), heads, batch_size=batch_size)
    with pytest.raises(InvalidInputError, match="continuation of 0"):
        EarlyExitLM(model, letters()).loglikelihood(instances([("no end", "")]), disable_tqdm=True)


def test_nothing_of_the_user_s_is_changed(with_heads):
    model, heads = with_heads
    tokenizer = letters()
    before = model.generation_config.to_dict()
    generated(EarlyExitLM(model, tokenizer, heads, "entropy", {1: -1.0}), TEXTS)
    assert tokenizer.pad_token is None and model.generation_config.to_dict() == before


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("harness_model", "harness"):
        monkeypatch.delitem(sys.modules, f"eelib.evaluation.{name}", raising=False)
    for name in ("harness_model", "harness"):
        with pytest.raises(MissingExtraError, match=r"pip install 'eelib\[bench\]'"):
            importlib.import_module(f"eelib.evaluation.{name}")


def test_what_the_harness_takes_is_handed_on(with_heads):
    model, heads = with_heads
    lm = EarlyExitLM(
        model, letters(), heads, enable_thinking=False, think_end_token="z", add_bos_token=True, truncation=True,
        batch_size="auto",
    )  # fmt: skip
    assert lm.add_bos_token is True and lm.truncation is True and lm.think_end_token is not None
    by_hand = EarlyExitLM(model, letters(), heads, add_bos_token=True, batch_size=3)
    found, expected = (np.array(one.loglikelihood(choices(), disable_tqdm=True)) for one in (lm, by_hand))
    assert found == pytest.approx(expected)
