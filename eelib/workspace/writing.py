"""Writing of artefacts: whole or not at all."""

import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from secrets import token_hex

from eelib.errors import DiskFullError
from eelib.workspace.layout import expanded

_PART = ".eelib-"
"""How names of temporary files begin."""


@contextmanager
def atomic_write(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """Temporary path, renamed to `path` on success and deleted on failure.

    A killed or failed run thus leaves no partial file under the final name, and an earlier result survives. What killed
    processes left under temporary names is deleted by the next one that writes into the folder.

    Args:
        size: bytes that will be written, where that is known: then nothing is begun without room for them.

    Raises:
        DiskFullError: the disk is full; the message names the folder and what is missing.
    """
    path = expanded(path)
    temporary = _temporary(path.parent, path.suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path.parent, os.getpid())
        if size is not None and size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        if not is_full(error) or isinstance(error, DiskFullError):
            raise
        raise no_room(path, size, temporary) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """Temporary folder, whose files are moved to `folder` together on success.

    So a set of files is not half new where the disk is full or a later one fails.

    Raises:
        DiskFullError: the disk is full.
    """
    folder = expanded(folder)
    temporary = _temporary(folder)
    try:
        temporary.mkdir(parents=True)
        _clear_abandoned(folder, os.getpid())
        yield temporary
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
    except OSError as error:
        if not is_full(error) or isinstance(error, DiskFullError):
            raise
        raise no_room(temporary / "files") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(folder: Path, suffix: str = "") -> Path:
    return folder / f"{_PART}{_host()}-{os.getpid()}-{token_hex(4)}{suffix}"


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or quota is full."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(said in str(error) for said in ("No space left on device", "Disk quota exceeded"))


def no_room(path: Path, size: int | None = None, temporary: Path | None = None) -> DiskFullError:
    """The error of a full disk: folder, file, what is missing.

    Args:
        size: bytes that the file takes, where that is known.
        temporary: what was written of it so far.
    """
    folder = next(one for one in path.parents if one.is_dir() and not one.name.startswith(_PART))
    written = temporary.stat().st_size if temporary is not None and temporary.is_file() else 0
    free = shutil.disk_usage(folder).free + written
    lacks = f"it takes more than the {free:,} bytes that were free"
    if size is not None:
        lacks = f"it takes {size:,} bytes, {free:,} are free, {max(size - free, 1):,} are missing"
    return DiskFullError(
        f"No room in {folder} for {path.name}: {lacks}. What was there before is whole; make room and run this again."
    )


@cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@cache
def _clear_abandoned(folder: Path, process: int) -> None:
    """Delete temporary files of this machine's ended processes; once a process."""
    import psutil

    for left in folder.glob(f"{_PART}*"):
        owner = re.match(rf"{re.escape(_PART)}{_host()}-(\d+)-", left.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8, atomically.

    Raises:
        DiskFullError: the disk is full.
    """
    content = content.encode() if isinstance(content, str) else content
    with atomic_write(path, size=len(content)) as temporary:
        temporary.write_bytes(content)
