import numpy as np
import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError


@pytest.fixture
def exits():
    """A model of four blocks, heads at depth 2 of a frozen one, and fixed exits of two draft lengths."""
    rows = [
        {"exits": name, "depth": depth, "agreement": depth / 4, "perplexity": np.nan if heads else 10.0 ** (5 - depth)}
        for name, depths, heads in (("original", (1, 2, 3, 4), 0), ("tuned", (1, 2, 3, 4), 0), ("our heads", (2,), 1))
        for depth in depths
    ]
    table = pd.DataFrame(rows)
    table = table.assign(agreement_low=table.agreement - 0.1, agreement_high=table.agreement + 0.1)
    fixed = [
        {"exits": name, "depth": depth, "draft_length": n, "acceptance_rate": depth / 10 / n}
        for name in ("original", "tuned", "our heads")
        for depth in (1, 2, 3)
        for n in (4, 2)
    ]
    return pd.concat([table, pd.DataFrame(fixed)], ignore_index=True)


def test_exits_over_depth_without_the_models_end(exits):
    figure = plotting.exits_by_depth(exits, 4)
    agreement, perplexity, accepted = figure.axes
    drawn = [container.lines[0].get_xdata().tolist() for container in agreement.containers]
    assert drawn == [[1, 2, 3], [1, 2, 3], [2]], "agreement at the end is 1 by definition"
    assert [line.get_ydata().tolist() for line in perplexity.lines] == [[1e4, 1e3, 100, 10]] * 2, "heads have none"
    assert perplexity.get_yscale() == "log"
    assert [line.get_ydata().tolist() for line in accepted.lines] == [pytest.approx([0.05, 0.1, 0.15])] * 3
    assert accepted.get_title().startswith("acceptance, 2 drafts")
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["original, logit lens", "tuned by LayerSkip, logit lens", "our heads, model frozen"]


def test_one_models_exits_are_enough(exits):
    figure = plotting.exits_by_depth(exits[exits.exits == "original"], 4)
    assert [len(axes.lines) for axes in figure.axes[1:]] == [1, 3]
    assert len(figure.axes[0].containers[1].lines[0].get_xdata()) == 0


@pytest.fixture
def cost():
    perplexity = pd.DataFrame([
        {"text": text, "model": model, "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.2}
        for text in ("own", "prose")
        for model, ratio in (("original", 1.0), ("tuned", 1.3), ("plain", 0.9))
    ])  # fmt: skip
    accuracy = pd.DataFrame([
        {"task": "hellaswag", "model": model, "difference": change, "difference_low": -0.1, "difference_high": 0.1}
        for model, change in (("original", 0.0), ("tuned", -0.05), ("plain", 0.02))
    ])  # fmt: skip
    return pd.concat([perplexity, accuracy])


def test_copies_beside_the_original(cost):
    figure = plotting.full_model_change(cost)
    texts, tasks = figure.axes
    assert [tick.get_text() for tick in texts.get_yticklabels()] == ["own", "prose"]
    assert [tick.get_text() for tick in tasks.get_yticklabels()] == ["hellaswag"]
    tuned, plain = (container.lines[0] for container in texts.containers)
    assert tuned.get_xdata().tolist() == [1.3, 1.3] and plain.get_xdata().tolist() == [0.9, 0.9]
    assert tuned.get_ydata() == pytest.approx([-0.15, 0.85]) and plain.get_ydata() == pytest.approx([0.15, 1.15])
    segments = texts.containers[0].lines[2][0].get_segments()
    assert segments[0][:, 0] == pytest.approx([1.2, 1.5])
    unchanged = [next(line for line in axes.lines if line.get_color() == "0.6").get_xdata() for axes in figure.axes]
    assert unchanged == [[1, 1], [0, 0]]
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["tuned by LayerSkip", "tuned without the recipe"]


def test_tables_that_layerskip_cannot_be_drawn_from(exits, cost):
    with pytest.raises(InvalidInputError, match="no column perplexity"):
        plotting.exits_by_depth(exits.drop(columns="perplexity"), 4)
    with pytest.raises(InvalidInputError, match="exits: theirs; expected original, tuned, our heads"):
        plotting.exits_by_depth(exits.replace("tuned", "theirs"), 4)
    with pytest.raises(InvalidInputError, match="no column task"):
        plotting.full_model_change(cost.drop(columns="task"))
    with pytest.raises(InvalidInputError, match="model: another; expected tuned, plain"):
        plotting.full_model_change(cost.replace("plain", "another"))
