"""Pages of the site: prose, notebooks, galleries and the API."""

import json
import posixpath
from datetime import datetime
from pathlib import Path

from eelib.packaged import MODEL
from workflow.site.api import api_pages
from workflow.site.links import Links

PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")
WIDGET = "application/vnd.jupyter.widget-view+json"


def collect(project: Path, target: Path) -> list[str]:
    """Write the sources of all pages; return notebooks without a run."""
    docs, galleries = _found(project, "docs/*.md"), _found(project, "figures/*/README.md")
    notebooks, others = _found(project, "notebooks/*.ipynb"), _found(project, *PROJECT_PAGES)
    prose = ["README.md", "notebooks/README.md", *docs, *galleries, *others]
    pages = {page: page for page in [*prose, *notebooks]} | {"README.md": "index.md"}
    links = Links(project, target, pages)
    texts = {pages[page]: links.rewrite((project / page).read_text(encoding="utf-8"), page) for page in prose}
    without_outputs = []
    for notebook in notebooks:
        executed = _runs(project, notebook)
        texts |= _notebook_pages(project, notebook, executed, links)
        if not executed:
            without_outputs.append(Path(notebook).stem)
    texts |= (api := api_pages())
    texts["index.md"] += "".join(
        _contents(caption, [pages.get(page, page) for page in listed])
        for caption, listed in {
            "Documentation": docs,
            "Notebooks": ["notebooks/README.md", *notebooks],
            "Gallery": galleries,
            "API": list(api),
            "Project": others,
        }.items()
        if listed
    )
    for place, text in texts.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text(text, encoding="utf-8")
    return without_outputs


def _found(project: Path, *patterns: str) -> list[str]:
    return [path.relative_to(project).as_posix() for pattern in patterns for path in sorted(project.glob(pattern))]


def _contents(caption: str, pages: list[str]) -> str:
    entries = "\n".join("/" + posixpath.splitext(page)[0] for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def _runs(project: Path, notebook: str) -> dict[str, Path]:
    """Executed notebooks by model, the default one first."""
    stem, runs = Path(notebook).stem, {}
    for path in sorted((project / "data" / "runs").glob(f"*/{stem}*.ipynb"), key=lambda p: (p.parent.name != MODEL, p)):
        if "." not in path.stem:  # neither one that failed nor one that still runs
            runs[path.parent.name + path.stem.removeprefix(stem).replace("_", ", ")] = path
    return runs


def _notebook_pages(project: Path, notebook: str, runs: dict[str, Path], links: Links) -> dict[str, str]:
    """Pages of a notebook: its first run, and the others."""
    places = {
        run: notebook if i == 0 else f"notebooks/runs/{path.parent.name}/{path.name}"
        for i, (run, path) in enumerate(runs.items())
    }
    if not runs:
        note = "No run of this notebook was found when the site was built, so the code is shown without outputs."
        return {notebook: _page(_read(project / notebook), note, notebook, links)}
    pages = {}
    for run, path in runs.items():
        cells = _read(path)
        more = ", ".join(f"[{other}](/{place})" for other, place in places.items() if other != run)
        note = f"Outputs: {run}, {_date(cells)}." + (f" Other runs: {more}." if more else "")
        cells["metadata"]["orphan"] = places[run] != notebook
        pages[places[run]] = _page(cells, note, notebook, links)
    return pages


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _date(cells: dict) -> str:
    began = cells["metadata"].get("papermill", {}).get("start_time")
    return f"{datetime.fromisoformat(began):%Y-%m-%d}" if began else "without a date"


def _page(cells: dict, note: str, notebook: str, links: Links) -> str:
    """Page of a notebook: working links, a note, no progress bars."""
    cells["metadata"].pop("widgets", None)  # they would be drawn by a script from a server
    for cell in cells["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = links.rewrite("".join(cell["source"]), notebook)
        cell["outputs"] = [output for output in cell.get("outputs", []) if _shown(output)]
        if cell["cell_type"] != "code":
            del cell["outputs"]
    title, _, rest = "".join(cells["cells"][0]["source"]).partition("\n")
    cells["cells"][0]["source"] = f"{title}\n\n*{note}*\n{rest}"
    return json.dumps(cells)


def _shown(output: dict) -> bool:
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})
