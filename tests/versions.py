"""The oldest and the newest transformers that pyproject.toml allows, each by a part of the suite: `make test-versions`.

Each is installed in a folder of its own under data/versions, with what it needs in another version than is here; all
else is shared with this environment.
"""

import os
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1]
VERSIONS = ("5.13.0", "5.24.0")
PARTS = [
    "tests/backbone/test_segments.py", "tests/backbone/test_lengths.py", "tests/decoding/test_engine.py",
    "tests/decoding/test_options.py", "tests/decoding/test_branches.py", "tests/decoding/test_changed_models.py",
    "tests/decoding/test_bitwise.py",
]  # fmt: skip
"""What touches transformers' inner workings: caches, masks, positions, generation."""


def install(of: str) -> Path:
    """The folder that holds this version of transformers, and what else it needs."""
    folder = PROJECT / "data" / "versions" / of
    done = folder / ".done"
    if not done.is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        subprocess.run([*pip, f"transformers=={of}"], check=True)
        (found,) = [d for d in Distribution.discover(path=[str(folder)]) if d.name == "transformers"]
        needed = [Requirement(line) for line in found.requires or []]
        others = [str(r) for r in needed if r.marker is None and not _is_here(r)]
        if others:
            subprocess.run([*pip, *others], check=True)
        done.touch()
    return folder


def _is_here(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def main() -> int:
    failed = []
    for of in VERSIONS:
        environment = os.environ | {"PYTHONPATH": str(install(of))}
        print(f"transformers {of}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "--durations=0", "-p", "no:cacheprovider", *PARTS]
        if subprocess.run(command, cwd=PROJECT, env=environment).returncode:
            failed.append(of)
    if failed:
        print(f"error: the suite fails with transformers {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
