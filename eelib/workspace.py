"""Artefact layout: where corpora, heads, traces, results and figures are stored."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eelib.errors import InvalidInputError


def home() -> Path:
    """Default root for artefacts: `EELIB_HOME` if set, else the working folder."""
    return expanded(os.environ.get("EELIB_HOME") or ".")


def expanded(path: str | Path) -> Path:
    """Absolute path, with `~` and `$VARIABLES` expanded as in a shell."""
    return Path(os.path.expandvars(path)).expanduser().absolute()


@dataclass(frozen=True)
class Workspace:
    """Folders of one model's artefacts; nothing is created until something is saved.

    Attributes:
        model: short name of the model, used as folder name ("smollm2-135m").
        root: folder that holds data/ and figures/; None for `home()`. `~` and `$VARIABLES` are expanded.

    Example:
        >>> Workspace("smollm2-135m", "/project").heads.as_posix()
        '/project/data/heads/smollm2-135m'
    """

    model: str
    root: str | Path | None = None

    def __post_init__(self):
        object.__setattr__(self, "root", home() if self.root is None else expanded(self.root))

    def _data(self, kind: str) -> Path:
        return self.root / "data" / kind / self.model

    @property
    def corpus(self) -> Path:
        return self._data("corpora")

    @property
    def heads(self) -> Path:
        return self._data("heads")

    @property
    def fused(self) -> Path:
        """Heads of kind `fused`, stored beside the others."""
        return self._data("fused")

    @property
    def checkpoints(self) -> Path:
        """Unfinished work to resume from. Never a declared output: Snakemake deletes those."""
        return self._data("checkpoints")

    @property
    def traces(self) -> Path:
        return self._data("traces")

    @property
    def results(self) -> Path:
        return self._data("results")

    @property
    def runs(self) -> Path:
        return self._data("runs")

    @property
    def figures(self) -> Path:
        return self.root / "figures" / self.model


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Temporary path, renamed to `path` on success and deleted on failure.

    A killed or failed run thus leaves no partial file under the final name, and an earlier result survives.
    """
    path = expanded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_note(path: str | Path, sentence: str, provenance: str) -> None:
    """Writes what a result shows and where it comes from, in Markdown."""
    with atomic_write(path) as temporary:
        temporary.write_text(f"{sentence}\n\n<sub>{provenance}</sub>\n", encoding="utf-8")


def read_note(path: str | Path) -> tuple[str, str]:
    """Sentence and provenance of a note that `write_note` wrote.

    Raises:
        InvalidInputError: the file is missing or no such note.
    """
    try:
        sentence, _, last = Path(path).read_text(encoding="utf-8").strip().rpartition("\n\n")
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    if not (sentence and last.startswith("<sub>") and last.endswith("</sub>")):
        raise InvalidInputError(f"{path} is no note: expected a sentence, and a last paragraph in <sub></sub>.")
    return sentence, last.removeprefix("<sub>").removesuffix("</sub>")
