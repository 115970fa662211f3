"""Links between files of the repository, made to work on the site."""

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r'(\]\(|\b(?:src|href)=")([^()\s"]+)(?=[)\s"])')
FENCE = re.compile(r"(^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)$)", re.MULTILINE | re.DOTALL)

LANGUAGES = {
    ".py": "python", ".yaml": "yaml", ".yml": "yaml", ".cff": "yaml", ".toml": "toml", ".sh": "bash", ".md": "markdown",
    ".bib": "bibtex", ".tex": "latex", ".txt": "text",
    ".mjs": "javascript", "Makefile": "make", "LICENSE": "text", "Snakefile": "python",
}  # fmt: skip
"""Text files that a page may link to, by suffix or name, and how each is coloured."""


class Links:
    """Targets of links on the site, copied or rendered when first asked.

    project: the repository.
    target: the folder of the collected pages.
    pages: files of the repository that are pages, and where on the site; both relative, in POSIX form.
    """

    def __init__(self, project: Path, target: Path, pages: dict[str, str]):
        self.project, self.target, self.pages = project, target, pages
        self._placed: set[str] = set()

    def rewrite(self, text: str, page: str) -> str:
        """Markdown of `page` with links for the site."""

        def replace(match: re.Match) -> str:
            return match[1] + self.resolve(match[2], posixpath.dirname(page))

        parts = FENCE.split(text)  # text, fenced block, its fence, text, ...
        return "".join(
            LINK.sub(replace, part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2
        )  # fmt: skip

    def resolve(self, link: str, folder: str) -> str:
        """A link found in `folder`, as one from the site's root."""
        path, hash_, fragment = link.partition("#")
        if not path or re.match(r"[a-z]+:|/", path):
            return link
        path = posixpath.normpath(posixpath.join(folder, unquote(path)))
        if path.startswith("..") or not (self.project / path).exists():
            return link  # the build names it, and fails
        return f"/{self._place(path)}{hash_}{fragment}"

    def _place(self, path: str) -> str:
        """Place of a file or folder on the site."""
        file = self.project / path
        for known in (path, posixpath.join(path, "README.md")):
            if known in self.pages:
                return self.pages[known]
        language = LANGUAGES.get(file.suffix or file.name)
        if file.is_dir():
            place, make = posixpath.join("source", path, "index.md"), lambda: self._listing(path)
        elif language:
            place, make = f"source/{path}.md", lambda: _source(path, file, language)
        else:
            place, make = path, None
        if place not in self._placed:
            self._placed.add(place)
            (self.target / place).parent.mkdir(parents=True, exist_ok=True)
            if make is None:
                (self.target / place).write_bytes(file.read_bytes())
            else:
                (self.target / place).write_text(make(), encoding="utf-8")
        return place

    def _listing(self, path: str) -> str:
        entries = sorted(
            entry.name for entry in (self.project / path).iterdir() if not entry.name.startswith(("_", "."))
        )
        lines = [f"- [{name}]({self.resolve(name, path)})" for name in entries]
        return "\n".join(["---", "orphan: true", "---", f"# {path}/", "", *lines, ""])


def _source(path: str, file: Path, language: str) -> str:
    code = file.read_text(encoding="utf-8").rstrip()
    fence = "`" * max(4, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"---\norphan: true\n---\n# {path}\n\n{fence}{{code-block}} {language}\n{code}\n{fence}\n"
