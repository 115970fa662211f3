"""The long scripts of this folder, as they are called by hand; they write docs/results."""

import subprocess
import sys

import pytest
from tiny import PROJECT

CALLS = {
    "kill.py --model gpt-neox": 60,
    "kill.py --model smollm2-135m": 150,
    "long_run.py --minutes 60 --write": 75,
}
"""And after how many minutes they have failed."""


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.timeout(10_000)
def test_it_finds_nothing(call):
    script, *arguments = call.split()
    command = [sys.executable, str(PROJECT / "tests" / "chaos" / script), *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60 * CALLS[call])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
