"""The rooms of the library: imports flow one way, every room can be entered by its name, and importing is free."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
from tiny import PROJECT

import eelib

CORE = (
    "errors display settings statistics timing workspace packaged backbone corpus heads confidence calibration decoding"
).split()
WORKBENCH = ("evaluation", "baselines")
ROOMS = [*CORE, *WORKBENCH, "plotting", "reporting", "explorer"]
"""A room imports only from those before it; what draws and what reports, only from those in `ALLOWED`."""
ALLOWED = {
    "plotting": {"errors", "statistics", "workspace", "timing", "confidence"},
    "explorer": {*CORE, "evaluation"},
    "reporting": {"errors", "statistics", "workspace", "confidence", "evaluation", "plotting"},
}


def imported(room: str) -> set[str]:
    """The rooms that a room's modules import from."""
    folder = PROJECT / "eelib" / room
    found = set()
    for file in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module == "eelib":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eelib."):
                found.add(node.module.split(".")[1])
    return found - {room}


def test_every_room_is_listed():
    there = [p.stem for p in (PROJECT / "eelib").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert sorted([*ROOMS, "__init__"]) == sorted(there)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_flow_one_way(room):
    """So the core never imports the workbench."""
    assert imported(room) <= set(ALLOWED.get(room, ROOMS[: ROOMS.index(room)]))


def test_a_room_fits_a_screen():
    assert all(len([*folder.glob("*.py")]) <= 13 for folder in (PROJECT / "eelib").iterdir() if folder.is_dir())


def test_every_public_name_is_there():
    rooms = [importlib.import_module(f"eelib.{room}") for room in ROOMS if (PROJECT / "eelib" / room).is_dir()]
    for module in (eelib, *rooms):
        assert all(getattr(module, name) is not None for name in module.__all__) and module.__doc__


def test_rooms_and_their_modules_are_reached_from_a_bare_import():
    code = "import eelib; eelib.evaluation.sizes.gain_by_size; eelib.calibration.p_values.betting; eelib.packaged.fetch"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
    for folder in [PROJECT / "eelib" / room for room in ROOMS if (PROJECT / "eelib" / room).is_dir()]:
        known = dir(importlib.import_module(f"eelib.{folder.name}"))  # what they say they have, loaded or not
        assert {file.stem for file in folder.glob("[!_]*.py")} <= set(known), folder.name


def test_importing_eelib_loads_nothing_heavy():
    heavy = ("torch", "transformers", "pandas", "lm_eval")
    code = f"import sys, eelib, workflow.batch; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_errors_name_functions_and_files_never_notebooks_or_make():
    """Who installed the package has neither."""
    for file in (PROJECT / "eelib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Raise):
                said = " ".join(
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                assert not re.search(r"notebook|\bmake (paper|test|lab)|\d\d_[a-z]", said), f"{file.name}: {said}"


def test_no_path_is_relative_to_the_package():
    assert not [file.name for file in (PROJECT / "eelib").rglob("*.py") if "__file__" in file.read_text("utf-8")]


def test_text_is_utf8_whatever_the_locale():
    """As other systems and older ones have it, text would be read and written in the locale's encoding."""
    for file in [*(PROJECT / "eelib").rglob("*.py"), *(PROJECT / "workflow").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args)
            if name in ("read_text", "write_text") or (name == "open" and not binary):
                assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{file.name}, line {node.lineno}"
