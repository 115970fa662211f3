"""The library reads in one direction, and importing it is free."""

import ast
import subprocess
import sys

import eelib
from eelib.workspace import PROJECT

ORDER = (
    "errors workspace offline models measure kvcache probing int8 backbone exact frontier confidence chat "
    "lessons batches self_generation sources prompts documents corpus vocabulary maps heads reports training recipe "
    "traces combined separation bounds exits risk calibration violations policies sampling options decoding monitor "
    "cost robustness planning layerskip lossless comparison benchmarks figures batch"
).split()


def imported(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((PROJECT / "eelib" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "eelib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eelib."):
            found.add(node.module.split(".")[1])
    return found


def test_modules_import_only_from_those_above():
    assert sorted(ORDER) == sorted(p.stem for p in (PROJECT / "eelib").glob("*.py") if p.stem != "__init__")
    for i, module in enumerate(ORDER):
        assert imported(module) <= set(ORDER[:i]), module


def test_readme_lists_the_modules_in_this_order():
    assert " ".join(ORDER) in " ".join((PROJECT / "README.md").read_text().split())


def test_every_public_name_is_there_and_modules_stay_short():
    assert all(getattr(eelib, name) is not None for name in eelib.__all__) and set(eelib.__all__) <= set(dir(eelib))
    assert all(len(p.read_text().splitlines()) <= 310 for p in (PROJECT / "eelib").glob("*.py"))


def test_importing_eelib_loads_nothing_heavy():
    code = (
        "import sys, eelib, eelib.batch; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
