"""Programs that a model might write: what passes, what does not, and what they cannot do."""

import shutil
import time

import pytest

from eelib.errors import InvalidInputError, UnsupportedError
from eelib.evaluation import execution
from eelib.evaluation.cases import read_rows
from eelib.evaluation.execution import passes, program

CASE = {
    "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n",
}
RIGHT = "```python\ndef double(xs: List[int]):\n    return [2 * x for x in xs]\n```"


def can_run() -> bool:
    try:
        execution._check_system()
    except UnsupportedError:
        return False
    return True


needs_namespace = pytest.mark.skipif(not can_run(), reason="this system lets no user have a network namespace")


def test_nothing_runs_unless_asked_for():
    with pytest.raises(InvalidInputError, match="allow_execution=True"):
        passes(["print(1)"])


@pytest.mark.parametrize("missing", ["command", "permission"])
def test_refused_where_the_system_allows_no_namespace(monkeypatch, missing):
    if missing == "command":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(execution, "_ALONE", ["false"])
    with pytest.raises(UnsupportedError, match="unshare"):
        passes(["print(1)"], allow_execution=True)


@needs_namespace
def test_answers_as_models_give_them():
    answers = {
        RIGHT: True,
        f"Certainly! Use this:\n\n{RIGHT}\n\nIt doubles.": True,
        "```python\n# pip install nothing\n```\nand then\n" + RIGHT: True,
        "    return [2 * x for x in xs]\n": True,  # goes on with the task's own lines
        "```python\n    return [x + x for x in xs]\n```": True,
        RIGHT.removesuffix("```"): True,  # cut off behind the code
        RIGHT.replace("2 *", "3 *"): False,
        "```python\ndef double(xs):\n    return [2 * x\n```": False,
        "I cannot do that.": False,
        "": False,
        "```python\nimport sys\nsys.exit(0)\n```": False,
        "```python\nimport os\ndef double(xs):\n    os._exit(0)\n```": False,
        "```python\ndef double(xs):\n    return 'é\ud800'\n```": False,
    }
    found = passes([program(CASE, answer) for answer in answers], allow_execution=True, processes=2)
    assert dict(zip(answers, found, strict=True)) == answers


@needs_namespace
@pytest.mark.parametrize(
    "does",
    [
        "import socket; socket.create_connection(('127.0.0.1', PORT), timeout=5)",
        "x = bytearray(2**31)",
        "open('large', 'wb').write(bytes(2**22))",
        "while True: pass",
        "import time; time.sleep(60)",
        "print('x' * 2**24)",
        "import os; os.fork(); import time; time.sleep(60)",
    ],
)
def test_what_programs_cannot_do(does):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        text = does.replace("PORT", str(server.getsockname()[1]))
        assert passes([text], allow_execution=True, seconds=2) == [False]
        assert time.monotonic() - start < 30


@needs_namespace
def test_the_reference_solutions_pass():
    cases = read_rows("humaneval")[:12]
    right = [program(case, f"```python\n{case['prompt']}{case['canonical_solution']}```") for case in cases]
    wrong = [program(case, f"```python\n{case['prompt']}    return None\n```") for case in cases]
    assert all(passes(right, allow_execution=True)) and not any(passes(wrong, allow_execution=True))
