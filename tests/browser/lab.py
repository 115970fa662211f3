"""A notebook in JupyterLab as a user has it open: cells run in its kernel, seen and clicked in Chromium."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
from tiny import PROJECT

CURRENT = "const panel = jupyterapp.shell.currentWidget, notebook = panel.content;"
"""What the scripts below begin with: the notebook in front, as JupyterLab has it (`expose_app_in_browser`)."""


class Lab:
    """A server of its own: on localhost, a free port, with a token, and no settings but these."""

    def __init__(self, folder: Path):
        self.notebooks, self.token, self._log = folder / "notebooks", secrets.token_hex(16), folder / "server.log"
        self.notebooks.mkdir()
        config = folder / "config" / "labconfig"
        config.mkdir(parents=True)
        off = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # asks, and fetches news
        (config / "page_config.json").write_text(json.dumps(off), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        paths = [PROJECT, PROJECT / "tests", *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "jupyter", "JUPYTER_RUNTIME_DIR": "runtime"}
        environment = os.environ | {name: str(folder / place) for name, place in own.items()}
        environment |= {"OMP_WAIT_POLICY": "passive"}  # kernels of two labs share the cores
        environment |= {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": os.pathsep.join(map(str, paths))}
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
                    f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                    f"--ServerApp.root_dir={self.notebooks}", "--LabApp.expose_app_in_browser=True",
                ],
                cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self) -> None:
        """Until the server answers."""
        for _ in range(600):
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
            try:
                return urllib.request.urlopen(f"{self.url}/api/status?token={self.token}", timeout=10).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"JupyterLab does not answer:\n{self._log.read_text(encoding='utf-8')}")

    def stop(self) -> None:
        self._process.terminate()  # its kernels end with it
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def write(self, name: str, *cells: str) -> None:
        """A notebook of these cells of code."""
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, self.notebooks / name)


class Notebook:
    """One notebook of the lab, open in a page."""

    def __init__(self, page, lab: Lab, name: str):
        self.page, self.lab, self.name = page, lab, name

    def open(self) -> "Notebook":
        """Open it in an empty workspace, with a kernel that is ready."""
        self.page.goto(f"{self.lab.url}/lab/tree/{self.name}?token={self.lab.token}&reset")
        self.page.wait_for_function(f"window.jupyterapp?.shell.currentWidget?.context?.path === {self.name!r}")
        self.do(f"async () => {{ {CURRENT} await panel.context.ready; await panel.sessionContext.ready;"
                " await panel.sessionContext.session.kernel.info; }")  # fmt: skip
        self.command("application:toggle-left-area")  # the files
        return self

    def do(self, script: str, *arguments):
        """What a function of JavaScript returns."""
        return self.page.evaluate(script, *arguments)

    def command(self, name: str, **arguments) -> None:
        """A command of JupyterLab, until it is done."""
        self.do("async ([name, given]) => { await jupyterapp.commands.execute(name, given); }", [name, arguments])

    def run_all(self) -> "Notebook":
        """Run it top to bottom; an error in a cell is one here."""
        self.command("notebook:run-all-cells")
        for outputs in self.do(f"() => {{ {CURRENT} return notebook.widgets.map((cell) =>"
                               " cell.model.outputs?.toJSON() ?? []); }"):  # fmt: skip
            _check(outputs)
        return self

    def start(self, code: str) -> None:
        """Run code in a new last cell, and do not wait for its end."""
        self.do(f"(code) => {{ {CURRENT} notebook.activeCellIndex = notebook.widgets.length - 1;"
                " return jupyterapp.commands.execute('notebook:insert-cell-below').then(() => {"
                " notebook.activeCell.model.sharedModel.setSource(code);"
                " window.running = jupyterapp.commands.execute('notebook:run-cell'); }); }", code)  # fmt: skip

    def finish(self) -> str:
        """Wait for what was started; what it printed."""
        outputs = self.do(f"async () => {{ await window.running; {CURRENT}"
                          " return notebook.widgets.at(-1).model.outputs.toJSON(); }")  # fmt: skip
        return _check(outputs)

    def run(self, code: str) -> str:
        """Run code in a new last cell; what it printed."""
        self.start(code)
        return self.finish()

    def rerun(self, cell: int) -> None:
        """Run a cell again."""
        self.do(f"async (i) => {{ {CURRENT} notebook.deselectAll(); notebook.activeCellIndex = i;"
                " await jupyterapp.commands.execute('notebook:run-cell'); }", cell)  # fmt: skip

    def view(self, kind: str, number: int = 0):
        """A view in the notebook, scrolled to, once it is drawn."""
        found = self.page.locator(f".{kind}[data-ready=true]").nth(number)
        found.scroll_into_view_if_needed()
        return found

    def save(self) -> None:
        self.command("docmanager:save")

    def theme(self, name: str) -> None:
        """Change the theme of JupyterLab: "Light" or "Dark"."""
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(name == 'Light').lower()}'")


def _check(outputs: list[dict]) -> str:
    for output in outputs:
        assert output["output_type"] != "error", "\n".join(output["traceback"])
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
