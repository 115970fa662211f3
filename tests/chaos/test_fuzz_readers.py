"""Half an hour of coverage-guided fuzzing of the readers; a part of `make test-slow`."""

import importlib.util
import subprocess
import sys

import pytest
from tiny import PROJECT


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_coverage_guided_fuzz_of_every_reader(tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("NOT FUZZED: atheris is not installed, which has no wheels for every Python: pip install atheris.")
    command = [sys.executable, str(PROJECT / "tests" / "chaos" / "fuzz_readers.py"), "-max_total_time=1800"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
