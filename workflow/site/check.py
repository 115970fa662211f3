"""Checks of the built site: no request, no broken link."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script", "img", "iframe", "source", "video", "audio", "embed", "object"}
"""Elements of which a browser loads what they name; a `link` it loads where its `rel` is one of these:"""
LOADED_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "prefetch", "dns-prefetch", "modulepreload"}


class Page(HTMLParser):
    """Links of one page.

    Attributes:
        links: what it leads to.
        loads: what a browser asks for by itself.
        places: its anchors.
    """

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.places = set(), set(), {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        addresses = {given[name] for name in ("href", "src", "data") if name in given}
        by_itself = tag in LOADED or (tag == "link" and LOADED_RELATIONS & set(given.get("rel", "").split()))
        (self.loads if by_itself else self.links).update(addresses)


def problems(site: Path) -> Iterator[str]:
    """Broken links and requests to servers in a folder, one line each."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        for address in sorted(page.links | page.loads):
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if address in page.loads:
                    yield f"{file.relative_to(site)} loads {address}"
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not there.is_file():
                yield f"{file.relative_to(site)} links to {address}, which is not there"
            elif there in pages and unquote(parts.fragment) not in pages[there].places:
                yield f"{file.relative_to(site)} links to {address}, a page without that place"
    for file in sorted(site.rglob("*.css")):
        for match in re.finditer(
            r"(?:@import\s*|url\(\s*)[\"']?((?:https?:)?//[^\"')]*)", file.read_text(encoding="utf-8")
        ):
            yield f"{file.relative_to(site)} loads {match[1]}"
