"""Supply chain: what is installed, locked, and known to be vulnerable.

`python -m workflow.supply sbom` prints the environment as a CycloneDX bill of materials, which the batch also writes
beside each executed notebook; `lock` writes requirements.lock anew from constraints.txt, with the digests of all files
that the configured package index offers; `audit` asks for known vulnerabilities of what is locked.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from eelib.errors import EelibError, FetchError, MissingExtraError
from eelib.workspace import write_whole

PROJECT = Path(__file__).resolve().parents[1]
LOCK = PROJECT / "requirements.lock"
HEADER = """\
# Every package of constraints.txt with the SHA-256 of each of its files: an index that serves anything else is refused.
#   python -m pip install --require-hashes --no-deps -r requirements.lock
# torch is the build for CPUs. A pylock.toml would have to say where each file lies (its entries need an address or a
# path); this lock holds for any index and any folder of wheels. Written by `python -m workflow.supply lock`.
"""
AUDITED = 600
"""Seconds after which a service that does not answer is given up."""


def sbom() -> str:
    """All installed packages as a CycloneDX 1.6 bill of materials, in JSON."""
    read = (one.metadata for one in distributions())  # each access reads the file anew
    found = {normal(one["Name"]): one for one in read if one.get("Name")}
    refs = {name: f"pkg:pypi/{name}@{quote(one['Version'], safe='')}" for name, one in sorted(found.items())}
    components, dependencies = [], []
    for name, ref in refs.items():
        metadata, licence = found[name], None
        if metadata.get("License-Expression"):
            licence = {"expression": metadata["License-Expression"]}
        elif metadata.get("License") and len(metadata["License"]) < 100:
            licence = {"license": {"name": metadata["License"]}}
        component = {"type": "library", "bom-ref": ref, "name": name, "version": metadata["Version"], "purl": ref}
        components.append(component | ({"licenses": [licence]} if licence else {}))
        required = (line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line)
        needed = {normal(re.match(r"[\w.-]+", line)[0]) for line in required}
        dependencies.append({"ref": ref, "dependsOn": sorted(refs[other] for other in needed & refs.keys())})
    about = {"type": "application", "bom-ref": "workbench", "name": "eelib", "version": version("eelib")}
    content = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": about},
        "components": components, "dependencies": dependencies,
    }  # fmt: skip
    return json.dumps(content, indent=1) + "\n"


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Version and digests of each package of a lock."""
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in text.replace("\\\n", " ").splitlines():
        if entry.strip() and not entry.lstrip().startswith("#"):
            requirement, *options = entry.split()
            name, _, of = requirement.partition("==")
            found[normal(name)] = of, [option.removeprefix("--hash=sha256:") for option in options]
    return found


def lock() -> None:
    """Write requirements.lock from constraints.txt.

    Raises:
        MissingExtraError: uv is not installed.
        FetchError: a package is not on the configured index.
    """
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "uv", "pip", "compile", "--no-deps", "--generate-hashes", "--no-header"]
        command += ["--no-annotate", "--python", sys.executable, str(PROJECT / "constraints.txt")]
        done = subprocess.run([*command, "--output-file", f"{folder}/lock"], capture_output=True, text=True)
        if "No module named uv" in done.stderr:
            raise MissingExtraError("A lock is written by uv: pip install uv.")
        if done.returncode:
            raise FetchError(f"The lock cannot be written: {done.stderr.strip()[-600:]}")
        entries = (Path(folder) / "lock").read_text(encoding="utf-8")
        cpu = _digests_of_torch(Path(folder))
    lines = [line for line in entries.splitlines() if not line.startswith(("#", "--index", "--extra-index", "--find"))]
    text = re.sub(r"^torch==(?:.*\\\n)*.*\n", lambda _: cpu, "\n".join(lines) + "\n", flags=re.MULTILINE)
    write_whole(LOCK, HEADER + text)


def _digests_of_torch(folder: Path) -> str:
    """The lock's entry of torch: the build for CPUs."""
    wanted = f"torch=={version('torch').partition('+')[0]}+cpu"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(folder), wanted], capture_output=True, text=True)
    if done.returncode:
        raise FetchError(f"{wanted} is not on the configured package index: {done.stderr.strip()[-600:]}")
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("torch-*.whl"))
    return " \\\n    ".join([wanted, *(f"--hash=sha256:{digest}" for digest in digests)]) + "\n"


def audit() -> int:
    """Print known vulnerabilities of what is locked.

    Returns 1 if there are some, 2 if the service that knows them does not answer.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--no-deps"]
    try:
        done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, timeout=AUDITED)
        said, content = done.stderr.strip().splitlines(), json.loads(done.stdout or "null")
    except (subprocess.TimeoutExpired, ValueError) as error:
        said, content = [str(error)], None
    if any("No module named pip_audit" in line for line in said):
        raise MissingExtraError("The audit needs pip-audit: pip install 'eelib[audit]'.")
    if not isinstance(content, dict):
        print(
            "Nothing is known about vulnerabilities: the service that pip-audit asks cannot be reached. Run this again "
            f"where it can. pip-audit's last line: {said[-1] if said else 'none'}"
        )
        return 2
    unsound = [one for one in content["dependencies"] if one.get("vulns")]
    for one in unsound:
        for known in one["vulns"]:
            print(f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or '-'}")
    skipped = [one["name"] for one in content["dependencies"] if "skip_reason" in one]
    print(
        f"{len(content['dependencies'])} packages: {len(unsound)} with known vulnerabilities, {len(skipped)} unknown."
    )
    return bool(unsound)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workflow.supply", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("sbom", "lock", "audit"))
    try:
        command = parser.parse_args(arguments).command
        if command == "sbom":
            sys.stdout.write(sbom())
        return (audit() if command == "audit" else lock() if command == "lock" else 0) or os.EX_OK
    except EelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
