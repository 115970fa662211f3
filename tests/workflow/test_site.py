"""The docs site, as far as it is made without its generator: what is collected, linked, and checked."""

import importlib
import inspect
import json

import pytest

from workflow.site import api
from workflow.site.check import problems
from workflow.site.links import Links
from workflow.site.pages import collect

PAGES = api.api_pages()


@pytest.mark.parametrize("owner", ["eelib", *(f"eelib.{room}" for room in api.rooms())])
def test_every_public_name_is_explained_and_has_an_entry(owner):
    room, homes = importlib.import_module(owner), api.at_home()
    page = PAGES[f"api/{owner.removeprefix('eelib.')}.rst" if owner != "eelib" else "api/index.rst"].splitlines()
    for name in api.public_names(room):
        described = homes.get(name, f"{owner}.{name}") if owner == "eelib" else f"{owner}.{name}"
        assert api.docstring(*described.rsplit(".", 1)).strip(), f"{owner}.{name} has no docstring"
        entries = {f".. {kind}:: {owner}.{name}" for kind in ("autoclass", "autofunction", "automodule")}
        entries |= {f".. py:data:: {name}"}
        if owner == "eelib":
            link = f":doc:`eelib.{name} <{name}>`" if name in api.rooms() else f":py:obj:`eelib.{name} <"
            assert any(link in line for line in page), name
        else:
            assert entries & set(page), f"{owner}.{name} has no entry"


def test_names_at_the_front_door_lead_to_the_same_thing_in_a_room():
    for name, home in api.at_home().items():
        owner, _, there = home.rpartition(".")
        assert getattr(importlib.import_module(owner), there) is getattr(importlib.import_module("eelib"), name)


def test_docstrings_are_markdown():
    made = api.as_markdown(
        inspect.cleandoc("""Add.

        Args:
            first, second: what to add, and
                a hanging line.

        Example:
            >>> add(1, 2)
            3
        """)
    )
    assert "**Args**\n\n\n- `first`, `second`: what to add, and\n  a hanging line.\n" in made
    assert "```pycon\n>>> add(1, 2)\n3\n```" in made


def test_fields_become_a_list_and_prose_does_not():
    made = api.as_markdown("What it is:\nmore.\n\nwidth: of it.\n    Or None.\ndepth: of it.\n\nIn words: no field.")
    assert made.splitlines()[:2] == ["What it is:", "more."]
    assert "- `width`: of it.\n  Or None.\n- `depth`: of it.\n" in made and made.endswith("\nIn words: no field.")


@pytest.fixture
def project(tmp_path):
    files = {
        "README.md": "# Home\n\n"
        "[a](docs/a.md#part) [n](notebooks/01_x.ipynb) [c](docs/r.csv) [m](eelib/m.py) [d](docs)\n",
        "docs/a.md": "# A\n\n## Part\n\n[home](../README.md) [none](none.md) [w](https://example.org) ![f](f.png)\n",
        "docs/r.csv": "a,b\n",
        "docs/f.png": "",
        "eelib/m.py": "x = '```'\n",
        "notebooks/README.md": "# Notebooks\n",
        "notebooks/01_x.ipynb": json.dumps({"cells": [_markdown("# X\n"), _code([])], "metadata": {}}),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def _markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(outputs: list) -> dict:
    return {"cell_type": "code", "metadata": {}, "source": "1", "outputs": outputs, "execution_count": None}


def _cells(target) -> list[dict]:
    return json.loads((target / "notebooks" / "01_x.ipynb").read_text(encoding="utf-8"))["cells"]


def test_links_lead_to_pages_files_and_rendered_sources(project):
    target = project / "build"
    assert collect(project, target) == ["01_x"]
    home = (target / "index.md").read_text(encoding="utf-8")
    assert "[a](/docs/a.md#part) [n](/notebooks/01_x.ipynb) [c](/docs/r.csv) [m](/source/eelib/m.py.md)" in home
    assert "[d](/source/docs/index.md)" in home and "/docs/a\n" in home
    page = (target / "docs" / "a.md").read_text(encoding="utf-8")
    assert "[home](/index.md) [none](none.md) [w](https://example.org) ![f](/docs/f.png)" in page
    source = (target / "source" / "eelib" / "m.py.md").read_text(encoding="utf-8")
    assert source.endswith("````{code-block} python\nx = '```'\n````\n")
    assert (target / "docs" / "r.csv").is_file() and (target / "docs" / "f.png").is_file()


def test_code_is_left_as_it_is(project):
    code = "```md\n[a](docs/a.md)\n```\n"
    made = Links(project, project / "build", {"docs/a.md": "docs/a.md"}).rewrite(
        code + "[a](docs/a.md)\n" + code, "README.md"
    )
    assert made == f"{code}[a](/docs/a.md)\n{code}"


def test_a_notebook_has_the_outputs_of_its_run_and_no_progress_bars(project):
    assert collect(project, project / "bare") == ["01_x"]
    assert "shown without outputs" in _cells(project / "bare")[0]["source"]
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": "\r100%|###|"},
        {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}, "metadata": {}},
        {"output_type": "stream", "name": "stdout", "text": "seen"},
    ]
    metadata = {"papermill": {"start_time": "2026-01-02T03:04:05+00:00"}, "widgets": {}}
    for name in ("m/01_x", "m/01_x.failed", "n/01_x"):
        run = project / "data" / "runs" / f"{name}.ipynb"
        run.parent.mkdir(parents=True, exist_ok=True)
        run.write_text(
            json.dumps({"cells": [_markdown("# X\n"), _code(outputs)], "metadata": metadata}), encoding="utf-8"
        )
    assert collect(project, project / "build") == []
    title, code = _cells(project / "build")
    assert title["source"] == "# X\n\n*Outputs: m, 2026-01-02. Other runs: [n](/notebooks/runs/n/01_x.ipynb).*\n"
    assert code["outputs"] == outputs[2:]


def test_broken_links_and_requests_to_servers_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top-of-a">A</h1><a href="b.html#there">b</a>', encoding="utf-8")
    (tmp_path / "b.html").write_text('<p id="there"><a href="https://example.org">out</a></p>', encoding="utf-8")
    assert list(problems(tmp_path)) == []
    page = '<a href="none.html"></a><a href="a.html#none"></a><script src="//cdn.example/x.js"></script>'
    (tmp_path / "c.html").write_text(page, encoding="utf-8")
    (tmp_path / "c.css").write_text("@import url('https://fonts.example/x');", encoding="utf-8")
    found = list(problems(tmp_path))
    assert len(found) == 4 and all(line.startswith("c.") for line in found)
