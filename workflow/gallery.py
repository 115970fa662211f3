"""The gallery: a folder of figures as one page.

`python -m workflow.gallery figures/MODEL ...` writes README.md into each folder, as the batch does at its end: each
figure with what it shows, where it comes from, and links to its notebook and numbers. With `--retell` the sentences are
first written anew from the CSV files.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from eelib.errors import EelibError, InvalidInputError
from eelib.workspace import atomic_write, expanded, read_note, renew_record, write_note

PROJECT = Path(__file__).resolve().parents[1]

SENTENCES = {
    "00_quickstart": ("settled_shares",),
    "01_training": ("training_curves",),
    "02_auroc": ("auroc_by_depth",),
    "02_densities": ("score_densities",),
    "02_risk_coverage": ("risk_coverage_curves",),
    "02_roc": ("roc_curves",),
    "03_calibration": ("promised_against_achieved",),
    "03_shift": ("shifted_agreement",),
    "03_violations": ("violations",),
    "04_accuracy": ("accuracy_against_cost", "blocks"),
    "04_anytime": ("anytime_quality",),
    "04_exits": ("exits_and_speed",),
    "04_speed": ("accuracy_against_cost", "speed_ratio"),
    "05_acceptance": ("acceptance_by_exit",),
    "05_curve": ("acceptance_curve",),
    "05_predicted": ("predicted_speed",),
    "05_speed": ("tuned_speed",),
    "06_cost": ("agreement_against_cost",),
    "06_tokens": ("agreement_against_tokens",),
    "07_attacks": ("speed_under_attack",),
    "07_monitor": ("alarms_over_time",),
    "08_cost": ("full_model_change",),
    "08_exits": ("exits_by_depth",),
    "09_baselines": ("baselines",),
    "09_pareto": ("speed_against_agreement",),
    "10_claims": ("popular_claims",),
    "11_claims": ("claims_by_size",),
    "11_sizes": ("agreement_and_speed",),
    "13_batches": ("speed_in_batches",),
}
"""For each figure of the notebooks the function of `eelib.reporting` that says what it shows, and its arguments."""


def sentence(table: str | Path) -> str:
    """What a figure shows, from its CSV.

    Raises:
        InvalidInputError: the file cannot be read, or no notebook makes a figure of that name.
    """
    import pandas as pd

    from eelib import reporting

    table = Path(table)
    name = table.stem.removesuffix("_full")
    if name not in SENTENCES:
        raise InvalidInputError(f"{table}: no figure of the notebooks; they make {', '.join(SENTENCES)}.")
    function, *arguments = SENTENCES[name]
    try:
        plotted = pd.read_csv(table)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{table} cannot be read: {error}") from error
    return getattr(reporting, function)(plotted, *arguments)


def retell(folder: str | Path) -> None:
    """Write a folder's sentences anew from its tables; provenance stays."""
    for note in _notes(folder):
        write_note(note, sentence(note.with_suffix(".csv")), read_note(note)[1])
        renew_record(note)


def assemble(folder: str | Path) -> Path:
    """Write a folder's README.md, a section a notebook; returns its path."""
    folder = expanded(folder)
    about = "What each figure shows is said by code, from its table; intervals are 95%."
    lines = [f"# {folder.name}", "", f"{about} (Written by `python -m workflow.gallery`.)", ""]
    for number, notes in groupby(_notes(folder), key=lambda note: note.name[:2]):
        notebook = next(iter(sorted((PROJECT / "notebooks").glob(f"{number}_*.ipynb"))), None)
        if notebook:
            link = Path(os.path.relpath(notebook, folder)).as_posix()
            lines += [f"## [{notebook.stem}]({link}): {_title(notebook)}", ""]
        for note in notes:
            said, provenance = read_note(note)
            name = note.stem
            lines += [f"![{name}]({name}.png)", "", said, ""]
            lines += [f"<sub>{name}: [CSV]({name}.csv) · [PDF]({name}.pdf) · {provenance}</sub>", ""]
    with atomic_write(folder / "README.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    return folder / "README.md"


def _notes(folder: str | Path) -> list[Path]:
    """Notes of figures, in order of name."""
    return sorted(note for note in expanded(folder).glob("*.md") if re.match(r"\d\d_", note.name))


def _title(notebook: Path) -> str:
    """A notebook's first heading."""
    import nbformat

    first = nbformat.read(notebook, as_version=4).cells[0].source
    return first.splitlines()[0].removeprefix("# ")


def main(arguments: Iterable[str] | None = None) -> int:
    """Assemble the galleries of folders; errors are one message."""
    parser = argparse.ArgumentParser(prog="python -m workflow.gallery", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="figures/MODEL")
    parser.add_argument("--retell", action="store_true", help="write the sentences anew from the tables")
    options = parser.parse_args(arguments)
    try:
        for folder in options.folders:
            if not folder.is_dir():
                raise InvalidInputError(f"{folder} is no folder: expected figures/MODEL, with the figures of a model.")
            if options.retell:
                retell(folder)
            print(assemble(folder))
    except EelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
