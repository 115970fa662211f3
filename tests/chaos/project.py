"""The batch with notebooks of one cell, for what happens around notebooks and not in them."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from tiny import PROJECT

PARAMETERS = "model = ''\nslug = ''\ndtype = ''\nworkspace = ''\nseed = 0\nrecipe = ''\nprompts = ''"


def notebook(path: Path, code: str, parameters: str = PARAMETERS) -> Path:
    """A notebook of one cell and its parameters."""
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(code)]
    content = new_notebook(cells=cells)
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(content, path)
    return path


def tiny_project(folder: Path, code: str) -> Path:
    """The project's batch, every notebook with this code."""
    shutil.copytree(PROJECT / "workflow", folder / "workflow")
    (folder / "notebooks").mkdir()
    for source in (PROJECT / "notebooks").glob("*.ipynb"):
        notebook(folder / "notebooks" / source.name, code)
    return folder


def command(config: Path, workspace: Path) -> list[str]:
    """What runs the first notebook of the batch."""
    target = workspace / "data" / "runs" / "tiny" / "01_train_heads.ipynb"
    return [sys.executable, "-m", "workflow.batch", "paper", "--config", str(config), str(target)]


def run_one(project: Path, config: Path, workspace: Path) -> subprocess.CompletedProcess:
    """Run it, and wait."""
    return subprocess.run(command(config, workspace), cwd=project, capture_output=True, text=True)
