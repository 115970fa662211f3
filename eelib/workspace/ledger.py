"""Provenance: what an artefact was made from, when, where and by what.

A process notes each file that it reads as an input. What it writes gets a record beside it, in the folder `provenance`:
digests of the files and of all inputs so far, the run with its parameters, what it took so far (minutes, peak memory),
commit, machine and versions. So the chain from a figure back to the model needs no cooperation from who computes in
between. It may name an input that a figure does not depend on, where one process made several things; it leaves none
out.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import distributions
from pathlib import Path

from eelib.workspace.layout import expanded
from eelib.workspace.writing import staged, write_whole

FOLDER = "provenance"
RUN = "EELIB_RUN"
"""Environment variable in which whoever starts a run says what it is, as JSON."""
COMMIT = "commit "
"""How the digest begins of what the Hub keeps: its own, of all files."""
_MOST_INPUTS = 200
_inputs: dict[Path, str | None] = {}
_forgotten = 0
_turn = threading.Lock()


def note_input(path: str | Path, digest: str | None = None) -> None:
    """Note that this process has read a file.

    Args:
        digest: its SHA-256; None computes it when something is recorded.
    """
    global _forgotten
    path = expanded(path)
    with _turn:
        _inputs.pop(path, None)
        _inputs[path] = digest
        if len(_inputs) > _MOST_INPUTS:
            del _inputs[next(iter(_inputs))]
            _forgotten += 1


@contextmanager
def recorded(folder: str | Path) -> Iterator[Path]:
    """Temporary folder, whose files are moved to `folder` together, with a record.

    Raises:
        DiskFullError: the disk is full.
    """
    folder = expanded(folder)
    with staged(folder) as temporary:
        yield temporary
        digests = _record(sorted(temporary.iterdir()), folder)
    for name, digest in digests.items():  # what is made next may come from these
        note_input(folder / name, digest)


def _record(files: list[Path], folder: Path) -> dict[str, str | None]:
    """Write beside new files what they come from; returns their digests."""
    digests = {file.name: _digest(file) for file in files}
    with _turn:
        noted = [(path, digest) for path, digest in _inputs.items() if path.parent.exists()]  # others were temporary
    inputs = {
        path: digest or _digest(path) for path, digest in noted if path.parent != folder or path.name not in digests
    }
    content = {
        "files": digests,
        "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "inputs": {Path(os.path.relpath(path, folder)).as_posix(): digest for path, digest in inputs.items() if digest},
        **({"inputs_forgotten": _forgotten} if _forgotten else {}),
        **_circumstances(),
    }
    write_whole(_record_of(files[0]), json.dumps(content, indent=1) + "\n")
    return digests


def check_recorded(path: Path, found: str) -> str | None:
    """The recorded digest of a file, if it is another than `found`."""
    known = (_find(path) or {}).get("files", {}).get(path.name)
    return known if known != found else None


def renew_record(file: str | Path) -> None:
    """Record a file as it is now, from the same inputs.

    Without a record of its own nothing happens.
    """
    file = expanded(file)
    own = _record_of(file)
    if record := _record_that_names(file, own):
        record["files"][file.name] = _digest(file)
        write_whole(own, json.dumps(record, indent=1) + "\n")


def _record_of(file: Path) -> Path:
    return file.parent / FOLDER / f"{file.stem}.json"


def _circumstances() -> dict[str, object]:
    """Run, commit, machine and versions of this process."""
    from eelib.timing import commit, machine

    try:
        run = json.loads(os.environ.get(RUN, "null"))
    except ValueError:
        run = None
    if run is None and os.environ.get("JPY_SESSION_NAME"):
        run = {"notebook": os.environ["JPY_SESSION_NAME"]}
    return {
        "run": run, "so_far": _so_far(), "commit": commit(), "uncommitted_changes": _changed(), "machine": machine(),
        "environment": environment_digest(),
    }  # fmt: skip


def _so_far() -> dict[str, float]:
    """What this process took until now.

    minutes; peak_gib (of memory), where the system tells.
    """
    import psutil

    peak, minutes = peak_resident(), (time.time() - psutil.Process().create_time()) / 60
    return {"minutes": round(minutes, 2), **({"peak_gib": round(peak / 2**30, 2)} if peak else {})}


def peak_resident(children: bool = False) -> int | None:
    """Peak memory of this process [bytes].

    Or of the largest of its ended children; None where the system does not tell.
    """
    try:
        import resource  # not on every system
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) or None


@cache
def _changed() -> bool | None:
    """Whether the working folder differs from its commit; None without one."""
    from eelib.timing import commit

    if not commit():
        return None
    done = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=60)
    return bool(done.stdout.strip())


def environment() -> dict[str, str]:
    """Versions of all installed packages, by name."""
    read = (one.metadata for one in distributions())  # each access reads the file anew
    found = {one["Name"].lower(): one["Version"] for one in read if one.get("Name")}
    return dict(sorted(found.items()))


@cache
def environment_digest() -> str:
    """SHA-256 over all installed packages and their versions."""
    lines = (f"{name}=={version}\n" for name, version in environment().items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str | None:
    try:
        found = path.stat()
        return _digest_of(path, found.st_size, found.st_mtime_ns, found.st_ino) if path.is_file() else None
    except (OSError, ValueError):  # also a name that no file can have
        return None


@lru_cache(maxsize=1024)
def _digest_of(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Provenance:
    """A file and what it was made from, printed as a tree.

    Attributes:
        path: the file.
        state: `recorded` (as it was when it was made), `changed` since, `missing`, or `source`, for which nothing is
            recorded.
        sha256: of the file as it is; None where it is missing.
        record: what was recorded when it was made; empty for a source.
        inputs: what it was made from.
    """

    path: Path
    state: str
    sha256: str | None
    record: dict
    inputs: tuple["Provenance", ...]

    def files(self) -> dict[Path, "Provenance"]:
        """Every file of the chain, once."""
        found = {self.path: self}
        for one in self.inputs:
            found = one.files() | found
        return found

    def __str__(self) -> str:
        return "\n".join(self._lines(self.path.parent, "", set()))

    __repr__ = __str__

    def _lines(self, start: Path, indent: str, seen: set[Path]) -> list[str]:
        name = Path(os.path.relpath(self.path, start)).as_posix()
        lines = [f"{indent}{name} · {(self.sha256 or '-')[:12]} · {self.state}"]
        if self.path in seen:
            return [f"{lines[0]} (see above)"] if self.inputs else lines
        seen.add(self.path)
        if self.record:
            lines.append(f"{indent}  made {told(self.record)}")
        for one in self.inputs:
            lines += one._lines(start, f"{indent}    ", seen)
        return lines


def told(record: dict) -> str:
    """A record in one line: when, by what, on what."""
    run, machine = (record.get(name) if isinstance(record.get(name), dict) else {} for name in ("run", "machine"))
    given = run.get("parameters") if isinstance(run.get("parameters"), dict) else {}
    parts = [str(record.get("made")), f"by {run['notebook']}" if "notebook" in run else ""]
    parts += [f"{name} {given[name]}" for name in ("model", "dtype", "seed") if name in given]
    changed = " with changes" if record.get("uncommitted_changes") else ""
    parts += [f"commit {record['commit']}{changed}" if record.get("commit") else ""]
    parts += [str(machine["processor"])] if "processor" in machine else []
    parts += [f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "eelib") if name in machine]
    return " · ".join(filter(None, parts))


def provenance(path: str | Path) -> Provenance:
    """The chain from a figure back to the model's files.

    Each file is compared with the digest that was recorded when it was read or made.

    Example:
        >>> heads.save_pretrained(folder / "heads")
        >>> chain = eelib.workspace.provenance(folder / "heads" / "model.safetensors")
        >>> chain.state
        'recorded'
    """
    return _chain(expanded(path), None, (), {})


def _chain(path: Path, expected: str | None, above: tuple[Path, ...], known: dict) -> Provenance:
    if (path, expected) in known:
        return known[path, expected]
    if expected is not None and expected.startswith(COMMIT):
        return Provenance(path, "source", expected, {}, ())
    found, record = _digest(path), _find(path) or {}
    expected = expected or record.get("files", {}).get(path.name)
    state = "missing" if found is None else "source" if not record and expected in (None, found) else "recorded"
    if found is not None and expected not in (None, found):
        state = "changed"
    inputs = {} if path in above else record.get("inputs", {})
    places = ((Path(os.path.normpath(path.parent / name)), digest) for name, digest in inputs.items())
    parts = tuple(_chain(place, digest, (*above, path), known) for place, digest in places)
    known[path, expected] = Provenance(path, state, found, record, parts)
    return known[path, expected]


def _find(path: Path) -> dict | None:
    """The readable record that names a file, if any."""
    try:
        others = sorted((path.parent / FOLDER).glob("*.json"))
    except OSError:
        return None
    places = dict.fromkeys([_record_of(path), *others])
    return next(filter(None, (_record_that_names(path, place) for place in places)), None)


def _record_that_names(path: Path, place: Path) -> dict | None:
    """A record, if it can be read and names a file."""
    try:
        content = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(content, dict) and _is_map(content.get("files")) and _is_map(content.get("inputs"))
    return content if whole and path.name in content["files"] else None


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
