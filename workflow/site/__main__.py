"""Build the site, without a network, running no notebook."""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from workflow.site.check import problems
from workflow.site.pages import collect

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]


def main() -> int:
    """Build the site; return the exit status."""
    source, built = PROJECT / "build" / "site", PROJECT / "site"
    made = source / "html"  # beside it, myst-nb leaves the pictures of notebooks
    shutil.rmtree(source, ignore_errors=True)
    without_outputs = collect(PROJECT, source / "pages")
    options = ["-W", "-q", "-j", "auto", "-b", "html", "-d", str(source / "doctrees")]
    if sphinx([*options, "-c", str(HERE), str(source / "pages"), str(made)]):
        print("error: the site has warnings (above); each is a broken reference or markup to mend", file=sys.stderr)
        return 1
    shutil.rmtree(built, ignore_errors=True)
    made.rename(built)
    found = list(problems(built))
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if without_outputs:
        print(f"Without outputs, as no run of them lies in data/runs/: {', '.join(without_outputs)}")
    print(f"The site is built: open {built / 'index.html'} in a browser")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
