"""Artefact layout: where corpora, heads, traces, results and figures are stored."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from eelib.errors import InvalidInputError

_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")
_LONGEST = 80  # characters of a name that an error repeats


def home() -> Path:
    """Default root for artefacts: `EELIB_HOME` if set, else the working folder."""
    return expanded(os.environ.get("EELIB_HOME") or ".")


def expanded(path: str | Path) -> Path:
    """Absolute path, with `~` and `$VARIABLES` expanded as in a shell.

    Raises:
        InvalidInputError: no file can have that name: it is too long, such as a text in place of a file's name, holds a
            null byte, or begins with the `~` of an unknown user.
    """
    try:
        found = Path(os.path.expandvars(path)).expanduser().absolute()
        found.lstat()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return found  # it is missing, or not to be seen: whoever opens it says so
        given = repr(str(path))
        given = given if len(given) <= _LONGEST else f"{given[:_LONGEST]}..."
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"{given} is no name that a file can have ({reason}): expected a path.") from error
    return found


@dataclass(frozen=True)
class Workspace:
    """Folders of one model's artefacts; nothing is created until something is saved.

    Attributes:
        model: short name of the model, used as folder name ("smollm2-135m"): one name, no path.
        root: folder that holds data/ and figures/; None for `home()`. `~` and `$VARIABLES` are expanded.

    Raises:
        InvalidInputError: the name of the model would lead out of the workspace, or is no name of a folder.

    Example:
        >>> Workspace("smollm2-135m", "/project").heads.as_posix()
        '/project/data/heads/smollm2-135m'
    """

    model: str
    root: str | Path | None = None

    def __post_init__(self):
        if not isinstance(self.model, str) or self.model in ("", ".", "..") or _NO_NAME.search(self.model):
            raise InvalidInputError(
                f"model={self.model!r}: expected the name of a folder, such as smollm2-135m, without slashes, line "
                "ends or control characters. For another place, pass `root`."
            )
        object.__setattr__(self, "root", home() if self.root is None else expanded(self.root))
        expanded(self.root / self.model)  # refuses a name that is too long

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
