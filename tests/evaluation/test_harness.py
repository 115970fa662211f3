import socket

import numpy as np
import pytest
import torch
from datasets import Dataset
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from tiny import letters, random_heads

import eelib
from eelib.confidence.metrics import confidence
from eelib.errors import FetchError, InvalidInputError, UnsupportedError
from eelib.evaluation import cases, harness

ACC = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
TASKS = {
    "choose": {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer"},
    # as winogrande does it: the choices are in the contexts, doc_to_text is the right one's number
    "fill": {"doc_to_text": "{{answer}}", "doc_to_choice": "choices", "doc_to_target": "ending"},
}
DOCS = [
    {"context": "the cat", "choices": ["sat", "flew away"], "answer": 1, "ending": "and then"},
    {"context": "a dog", "choices": ["was here", "slept"], "answer": 0, "ending": "all day"},
    {"context": "it", "choices": ["is", "may be so"], "answer": 1, "ending": "said he"},
]


class InMemory(ConfigurableTask):
    def __init__(self, name, **config):
        given = {"task": name, "test_split": "test", "output_type": "multiple_choice", "metric_list": ACC}
        super().__init__(config=given | TASKS.get(name, {}) | config)

    def download(self, *_, **__):
        self.dataset = {"test": Dataset.from_list(DOCS)}


@pytest.fixture(scope="module")
def lm(llama):
    return harness.EarlyExitLM(llama, letters(), random_heads(llama), "max_prob", batch_size=4)


@pytest.fixture(autouse=True)
def no_report_of_the_machine(monkeypatch):
    """The harness asks a dozen programs what machine this is, which takes a second a run."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def log_prob(lm, context, ending):
    first = len(letters()(context).input_ids)
    tokens = letters()(context + ending, return_tensors="pt").input_ids
    by_token = lm.model(tokens).logits[0, :-1].log_softmax(-1)[range(tokens.shape[1] - 1), tokens[0, 1:]]
    return by_token[first - 1 :].sum().item()


def test_settings_beside_the_full_model(lm):
    settings = {"full": lm, "all at 1": lm.with_thresholds({1: 0.0}), "some": lm.with_thresholds({1: 0.5, 5: 0.1})}
    table = harness.evaluate(settings, [InMemory("choose")]).set_index("setting")
    assert (table.task == "choose").all() and (table.metric == "acc").all() and (table.cases == 3).all()
    full = harness.run_cases(lm, [InMemory("choose")])
    some = harness.run_cases(settings["some"], [InMemory("choose")])
    right = [log_prob(lm, doc["context"], " " + doc["choices"][doc["answer"]]) for doc in DOCS]
    np.testing.assert_allclose(full.log_prob, right, rtol=1e-4)
    assert table.blocks["full"] == 1 and table.blocks["all at 1"] == pytest.approx(1 / 6)
    assert 1 / 6 < table.blocks["some"] < 1 and table.blocks["some"] == pytest.approx(some.blocks.mean())
    assert table.value["some"] == some.value.mean() and table.value["full"] == full.value.mean()
    for name in ("value", "log_prob"):
        less = (some[name] - full[name]).mean()
        assert table[f"{name}_less_full"]["some"] == pytest.approx(less) and table[f"{name}_less_full"]["full"] == 0
    assert (
        table.log_prob_less_full_low["some"] < table.log_prob_less_full["some"] < table.log_prob_less_full_high["some"]
    )
    changed = (some.answer != full.answer).mean()
    assert table.changed_answers["some"] == pytest.approx(changed) and table.changed_answers["full"] == 0
    both = [[log_prob(lm, doc["context"], " " + choice) for choice in doc["choices"]] for doc in DOCS]
    by_hand = np.argmax(both, axis=1).tolist()
    assert full.answer.tolist() == list(map(str, by_hand))
    assert full.value.tolist() == [float(a == d["answer"]) for a, d in zip(by_hand, DOCS, strict=True)]


def test_settings_share_their_passes_and_nothing_lasts(lm, monkeypatch):
    calls, states = [], eelib.Backbone.states
    monkeypatch.setattr(eelib.Backbone, "states", lambda *args: calls.append(1) or states(*args))
    harness.evaluate({"full": lm, "some": lm.with_thresholds({1: 0.5})}, [InMemory("choose")])
    assert len(calls) == 2  # six texts by four
    harness.evaluate({"full": lm}, [InMemory("choose")])
    assert len(calls) == 4
    other = lm.with_thresholds({1: -1.0}, "entropy")
    harness.evaluate({"full": lm, "other metric": other}, [InMemory("choose")])
    assert len(calls) == 8
    harness.run_cases(lm, [InMemory("choose")])
    harness.run_cases(lm, [InMemory("choose")])
    assert len(calls) == 12 and len(lm.records) == 6


def test_a_metric_of_ones_own_is_a_row(lm):
    own = {
        "surprise": lambda sample: -sample["resps"][sample["target"]][0][0],
        "half": lambda sample: sample["blocks"] / 2,
    }
    settings = {"full": lm, "first": lm.with_thresholds({1: 0.0})}
    table = harness.evaluate(settings, [InMemory("choose")], metrics=own).set_index(["metric", "setting"])
    assert list(table.index.unique("metric")) == ["acc", "surprise", "half"]
    less = table.loc[("surprise", "first")]
    assert less.value_less_full == pytest.approx(-less.log_prob_less_full) and less.value_less_full != 0
    assert table.value["half", "full"] == 0.5 and table.value["half", "first"] == pytest.approx(1 / 12)
    with pytest.raises(InvalidInputError, match=r"'acc'.*rename"):
        harness.run_cases(lm, [InMemory("choose")], 1, metrics={"acc": lambda sample: 1.0})
    with pytest.raises(InvalidInputError, match="'word' gave 'two'"):
        harness.run_cases(lm, [InMemory("choose")], 1, metrics={"word": lambda sample: "two"})


def test_choices_in_contexts_and_groups(lm):
    group = Group("both")
    group.add(InMemory("choose"))
    group.add(InMemory("fill"))
    found = harness.run_cases(lm, [group])
    fill = found[found.task == "fill"]
    right = [log_prob(lm, doc["choices"][doc["answer"]], " " + doc["ending"]) for doc in DOCS]
    np.testing.assert_allclose(fill.log_prob, right, rtol=1e-4)
    both = found[found.task == "both"]
    assert both.log_prob.tolist() == found[found.task != "both"].log_prob.tolist()
    assert both.case.is_unique and len(both) == 6
    assert found.groupby("task", sort=False).blocks.mean().tolist() == [1, 1, 1]


def test_texts_and_single_continuations(lm):
    whole = InMemory(
        "whole", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="context",
        metric_list=[{"metric": "word_perplexity"}],
    )  # fmt: skip
    last = InMemory(
        "last", output_type="loglikelihood", doc_to_text="context", doc_to_target=" {{ending}}",
        metric_list=[{"metric": "perplexity"}, *ACC],
    )  # fmt: skip
    table = harness.evaluate({"full": lm, "first": lm.with_thresholds({1: 0.0})}, [whole, last])
    assert table[["task", "metric"]].drop_duplicates().to_numpy().tolist() == [["whole", "log_prob"], ["last", "acc"]]
    rows = table[table.setting == "full"].set_index("task")
    begun = [log_prob(lm, "<bos>", doc["context"]) for doc in DOCS]
    assert rows.value["whole"] == pytest.approx(np.mean(begun), rel=1e-4)
    ends = [log_prob(lm, doc["context"], " " + doc["ending"]) for doc in DOCS]
    found = harness.run_cases(lm, [last]).log_prob
    np.testing.assert_allclose(found, ends, rtol=1e-4)
    assert table.changed_answers.isna().tolist() == [True, True, False, False]
    first = table[table.setting == "first"]
    assert np.allclose(first.blocks, 1 / 6) and (first.log_prob_less_full != 0).all()


def test_the_reference_and_the_cases_must_be_there(lm):
    with pytest.raises(InvalidInputError, match="No setting 'full', to compare with, among 'early'"):
        harness.evaluate({"early": lm}, [InMemory("choose")])
    found = harness.run_cases(lm, [InMemory("choose")])
    assert len(harness.summarise({"a": found, "b": found}, reference="b")) == 2
    with pytest.raises(InvalidInputError, match="'b' was not run on the cases of 'a'"):
        harness.summarise({"a": found, "b": found[:2]}, reference="a")
    with pytest.raises(UnsupportedError, match="use_cache"):
        harness.run_cases(lm, [InMemory("choose")], use_cache="somewhere")


def test_the_harness_s_own_model_fits_beside(lm):
    plain = HFLM(lm.model, tokenizer=letters(), backend="causal")
    table = harness.evaluate({"full": lm, "plain": plain}, [InMemory("choose")]).set_index("setting")
    assert abs(table.log_prob_less_full["plain"]) < 1e-4 and table.changed_answers["plain"] == 0
    assert np.isnan(table.blocks["plain"])


def test_offline_tasks_are_the_packaged_cases(lm, monkeypatch):
    def refuse(*args):
        pytest.fail(f"a connection was tried: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    seen = {}
    options = {"gen_kwargs": {"max_gen_toks": 4}, "metrics": {"n": lambda sample: seen.setdefault(
        (sample["task"], sample["doc_id"]), sample) and 1.0}}  # fmt: skip
    table = harness.run_cases(lm.with_thresholds({1: 0.0}), harness.OFFLINE, 2, **options)
    assert set(table.task) == set(harness.OFFLINE) and (table.groupby("task").case.nunique() == 2).all()
    for name in cases.MULTIPLE_CHOICE:
        for i, case in enumerate(cases.load_cases(name)[:2]):
            sample = seen[f"offline_{name}", i]
            assert sample["arguments"] == [(case.context, f" {choice}") for choice in case.choices]
            assert sample["target"] == case.answer
            assert ("acc_norm" in sample["metrics"]) == case.per_character
    row = cases.read_rows("gsm8k")[1]
    sample = seen["offline_gsm8k", 1]
    assert sample["arguments"][0][0] == f"Question: {row['prompt']}\nAnswer:" and sample["target"] == row["expected"]
    assert (table[table.task == "offline_gsm8k"].blocks > 1 / 6).all()  # the first token is the full model's


def test_accuracy_on_the_packaged_cases_is_by_the_metric_of_each_task(llama):
    lm = harness.EarlyExitLM(llama, letters(), random_heads(llama), "max_prob", batch_size=4, max_length=2048)
    table = harness.multiple_choice_accuracy({"own": lm, "all at 1": lm.with_thresholds({1: 0.0})}, 3, reference="own")
    assert table.task.tolist() == ["hellaswag"] * 2 + ["truthfulqa_mc1"] * 2 and "metric" not in table
    table = table.set_index(["task", "setting"])
    for task in cases.MULTIPLE_CHOICE:
        right = []
        for case in cases.load_cases(task)[:3]:
            lengths = [len(choice) if case.per_character else 1 for choice in case.choices]
            sums = [log_prob(lm, case.context, f" {choice}") for choice in case.choices]
            right.append(np.argmax(np.array(sums) / lengths) == case.answer)
        assert table.accuracy[task, "own"] == pytest.approx(np.mean(right)) and table.cases[task, "own"] == 3
        less = table.accuracy[task, "all at 1"] - np.mean(right)
        assert table.accuracy_less_own[task, "all at 1"] == pytest.approx(less)
        assert table.changed_answers[task, "own"] == 0 and table.blocks[task, "all at 1"] == pytest.approx(1 / 6)


def test_gsm8k_answers_are_their_last_number():
    task = harness._OfflineTask("offline_gsm8k")
    doc = cases.read_rows("gsm8k")[0] | {"expected": "1800"}
    task.build_all_requests(limit=1)
    for said, right in (("First 5 eggs, so $1,800.", 1), ("It is 18", 0), ("1800, or 1,801", 0), ("many", 0)):
        task.instances[0].resps = [said]
        task.apply_filters()
        (found,) = task.instances[0].filtered_resps.values()
        assert task.process_results(doc, [found]) == {"exact_match": right}


def test_missing_cases_and_unknown_tasks(lm, monkeypatch):
    with pytest.raises(InvalidInputError, match=r"'no_such_task'.*offline_hellaswag"):
        harness.run_cases(lm, ["no_such_task"], task_manager=harness.lm_eval.tasks.TaskManager(include_defaults=False))

    def missing(*args):
        raise FetchError("No benchmark cases")

    monkeypatch.setattr(harness, "load_cases", missing)
    with pytest.raises(FetchError):
        harness.run_cases(lm, ["offline_hellaswag"])


def read_by_hand(heads, tokenizer, case) -> list[dict[int, tuple]]:
    """For each choice, by depth: the scores before its tokens (inf at the full model), and their log-probabilities."""
    backbone, start, found = heads.backbone, len(tokenizer(case.context).input_ids), []
    for choice in case.choices:
        text = tokenizer(f"{case.context} {choice}", return_tensors="pt").input_ids[0]
        by_depth = {}
        for depth, states in backbone.states(text[None, :-1], [*heads.depths, backbone.n_blocks]).items():
            states, scores = states[0, start - 1 :], torch.full((len(text) - start,), float("inf"))
            if depth < backbone.n_blocks:
                scores = confidence(heads.logits(depth, states), ["max_prob"])["max_prob"]
            logits = heads.full_logits(depth, states) if depth < backbone.n_blocks else backbone.unembed(states)
            by_depth[depth] = scores, logits.log_softmax(-1).gather(-1, text[start:, None])[:, 0]
        found.append(by_depth)
    return found


def gap_in(scores: torch.Tensor) -> float:
    """The middle of the widest gap between scores that are neither low nor high: no rounding reaches it."""
    middle = scores.sort().values[len(scores) // 4 : -len(scores) // 4]
    widest = middle.diff().argmax()
    assert middle.diff()[widest] > 1e-3
    return middle[widest : widest + 2].mean().item()


def test_the_offline_model_answers_as_the_benchmarks_have_it():
    """One case a task: by early exits as added up by hand, without them as the harness's own model."""
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="float32", device="cpu")
    heads = eelib.ExitHeads.init(model, (10, 20), "none")
    asked = {name: cases.load_cases(name)[0] for name in cases.MULTIPLE_CHOICE}
    told = {name: read_by_hand(heads, tokenizer, case) for name, case in asked.items()}
    choices = [by_depth for of_case in told.values() for by_depth in of_case]
    thresholds = {depth: gap_in(torch.cat([by_depth[depth][0] for by_depth in choices])) for depth in heads.depths}
    lm = harness.EarlyExitLM(model, tokenizer, heads, "max_prob", batch_size=4)
    settings = {"early": lm.with_thresholds(thresholds), "full": lm.with_thresholds(None)}
    settings["plain"] = HFLM(model, tokenizer=tokenizer, backend="causal")
    loaded = harness._load([f"offline_{name}" for name in asked], None)
    tables = {name: harness.run_cases(setting, loaded, 1) for name, setting in settings.items()}
    for name, case in asked.items():
        metric = "acc_norm" if case.per_character else "acc"
        rows = {
            setting: table[(table.task == f"offline_{name}") & (table.metric == metric)].squeeze()
            for setting, table in tables.items()
        }
        depths, log_probs = [], []
        for by_depth in told[name]:
            scores, values = (torch.stack(each) for each in zip(*by_depth.values(), strict=True))  # [depth, token]
            first = (scores >= torch.tensor([*thresholds.values(), 0.0])[:, None]).int().argmax(0)
            depths += [(*heads.depths, 30)[i] for i in first]
            log_probs.append([values.gather(0, first[None]).sum().item(), values[-1].sum().item()])
        lengths = [[len(choice)] if case.per_character else [1] for choice in case.choices]
        ranked = np.array(log_probs) / lengths  # [choice, early or full]
        assert (np.diff(np.sort(ranked, axis=0), axis=0)[-1] > 1e-3).all(), "no rounding decides it"
        for setting, which in (("early", 0), ("full", 1), ("plain", 1)):
            row, best = rows[setting], ranked[:, which].argmax()
            assert int(row.answer) == best and row.value == (best == case.answer)
            assert row.log_prob == pytest.approx(log_probs[case.answer][which], rel=1e-4)  # dozens of float32 terms
        assert rows["early"].blocks == pytest.approx(np.mean(depths) / 30) and 1 / 3 < rows["early"].blocks < 1
        assert rows["full"].blocks == 1
