"""Fixtures; shapes in annotations are checked, under pytest only; and what no test may depend on is set for all."""

import os

import pytest

# Tests beside each other share the cores, also those in the notebooks that they start: set before torch reads it.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = os.cpu_count() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

# What eelib imports, before the hook that checks its shapes: whatever is imported under it is compiled anew.
import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import scipy.stats  # noqa: F401
import shapes
import sklearn.metrics  # noqa: F401
import transformers.modeling_utils  # noqa: F401
from hypothesis import settings

shapes.check("eelib")  # for the whole run: eelib imports its modules when they are used

from tiny import PROJECT, tiny_model  # noqa: E402

# No deadline: how quick a machine is proves nothing. The same examples everywhere: what fails on one machine can be
# seen on another. `--hypothesis-profile=search` looks for new ones.
settings.register_profile("search", deadline=None)
settings.register_profile("same everywhere", deadline=None, derandomize=True, database=None)
settings.load_profile("same everywhere")


@pytest.fixture(scope="session", autouse=True)
def at_home():
    """What lies in the checkout is found from wherever pytest is called, and whatever `EELIB_HOME` says there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.delenv("EELIB_HOME", raising=False)
        yield


@pytest.fixture(scope="session", params=["llama", "gpt_neox"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def llama():
    return tiny_model("llama")


LONGEST = ("test_notebooks.py", "test_batch.py", "test_real_models.py", "test_contributing.py", "test_readme.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that neither process waits at the end for the other's."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
