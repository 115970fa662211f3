"""Phrases that the sentences share: enumerations, intervals, speeds, places."""

from collections.abc import Iterable, Mapping

import pandas as pd

from eelib.statistics import format_interval

NOTHING = "**Nothing was measured that could be said here.**"


def listed(parts: Iterable[str], last: str = "and") -> str:
    """An enumeration: "a, b and c"."""
    parts = list(parts)
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def paragraph(sentences: Iterable[str]) -> str:
    """Sentences as one paragraph, with something in bold in the first."""
    first, *others = list(sentences) or [NOTHING]
    return " ".join([first if "**" in first else f"**{first}**", *others])


def capitalised(text: str) -> str:
    """The text with a capital letter first, the rest as it is."""
    return text[:1].upper() + text[1:]


def interval(row: Mapping[str, float], name: str, form: str = ".2f") -> str:
    """A value with its interval, "0.55 [0.50, 0.61]", or alone without one."""
    low, high = (row.get(f"{name}{end}") for end in ("_low", "_high"))
    return f"{row[name]:{form}}" if pd.isna(low) or pd.isna(high) or low == high else format_interval(row, name, form)


def placed(row: Mapping[str, float], name: str, bound: float) -> int:
    """Side of a bound where an interval lies: 1, -1 or 0.

    Without an interval the value decides.
    """
    low, high = (row[name] if pd.isna(row.get(f"{name}{end}")) else row[f"{name}{end}"] for end in ("_low", "_high"))
    return int(low > bound) - int(high < bound)


def pace(row: Mapping[str, float], name: str = "speed_ratio") -> str:
    """A speed ratio in words: "1.30 times as fast", "slower, at 0.88"."""
    return f"slower, at {interval(row, name)}" if row[name] < 1 else f"{interval(row, name)} times as fast"


def numbers(values: Iterable[float], form: str = ".2f", last: str = "and") -> str:
    """An enumeration of numbers: "0.35, 0.39 and 0.67"."""
    return listed((f"{value:{form}}" for value in values), last)


def depths(of: Iterable[float], last: str = "and") -> str:
    """Named depths: "depth 6", "depths 6 and 12"."""
    named = list(of)
    return f"depth{'s' * (len(named) > 1 and last == 'and')} {numbers(named, 'g', last)}"


def at_depths(values: pd.Series, form: str = ".2f") -> str:
    """Values by depth: "0.35 and 0.39 at depths 6 and 12"."""
    return f"{numbers(values, form)} at {depths(values.index)}"


def holders(names: pd.Series) -> str:
    """Names by depth, "`a` at depth 6, `b` at depth 12"."""
    if names.nunique() == 1:
        return f"`{names.iloc[0]}`"
    return ", ".join(f"`{name}` at {depths(part.index)}" for name, part in names.groupby(names, sort=False))


def of_all(n: int, total: int) -> str:
    """Count of a total: "none of 12", "3 of 12", "all 12"."""
    return f"none of {total:,}" if n == 0 else f"all {total:,}" if n == total > 1 else f"{n:,} of {total:,}"


def nearest(values: Iterable[float], wanted: float) -> float:
    """The one of the values that is nearest to the wanted one."""
    return min(values, key=lambda value: abs(value - wanted))


def spoken(decoder: str) -> str:
    """A decoder's name without commas, for enumerations."""
    for written, said in (
        ("transformers: ", "transformers' "),
        (", our heads", " with the same heads"),
        (", logit lens", " by the logit lens"),
        (", ε = ", " at ε = "),
        (", ", " "),
    ):
        decoder = decoder.replace(written, said)
    return decoder


def kind_of_text(name: str) -> str:
    """Name of a kind of text in a sentence: "prose", "technical text"."""
    return {"own": "the heads' own kind of text", "prose": "prose"}.get(name, f"{name.removesuffix(' text')} text")
