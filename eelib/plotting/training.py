"""Training curves: loss and agreement of heads."""

import pandas as pd
from matplotlib.figure import Figure

from eelib.plotting.style import check_table, depth_style, panels


def training_curves(report: pd.DataFrame, validation: pd.DataFrame | None = None) -> Figure:
    """Loss and agreement over training tokens, a line per depth.

    Args:
        report: of `train_heads`, smoothed or not: columns tokens, depth, loss [nats], agreement.
        validation: agreement on held-out text, drawn as dots after the last step: columns depth, agreement.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """
    check_table(report, "tokens", "depth", "loss", "agreement")
    style = depth_style(report.depth.unique())
    figure, (left, right) = panels(2)
    for depth, table in report.groupby("depth"):
        left.plot(table.tokens / 1e3, table.loss, **style[depth], label=f"depth {depth}")
        right.plot(table.tokens / 1e3, table.agreement, **style[depth])
    if validation is not None:
        check_table(validation, "depth", "agreement")
        for row in validation[validation.depth.isin([*style])].itertuples():
            color = style[row.depth]["color"]
            right.plot(report.tokens.max() / 1e3, row.agreement, "o", color=color, clip_on=False)
        right.set_title("lines: training text, dots: held-out text", fontsize=7)
    left.set(xlabel="training tokens seen [thousands]", ylabel="KL(model || head) [nats]", ylim=(0, None))
    right.set(xlabel="training tokens seen [thousands]", ylabel="agreement with the model", ylim=(0, 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(style))
    return figure
