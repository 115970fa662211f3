"""A model's report, with LaTeX tables and a bibliography.

The same content is written as HTML (one file, figures inside) and as PDF.
"""

import base64
import io
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from eelib.errors import InvalidInputError, MissingExtraError
from eelib.reporting.claims import Claim, judge_claims
from eelib.reporting.judging import FAILS, HOLDS, OPEN, UNMEASURED
from eelib.reporting.model_tables import ModelTables
from eelib.reporting.tables import Table, claims_table, result_tables, to_latex
from eelib.reporting.wording import capitalised, listed
from eelib.workspace import atomic_write, read_note

logger = logging.getLogger(__name__)

VERDICTS = (HOLDS, FAILS, OPEN, UNMEASURED)
ABOUT = (
    "Everything here is made by code from the tables named with it. Intervals are 95%. What each claim is judged by is "
    "fixed beforehand, and its verdict follows from that number's interval: **holds**, **does not hold**, **not "
    "decided** where the interval leaves both open, **not measured** where the table is missing."
)
MODELS = {"smollm2": "benallal2025smollm2", "qwen2.5-coder": "hui2024qwencoder", "pythia": "biderman2023pythia"}
"""Beginnings of models' names, and what is cited for them."""


@dataclass(frozen=True)
class Report:
    """What a report says, whatever it is written as.

    Attributes:
        model: its short name.
        about: facts of the model and of the runs, by name.
        runs: where the numbers come from, and the figures from there.
        claims: every claim, judged.
        tables: the main results.
        figures: folder that the figures are in.
    """

    model: str
    about: dict[str, str]
    runs: dict[str, list[str]]
    claims: list[Claim]
    tables: list[Table]
    figures: Path

    @property
    def title(self) -> str:
        return f"Early exits on {self.model}"

    @property
    def summary(self) -> str:
        """Counts of claims by verdict."""
        counts = {name: sum(claim.verdict == name for claim in self.claims) for name in VERDICTS}
        parts = [f"{count} {COUNTED[name][count > 1]}" for name, count in counts.items() if count]
        return f"Of {len(self.claims)} claims, {listed(parts)}."

    @property
    def shown(self) -> dict[str, int]:
        """Figures of the claims, numbered in order."""
        names = dict.fromkeys(claim.figure for claim in self.claims if claim.figure)
        there = [name for name in names if (self.figures / f"{name}.png").is_file()]
        return {name: number for number, name in enumerate(there, 1)}

    @property
    def figure_holders(self) -> list[Claim]:
        """The first claim of each figure: later ones refer to it."""
        first = {claim.figure: claim for claim in reversed(self.claims)}
        return [first[name] for name in self.shown]

    @property
    def measured(self) -> list[str]:
        """Day, machine, commit and tables of each run.

        The tables of the commonest run are not named.
        """
        commonest = max(self.runs, key=lambda run: len(self.runs[run]))
        others = [f"{', '.join(names)}: {run}" for run, names in self.runs.items() if run != commonest]
        return [commonest, *others]

    @property
    def cited(self) -> list[str]:
        """Keys of the works that claims and tables cite, in order."""
        keys = [claim.source for claim in self.claims] + [key for table in self.tables for key in table.cites]
        keys += [key for name, key in MODELS.items() if self.model.startswith(name)]
        return list(dict.fromkeys(filter(None, keys)))


COUNTED = {
    HOLDS: ("holds", "hold"), FAILS: ("does not hold", "do not hold"), OPEN: ("is not decided", "are not decided"),
    UNMEASURED: ("was not measured", "were not measured"),
}  # fmt: skip
"""Verdicts as verbs: of one claim, of several."""


def read_report(figures: str | Path, results: str | Path | None = None) -> Report:
    """Judge the claims and read the tables of a model.

    Args:
        figures: folder of the model's figures, with the CSV of each.
        results: folder of its results; None for `data/results/<model>` of the same workspace.

    Raises:
        InvalidInputError: there is no such folder, or no table in it.
    """
    tables = ModelTables(figures, results)
    if not tables.figures.is_dir():
        raise InvalidInputError(f"{figures} is no folder: expected the folder of a model's figures.")
    if not any(tables.figures.glob("[0-9][0-9]_*.csv")):
        raise InvalidInputError(
            f"{figures} holds no table of a figure (a CSV whose name begins with two digits): make the figures first."
        )
    claims = judge_claims(tables)
    return Report(
        tables.model, _about(tables), _runs(tables.figures), claims, [claims_table(claims), *result_tables(tables)],
        tables.figures,
    )  # fmt: skip


def write_report(
    figures: str | Path, results: str | Path | None = None, output: str | Path | None = None, *, pdf: bool = True
) -> list[Path]:
    """Writes report.html, report.pdf, report.bib and tables/*.tex; returns the paths.

    Without fpdf2 (extra `paper`), the PDF is left out, and a warning is logged.

    Args:
        figures, results: as in `read_report`.
        output: folder to write to; None for that of the figures.
        pdf: whether to write the PDF.

    Raises:
        InvalidInputError: there is no such folder, or no table in it.
    """
    report = read_report(figures, results)
    output = report.figures if output is None else Path(output)
    written = []

    def write(name: str, content: str | bytes) -> None:
        with atomic_write(output / name) as path:
            path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        written.append(output / name)

    write("report.html", to_html(report))
    write("report.bib", bibliography())
    for table in report.tables:
        write(f"tables/{table.name}.tex", to_latex(table, f"{report.model}-{table.name}"))
    if pdf:
        try:
            from eelib.reporting.pdf import to_pdf

            write("report.pdf", to_pdf(report))
        except MissingExtraError as error:
            logger.warning("report.pdf is left out: %s", error)
    return written


def to_html(report: Report) -> str:
    """The report as one HTML file that needs nothing beside it."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"markdown": _html, "slug": lambda text: text.replace(" ", "-"), "capitalised": capitalised}
    template = environment.from_string(_data("report.html.jinja"))
    images = {name: _embedded(report.figures / f"{name}.png") for name in report.shown}
    works = references()
    return template.render(report=report, images=images, about=ABOUT, works={key: works[key] for key in report.cited})


def bibliography() -> str:
    """The BibTeX file of what reports cite."""
    return _data("references.bib")


def references() -> dict[str, dict[str, str]]:
    """Bibliography as text: fields of each work, by key.

    Fields: authors, title, year, short (the first author and the year), where, link.
    """
    works = {}
    for key, body in re.findall(r"@\w+\{([\w-]+),\n(.*?)\n\}", bibliography(), re.DOTALL):
        fields = {name: _plain(value) for name, value in re.findall(r"^\s*(\w+) = \{(.*)\},?$", body, re.MULTILINE)}
        arxiv = fields.get("eprint", "")
        where = ", ".join(filter(None, [fields.get("booktitle"), f"arXiv {arxiv}" if arxiv else ""]))
        works[key] = {
            "authors": _authors(fields["author"]), "title": fields["title"], "year": fields["year"],
            "short": f"{fields['author'].split(' and ')[0].split(', ')[0]}, {fields['year']}",
            "where": where or fields.get("howpublished", ""), "link": f"https://arxiv.org/abs/{arxiv}" if arxiv else "",
        }  # fmt: skip
    return works


def _authors(field: str) -> str:
    """Authors as text: up to three, else the first."""
    names = [" ".join(reversed(name.split(", "))) for name in field.split(" and ")]
    if len(names) > 3 or "others" in names:
        return f"{names[0]} et al."
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _plain(value: str) -> str:
    """A BibTeX value without its commands."""
    value = re.sub(r"\\url\{(.*?)\}", r"\1", value).replace(r"{\`e}", "è").replace(r"\&", "&").replace("--", "–")
    return re.sub(r"[{}]", "", value)


def _about(tables: ModelTables) -> dict[str, str]:
    """Size of the model, if known, and versions of the software."""
    about = {"Model": tables.model}
    try:
        _, speed = tables.read("05_speed_full", "05_speed", columns=("parameters", "n_blocks"))
        about["Size"] = f"{speed.parameters[0] / 1e6:,.0f} million parameters, {speed.n_blocks[0]:.0f} blocks"
    except InvalidInputError:
        pass  # an earlier version's table: a report without it is worth having
    about["Made with"] = ", ".join(f"{name} {_version(name)}" for name in ("eelib", "torch", "transformers"))
    return about


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _runs(figures: Path) -> dict[str, list[str]]:
    """Runs, by their figures' notes, and the tables of each."""
    runs: dict[str, list[str]] = {}
    for table in sorted(figures.glob("[0-9][0-9]_*.csv")):
        try:
            _, provenance = read_note(table.with_suffix(".md"))
        except InvalidInputError:
            provenance = "day, machine and commit were not recorded"
        runs.setdefault(provenance, []).append(table.stem)
    return runs


def _embedded(image: Path) -> str:
    """A PNG as a data URI, reduced to a palette.

    Line art looks the same at a third of the size.
    """
    from PIL.Image import Dither
    from PIL.Image import open as open_image

    with open_image(image) as opened:
        picture = opened.convert("RGB")
    packed = io.BytesIO()
    picture.quantize(128, dither=Dither.NONE).save(packed, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode('ascii')}"


def markdown_parts(text: str) -> Iterable[tuple[str, str]]:
    """Pieces of a sentence in Markdown, as (style, text).

    Styles: "bold", "code", "plain"; code in bold is bold.
    """
    for bold, code, plain in re.findall(r"\*\*(.+?)\*\*|`(.+?)`|([^*`]+|[*`])", text):
        if bold:
            yield "bold", bold.replace("`", "")
        else:
            yield ("code", code) if code else ("plain", plain)


def _html(text: str):
    """A sentence in Markdown as HTML."""
    from markupsafe import Markup, escape

    tags = {"bold": "strong", "code": "code"}
    return Markup("").join(
        Markup(f"<{tags[kind]}>{escape(part)}</{tags[kind]}>") if kind in tags else escape(part)
        for kind, part in markdown_parts(text)
    )


def _data(name: str) -> str:
    return files("eelib.reporting").joinpath(name).read_text(encoding="utf-8")
