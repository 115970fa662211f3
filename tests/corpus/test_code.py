from eelib.corpus import code
from eelib.corpus.prompts import openings
from eelib.corpus.reading import read_documents
from eelib.evaluation.cases import read_rows

PROMPT = '''from typing import List


def helper(x):
    """ Twice x. """
    return 2 * x


def double_all(xs: List[int], *, times: int = 1) -> List[int]:
    """ Twice each of the numbers,
    as often as asked for. For example:
    >>> double_all([1, 2])
    [2, 4]
    """
'''


def test_a_task_as_code_and_in_words():
    assert code.completion(PROMPT) == f"Complete this function:\n\n```python\n{PROMPT.strip()}\n```"
    expected = "Write a Python function double_all(xs), without a docstring. "
    assert code.description(PROMPT) == expected + "Twice each of the numbers, as often as asked for."


def test_descriptions_are_one_line_without_code():
    described = list(read_documents("code_description"))
    assert len(described) == len(read_rows("humaneval")) == 104
    assert not any("\n" in text or ">>>" in text or "```" in text for text in described)
    assert len(set(described)) == 104 and min(map(len, described)) > 60


def test_tasks_to_train_on_are_not_measured_on():
    measured = {*read_documents("code_completion"), *read_documents("code_description")}
    given = list(read_documents("code_prompts"))
    assert len(given) == 120 and not measured & set(given)
    assert openings(240, [0.0], [[1]] * 120, [])  # each of them begins a document
