"""Main results of a model, as tables to print and LaTeX."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from eelib.errors import InvalidInputError
from eelib.plotting.acceptance import setting_label
from eelib.plotting.style import with_interval
from eelib.reporting.claims import Claim
from eelib.reporting.model_tables import ModelTables
from eelib.reporting.wording import interval

WIDE = 84
"""Characters from which on a row is scaled to the width of the text."""
ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """A table as it is printed: every cell a string.

    Attributes:
        name: of its file, without ending.
        caption: what it shows, one or two sentences.
        rows: the cells.
        source: name of the CSV that it is from; empty where it is from several.
        cites: keys of the works that it speaks of, in the bibliography.
    """

    name: str
    caption: str
    rows: pd.DataFrame
    source: str = ""
    cites: tuple[str, ...] = ()


def result_tables(tables: ModelTables) -> list[Table]:
    """Tables of speed, AUROC, calibration, accuracy and baselines.

    Those whose CSV is there and has what is printed.
    """
    made = []
    for make in MAKERS:
        try:
            made.append(make(tables))
        except InvalidInputError:
            continue  # the claim that it belongs to says what is missing
    return made


def cell(row: Mapping[str, float], name: str, form: str = ".2f") -> str:
    """A value with its interval, if any; a dash if missing."""
    value = row.get(name)
    return ABSENT if pd.isna(value) else interval(row, name, form)


def share(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return ABSENT if pd.isna(value) else f"{value:.0%}"


def claims_table(claims: list[Claim]) -> Table:
    """One row a claim: statement, verdict, number."""
    rows = [
        {"Claim": claim.key, "Statement": claim.statement, "Verdict": claim.verdict, "Number": claim.number or ABSENT}
        for claim in claims
    ]
    cites = tuple(dict.fromkeys(claim.source for claim in claims if claim.source))
    return Table("claims", "Claims of the paper and of popular accounts (P).", pd.DataFrame(rows), "", cites)


def speed_table(tables: ModelTables) -> Table:
    """Ways of decoding that keep the output, as tuned, on held-out prompts."""
    columns = ("decoder", "tokens_per_second", *with_interval("speed_ratio"), *with_interval("acceptance_rate"))
    name, table = tables.read("05_speed_full", "05_speed", columns=columns)
    rows = [
        {
            "Decoder": row["decoder"],
            "Setting": setting_label(row) or ABSENT,
            "Tokens/s": cell(row, "tokens_per_second", ".1f"),
            "Speed": cell(row, "speed_ratio"),
            "Acceptance": cell(row, "acceptance_rate"),
            "Drafts/token": cell(row, "drafts_per_token"),
            "Equal": share(row.get("equal")),
        }
        for row in table.to_dict("records")
    ]
    caption = (
        "Verified decoding as tuned, on held-out prompts: speed over plain decoding in the same engine, acceptance of "
        "drafts (95% intervals over prompts), and the share of texts equal to plain decoding's (others part at a "
        "near-tie)."
    )
    cites = ("valade2024", "elhoushi2024layerskip", "leviathan2023", "saxena2023prompt")
    return Table("speed", caption, pd.DataFrame(rows), f"{name}.csv", cites)


def auroc_table(tables: ModelTables) -> Table:
    """AUROC of every metric, by kind of text and depth."""
    columns = ("text", "depth", "metric", *with_interval("auroc"))
    name, table = tables.read("02_auroc", columns=columns)
    rows = []
    for (text, depth), part in table.groupby(["text", "depth"], sort=False):
        cells = {row["metric"]: cell(row, "auroc", ".3f") for row in part.to_dict("records")}
        rows.append({"Text": str(text), "Depth": f"{depth:g}"} | cells)
    caption = (
        "AUROC of confidence metrics for the head's token being the full model's, by kind of text and depth "
        "(95% intervals, bootstrap over texts). combined: logistic regression on all of them."
    )
    return Table("auroc", caption, pd.DataFrame(rows).fillna(ABSENT), f"{name}.csv", ("valade2024",))


def calibration_table(tables: ModelTables) -> Table:
    """Agreement that thresholds achieve, by target, metric, ε and method."""
    columns = ("target", "metric", "method", "epsilon", *with_interval("achieved"), "coverage")
    name, table = tables.read("03_calibration", columns=columns)
    rows = []
    for (target, metric, epsilon), part in table.groupby(["target", "metric", "epsilon"], sort=False):
        cells = {
            row["method"]: f"{cell(row, 'achieved', '.3f')} ({row['coverage']:.2f})" if row["coverage"] else "no exits"
            for row in part.to_dict("records")
        }
        rows.append({"Target": target.replace("_", " "), "Metric": metric, "ε": f"{epsilon:g}"} | cells)
    caption = (
        "Agreement with the full model that thresholds achieve on held-out text (95% intervals, bootstrap over texts), "
        "and coverage in brackets. empirical: the paper's rule; risk: Learn-then-Test."
    )
    cites = ("valade2024", "angelopoulos2021ltt", "waudbysmith2020betting")
    return Table("calibration", caption, pd.DataFrame(rows).fillna(ABSENT), f"{name}.csv", cites)


def accuracy_table(tables: ModelTables) -> Table:
    """Accuracy, blocks and speed of early exit, by task and ε."""
    columns = ("task", "setting", *with_interval("accuracy"), *with_interval("accuracy_less_full"), "blocks")
    name, table = tables.read("04_accuracy", "04_speed", columns=columns)
    rows = [
        {
            "Task": row["task"],
            "Setting": row["setting"],
            "Cases": f"{row['cases']:.0f}" if "cases" in row else ABSENT,
            "Accuracy": cell(row, "accuracy"),
            "Less the full model's": cell(row, "accuracy_less_full", "+.2f"),
            "Blocks": share(row["blocks"]),
            "Speed": cell(row, "speed_ratio"),
        }
        for row in table.to_dict("records")
    ]
    caption = (
        "Early exit without verification: accuracy, its paired difference to the full model, blocks run, and speed "
        "over the full model in generation (95% intervals)."
    )
    cites = ("valade2024", "zellers2019hellaswag", "lin2022truthfulqa")
    return Table("accuracy", caption, pd.DataFrame(rows), f"{name}.csv", cites)


def baselines_table(tables: ModelTables) -> Table:
    """Baselines of the literature on the same prompts."""
    columns = ("decoder", *with_interval("speed_ratio"), "token_agreement")
    name, table = tables.read("09_baselines", columns=columns)
    rows = [
        {
            "Decoder": row["decoder"],
            "Speed": cell(row, "speed_ratio"),
            "Agreement": share(row["token_agreement"]),
            "Equal": share(row.get("equal")),
            "Acceptance": cell(row, "acceptance_rate"),
        }
        for row in table.to_dict("records")
    ]
    caption = (
        "Ways to decode on the same prompts: speed over plain decoding (95% intervals), share of tokens that the full "
        "model would have chosen, texts equal to plain decoding's, acceptance of drafts."
    )
    cites = (
        "elhoushi2024layerskip", "zhang2023draftverify", "schuster2022calm", "chen2023eellm", "delcorro2023skipdecode",
        "zhang2024sled", "entezari2025del", "saxena2023prompt", "wolf2020transformers",
    )  # fmt: skip
    return Table("baselines", caption, pd.DataFrame(rows), f"{name}.csv", cites)


MAKERS: tuple[Callable[[ModelTables], Table], ...] = (
    speed_table, auroc_table, calibration_table, accuracy_table, baselines_table,
)  # fmt: skip

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "ε": r"$\varepsilon$", "δ": r"$\delta$", "α": r"$\alpha$", "λ": r"$\lambda$", "≥": r"$\geq$", "≤": r"$\leq$",
    "×": r"$\times$", "±": r"$\pm$", "−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}", "·": r"$\cdot$",
    "→": r"$\rightarrow$", "’": "'", "“": "``", "”": "''", "\n": " ",
}  # fmt: skip
_ESCAPES = str.maketrans(_LATEX)
_PARAGRAPHS = {("claims", "Statement"): "p{7cm}", ("claims", "Number"): "p{5cm}"}  # columns that break their lines


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text.translate(_ESCAPES))


def to_latex(table: Table, label: str) -> str:
    """A floating table for `\\input`; needs the packages booktabs and graphicx.

    Args:
        label: what comes after `tab:` in the label; all but letters, digits, dots and dashes become dashes.
    """
    columns = list(table.rows.columns)
    rows = [[latex_escape(str(value)) for value in row] for row in table.rows.itertuples(index=False)]
    wide = sum(2 + max(len(str(value)) for value in [name, *table.rows[name]]) for name in columns)
    tabular = [
        rf"\begin{{tabular}}{{{''.join(_PARAGRAPHS.get((table.name, name), 'l') for name in columns)}}}",
        *(r"\toprule", " & ".join(map(latex_escape, columns)) + r" \\", r"\midrule"),
        *(" & ".join(row) + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    if wide > WIDE:
        tabular = [r"\resizebox{\linewidth}{!}{%", *tabular, "}"]
    caption = latex_escape(table.caption.removesuffix("."))
    cited = rf"~\cite{{{','.join(table.cites)}}}" if table.cites else ""
    safe = re.sub(r"[^A-Za-z0-9.-]", "-", label)
    origin = f" from {table.source}" if table.source else ""
    return "\n".join([
        f"% Made by eelib.reporting{origin}: not to be edited.", r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}[tb]", r"\centering", r"\small", rf"\caption{{{caption}{cited}.}}", rf"\label{{tab:{safe}}}",
        *tabular, r"\end{table}", "",
    ])  # fmt: skip
