"""Fixtures; and shapes in annotations are checked, under pytest only."""

import pytest
from jaxtyping import install_import_hook

install_import_hook("eelib", "shapes.check_shapes")  # for the whole run: eelib imports its modules when they are used

from tiny import tiny_model  # noqa: E402


@pytest.fixture(scope="session", params=["llama", "gpt_neox"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def llama():
    return tiny_model("llama")
