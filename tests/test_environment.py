"""One environment, written down three times: pyproject.toml is the source, the others follow."""

import json
import re
import tomllib

import numpy
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny import PROJECT

from workflow import supply

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


def test_the_lock_is_of_what_is_constrained():
    """Every package at its version, each file by its SHA-256, and no index by name; torch is the build for CPUs."""
    text = supply.LOCK.read_text(encoding="utf-8")
    locked = supply.locked(text)
    constrained = {canonicalize_name(name): version for name, version in pinned().items()}
    assert {name: version.partition("+")[0] for name, (version, _) in locked.items()} == constrained
    assert locked["torch"][0].endswith("+cpu")
    assert all(hashes and all(re.fullmatch(r"[0-9a-f]{64}", one) for one in hashes) for _, hashes in locked.values())
    assert not re.search(r"://|\bindex\b.*\.(org|io|com)", text)


def test_the_bill_of_materials_lists_what_is_installed_and_what_needs_what():
    content = json.loads(supply.sbom())
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    versions = {component["name"]: component["version"] for component in content["components"]}
    assert versions["torch"] == torch.__version__ and versions["numpy"] == numpy.__version__
    refs = {component["bom-ref"] for component in content["components"]}
    assert len(refs) == len(content["components"]) and all(ref.startswith("pkg:pypi/") for ref in refs)
    needs = {entry["ref"]: entry["dependsOn"] for entry in content["dependencies"]}
    assert needs.keys() == refs and all(other in refs for others in needs.values() for other in others)
    (torch_ref,) = (ref for ref in refs if ref.startswith("pkg:pypi/torch@"))
    assert any(torch_ref in needs[ref] for ref in refs if ref.startswith("pkg:pypi/accelerate@"))


@pytest.mark.slow
def test_the_bill_of_materials_is_valid():
    """Against CycloneDX's own schema."""
    reason = "pip install 'cyclonedx-python-lib[json-validation]' to compare it with its schema"
    pytest.importorskip("cyclonedx.validation.json", reason=reason)
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(supply.sbom()) is None


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, "1 packages: 0 with known"),
        (
            '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}]}',
            1, "a 1: PYSEC-1, mended in 2",
        ),
        ("", 2, "cannot be reached"),
        ("Traceback", 2, "cannot be reached"),
    ],
)  # fmt: skip
def test_the_audit_says_what_is_known_or_that_nobody_answers(tmp_path, monkeypatch, capsys, answer, status, said):
    """pip-audit's place is taken by a module that answers as it does."""
    (tmp_path / "pip_audit.py").write_text(f"print({answer!r}, end='')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert supply.main(["audit"]) == status
    assert said in capsys.readouterr().out
