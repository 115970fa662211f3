"""Compact tables for notebooks: objects of this package as HTML."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def table_html(title: str, rows: Iterable[Sequence[object]], columns: Sequence[str] = ()) -> str:
    """A small HTML table; whatever stands in it is escaped.

    Args:
        title: above the table.
        rows: values, each as `shown` writes it; without `columns` the first of each row is its name.
        columns: names of the columns.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(shown(value))}</td>" for value in row) + "</tr>" for row in rows)
    return (
        f"<table><caption><b>{html.escape(title)}</b></caption>"
        + (f"<thead><tr>{head}</tr></thead>" if columns else "")
        + f"<tbody>{body}</tbody></table>"
    )


def shown(value: object) -> str:
    """A value as people read it.

    Three digits of a fraction, names of a mapping, yes or no; "–" for nothing.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(one)}" for name, one in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "–"
    return str(value)
