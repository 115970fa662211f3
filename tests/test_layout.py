"""The library reads in one direction, and importing it is free."""

import ast
import subprocess
import sys
from pathlib import Path

import eelib
from eelib.workspace import PROJECT

ORDER = (
    "errors workspace offline models measure kvcache probing int8 backbone exact frontier confidence chat "
    "lessons batches self_generation sources prompts documents corpus vocabulary maps cards heads reports objective "
    "training recipe traces "
    "combined separation bounds exits risk calibration violations policies sampling options session "
    "decoding monitor replay cost clock robustness planning lossless comparison benchmarks adapter harness "
    "baselines figures batch"
).split()


def files(module: str) -> list[Path]:
    """One, or those of a package."""
    folder = PROJECT / "eelib" / module
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(module: str) -> set[str]:
    found = set()
    for node in (node for file in files(module) for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.module == "eelib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eelib."):
            found.add(node.module.split(".")[1])
    return found


def test_modules_import_only_from_those_above():
    there = [p.stem for p in (PROJECT / "eelib").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert sorted([*ORDER, "__init__"]) == sorted(there)
    for i, module in enumerate(ORDER):
        assert imported(module) - {module} <= set(ORDER[:i]), module


def test_readme_lists_the_modules_in_this_order():
    assert " ".join(ORDER) in " ".join((PROJECT / "README.md").read_text().split())


def test_every_public_name_is_there_and_modules_stay_short():
    assert all(getattr(eelib, name) is not None for name in eelib.__all__) and set(eelib.__all__) <= set(dir(eelib))
    assert all(len(p.read_text().splitlines()) <= 310 for p in (PROJECT / "eelib").rglob("*.py"))


def test_importing_eelib_loads_nothing_heavy():
    heavy = ("torch", "transformers", "pandas", "lm_eval")
    code = f"import sys, eelib, eelib.batch; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
