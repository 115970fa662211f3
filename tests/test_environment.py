"""One environment, written down three times: pyproject.toml is the source, the others follow."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [*PYPROJECT["dependencies"], *sum(PYPROJECT["optional-dependencies"].values(), [])]


def pinned() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_conda_environment_equals_pyproject():
    dependencies = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = [entry for entry in dependencies if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert conda == [f"python{PYPROJECT['requires-python']}", "make", "pip"]
    assert pip[:2] == ["-c constraints.txt", "-e ."]
    assert sorted(pip[2:]) == sorted(DIRECT)


def test_constraints_are_exact_and_cover_every_direct_dependency():
    versions = pinned()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in versions.values())
    names = {canonicalize_name(name): version for name, version in versions.items()}
    for requirement in map(Requirement, DIRECT):
        assert names[canonicalize_name(requirement.name)] in requirement.specifier
    assert versions["torch"] == "2.13.0"
