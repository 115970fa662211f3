import matplotlib.pyplot as plt
import pytest

from eelib import plotting


@pytest.fixture(autouse=True)
def styled():
    plotting.use_style()
    yield
    plt.close("all")
