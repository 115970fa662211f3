"""`python -m eelib.reporting FIGURES ...`: reports of models, by their figures."""

import argparse
import logging
import sys
from pathlib import Path

from eelib.errors import EelibError
from eelib.reporting.report import write_report


def main(arguments: list[str] | None = None) -> int:
    """Command line: write each model's report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m eelib.reporting",
        description="Write report.html, report.pdf, report.bib and tables/*.tex beside a model's figures.",
    )
    parser.add_argument("figures", nargs="+", type=Path, metavar="FIGURES", help="folder of a model's figures")
    parser.add_argument("--results", type=Path, help="folder of the model's results; by default data/results/MODEL")
    parser.add_argument("--output", type=Path, help="folder to write to; by default that of the figures")
    parser.add_argument("--no-pdf", action="store_true", help="leave the PDF out")
    given = parser.parse_args(arguments)
    if len(given.figures) > 1 and (given.results or given.output):
        parser.error("--results and --output are for one folder of figures")
    logging.basicConfig(format="%(message)s")
    try:
        for folder in given.figures:
            for path in write_report(folder, given.results, given.output, pdf=not given.no_pdf):
                print(path)
    except (EelibError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
