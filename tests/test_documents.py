"""Documents lead where they say, and README stays short."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from tiny import PROJECT

PLACES = ("*.md", "docs/*.md", "notebooks/*.md", "data/*.md", "config/*.md", "figures/*/*.md")
DOCUMENTS = sorted(path for place in PLACES for path in PROJECT.glob(place))
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """What code hosts let links to headings end in: "## Packed: `x.y`" is "#packed-xy"."""
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(next(name for name in (slug, *(f"{slug}-{again}" for again in range(1, 99))) if name not in found))
    return found


def broken_links(path: Path) -> list[str]:
    """Relative links and images of a Markdown file that lead nowhere."""
    broken = []
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = path.parent / name if name else path
        reached = target.exists()
        if reached and anchor:
            reached = target.suffix == ".md" and anchor in anchors(target.read_text(encoding="utf-8"))
        if not reached:
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_relative_links_resolve(path):
    assert broken_links(path) == []


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "other.md").write_text("# A `b.c`, d\n\n```\n# no heading\n```\n", encoding="utf-8")
    links = "[a](other.md) [a](other.md#a-bc-d) [a](https://x) `[a](no)` ![](no.png) [a](other.md#no-heading) [a](#b)"
    (tmp_path / "one.md").write_text(links, encoding="utf-8")
    assert broken_links(tmp_path / "one.md") == ["no.png", "other.md#no-heading", "#b"]


def test_readme_is_short_and_shows_usage_first():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1200
    usage = text[: text.index("```\n", text.index("```python\n") + 1)]
    assert len(usage.splitlines()) <= 40, "the usage block is read without scrolling"
