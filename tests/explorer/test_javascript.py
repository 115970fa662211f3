"""The explorer's modules: node's own tests, and what can be checked without running them."""

import re

import pytest
from tiny import PROJECT

from eelib.explorer import page

FOLDER = PROJECT / "eelib" / "explorer"
SOURCES = [FOLDER / f"{name}.mjs" for name in page.MODULES]


def test_units(node):
    for path in sorted((PROJECT / "tests/explorer").glob("*.test.mjs")):
        said = node("--test", "--test-reporter=tap", path)
        assert re.search(r"^# pass [1-9]", said, re.MULTILINE) and "\n# fail 0" in said


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources_are_readable_and_cannot_inject(path):
    """Text of tokens reaches the page as text only: nothing here reads markup, and nothing fetches."""
    source = path.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|\bvar\b|[^=!]==[^=]", source
    )
    assert max(map(len, source.splitlines())) <= 120
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|\bfetch\(|XMLHttpRequest|WebSocket|</", source)


def test_every_module_is_in_the_page_and_its_names_do_not_clash(node, tmp_path):
    assert {path.name for path in SOURCES} == {path.name for path in FOLDER.glob("*.mjs")}
    bundle = page.module()
    assert "import " not in re.sub(r"//.*|/\*.*?\*/", "", bundle) and bundle.count("export ") == 1
    (tmp_path / "bundle.mjs").write_text(bundle, encoding="utf-8")
    node("--check", tmp_path / "bundle.mjs")


def test_modules_in_a_row_lose_their_imports_and_exports_only(monkeypatch):
    texts = {
        "a.mjs": 'export const A = 1;\nexport class B {}\nexport async function c() {}\nconst d = "export function";\n',
        "b.mjs": 'import { A,\n  B } from "./a.mjs";\nimport { c } from "./a.mjs";\nexport default { A };\n',
    }
    monkeypatch.setattr(page, "MODULES", ("a", "b"))
    monkeypatch.setattr(page, "_read", texts.__getitem__)
    expected = (
        'const A = 1;\nclass B {}\nasync function c() {}\nconst d = "export function";\n\nexport default { A };\n'
    )
    assert page.module() == expected
