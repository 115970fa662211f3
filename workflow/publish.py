"""README and docs, written from templates and the committed tables of docs/results.

`python -m workflow.publish` takes over the tables and sentences beside the figures, and writes every document anew;
`python -m workflow.publish --check` changes nothing, and fails where a document or a table is not what was published.
"""

import argparse
import difflib
import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pandas as pd

from eelib.errors import EelibError, InvalidInputError
from eelib.statistics import format_interval
from eelib.workspace import atomic_write, read_json
from eelib.workspace.ledger import FOLDER

PROJECT = Path(__file__).resolve().parents[1]
SUMS = "SHA256SUMS"


class Tables:
    """Numbers of committed tables, for templates."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def rows(self, name: str, **where: object) -> pd.DataFrame:
        """Rows of a table, such as "smollm2-135m/05_speed", with these values."""
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            raise InvalidInputError(f"no table {name}: expected {path}; publish a run that made it, or leave it out")
        table = pd.read_csv(path)
        missing = [column for column in where if column not in table]
        if missing:
            raise InvalidInputError(f"{name} has no columns {missing}; there are {list(table)}")
        for column, value in where.items():
            table = table[table[column].isin(value if isinstance(value, list) else [value])]
        return table

    def row(self, name: str, **where: object) -> pd.Series:
        """The one row of a table with these values."""
        found = self.rows(name, **where)
        if len(found) != 1:
            raise InvalidInputError(f"{len(found)} rows of {name} have {where}; expected one")
        return found.iloc[0]

    def value(self, name: str, column: str, form: str = ".2f", **where: object) -> str:
        """One number as text."""
        return format(self.row(name, **where)[column], form)

    def interval(self, name: str, column: str, form: str = ".2f", **where: object) -> str:
        """One number and its interval, "1.49 [1.42, 1.52]"."""
        return format_interval(self.row(name, **where), column, form)

    def sentence(self, name: str) -> str:
        """A figure's sentence: the first paragraph of the note beside it."""
        return (self.folder / f"{name}.md").read_text(encoding="utf-8").split("\n\n")[0]

    def markdown(self, name: str, columns: dict[str, str], form: str = ".2f", **where: object) -> str:
        """Rows of a table in Markdown, with intervals where there are some.

        Args:
            columns: {column: its heading}.
        """
        table = self.rows(name, **where)
        lines = [" | ".join(columns.values()), " | ".join("---" for _ in columns)]
        lines += [" | ".join(_shown(row, column, form) for column in columns) for _, row in table.iterrows()]
        return "\n".join(f"| {line} |" for line in lines)


def _shown(row: pd.Series, column: str, form: str) -> str:
    if pd.isna(row[column]):
        return ""
    if isinstance(row[column], str):
        return row[column]
    has_interval = f"{column}_low" in row and not pd.isna(row[f"{column}_low"])
    return format_interval(row, column, form) if has_interval else format(row[column], form)


def setting(value: object) -> str:
    """A number that was chosen, not measured."""
    return str(value)


def cited(value: object) -> str:
    """A number that others report: what says so in a template."""
    return str(value)


def render(project: Path) -> dict[Path, str]:
    """Text of every document that has a template, by its path.

    Raises:
        InvalidInputError: a template asks for what no table has.
    """
    templates = project / "docs" / "templates"
    tables = Tables(project / "docs" / "results")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    calls = ("rows", "row", "value", "interval", "sentence", "markdown")
    environment.globals |= {name: getattr(tables, name) for name in calls}
    environment.globals |= {"setting": setting, "cited": cited, "format_interval": format_interval}
    environment.filters["form"] = format  # {{ 0.857 | form(".0%") }}
    documents = {}
    for path in sorted(templates.rglob("*.md")):
        name = path.relative_to(templates)
        try:
            documents[name] = environment.get_template(name.as_posix()).render()
        except (jinja2.TemplateError, EelibError, LookupError, NameError, ValueError) as error:
            raise InvalidInputError(f"docs/templates/{name}: {error}") from error
    return documents


def publish(project: Path) -> list[Path]:
    """Copy tables, and notes of figures, and write every document."""
    results = project / "docs" / "results"
    for source, pattern in ((project / "figures", "*/[0-9]*"), (project / "data" / "results", "*/*/*.csv")):
        for path in sorted(source.glob(pattern)):
            if path.suffix in (".csv", ".md"):
                with atomic_write(results / path.relative_to(source)) as copy:
                    shutil.copyfile(path, copy)
    with atomic_write(results / "runs.csv") as path:
        runs_of(project / "figures").to_csv(path, index=False)
    with atomic_write(results / SUMS) as path:
        path.write_text("".join(f"{digest}  {name}\n" for name, digest in _sums(results)), encoding="utf-8")
    documents = render(project)
    for name, text in documents.items():
        with atomic_write(project / name) as path:
            path.write_text(text, encoding="utf-8")
    return list(documents)


def runs_of(figures: Path) -> pd.DataFrame:
    """What a batch's notebooks took, by their last figures' records.

    Columns: model, notebook, minutes, peak_gib, machine, date, commit. A run that was killed counts from where it
    carried on.
    """
    rows = []
    for file in sorted(figures.glob(f"*/{FOLDER}/*.json")):
        record = read_json(file, digest=False)
        run, took = record.get("run") or {}, record.get("so_far")
        if took and run.get("config"):
            machine = f"{record['machine']['processor']}, {record['machine']['threads']} threads"
            notebook = Path(run["notebook"]).stem + run["parameters"].get("suffix", "")
            rows.append({
                "model": file.parts[-3], "notebook": notebook, "minutes": took["minutes"],
                "peak_gib": took.get("peak_gib"), "machine": machine, "date": record["made"][:10],
                "commit": record["commit"],
            })  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "notebook", "minutes", "peak_gib", "machine", "date", "commit"])
    return table.sort_values(["model", "notebook", "minutes"]).drop_duplicates(["model", "notebook"], keep="last")


def _sums(results: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(results.rglob("*")):
        if path.suffix in (".csv", ".md"):
            yield path.relative_to(results).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()


def check(project: Path) -> list[str]:
    """Differences from what was published, in tables and documents."""
    results = project / "docs" / "results"
    lines = (results / SUMS).read_text(encoding="utf-8").splitlines()
    published = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    found = dict(_sums(results))
    changed = sorted(name for name in published.keys() | found.keys() if published.get(name) != found.get(name))
    faults = [f"docs/results/{name}: not what was published" for name in changed]
    for name, text in render(project).items():
        written = (project / name).read_text(encoding="utf-8")
        difference = difflib.unified_diff(written.splitlines(), text.splitlines(), str(name), "template", "", "", 0, "")
        faults += ["\n".join(difference)] if written != text else []
    return faults


def main(arguments: list[str] | None = None) -> int:
    """Publish, or check what was published."""
    parser = argparse.ArgumentParser(prog="python -m workflow.publish", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something differs")
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            print("\n".join(f"wrote {name}" for name in publish(PROJECT)))
            return 0
        faults = check(PROJECT)
    except EelibError as error:
        faults = [str(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print("error: edit docs/templates, not the documents; then `make publish`", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
