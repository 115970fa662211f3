"""HumanEval: run the model's code against the tests (arXiv 2107.03374).

Model-written code is run only on request: in separate processes, with limits of time and memory, an empty folder and
environment, and no network, in a user and network namespace (`unshare` of util-linux). That contains accidents; it is
no sandbox against malicious code.
"""

import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from eelib.errors import InvalidInputError, UnsupportedError

_BLOCK = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)
_ALONE = ["unshare", "--user", "--map-current-user", "--net", "--pid", "--fork", "--kill-child"]


def program(case: dict, answer: str) -> str:
    """A HumanEval case and an answer as one program.

    It fails where a test does. The answer's code is its first block that defines the function, else its first block,
    else all of it. The task's imports and helpers precede it; code that does not define the function itself continues
    the task's.
    """
    blocks = _BLOCK.findall(answer) or [answer]
    defined = f"def {case['entry_point']}("
    code = next((block for block in blocks if defined in block), blocks[0])
    given = case["prompt"]
    if defined in code:
        given = given[: given.rindex(defined)]
    return f"{given}{code}\n\n{case['test']}\ncheck({case['entry_point']})\n"


def passes(
    programs: Sequence[str],
    *,
    allow_execution: bool = False,
    seconds: float = 10.0,
    memory: int = 2**30,
    processes: int = 1,
) -> list[bool]:
    """Whether each program runs to its end.

    Args:
        allow_execution: must be True: model-written programs are run.
        seconds: time limit of each.
        memory: limit of each one's address space [bytes].
        processes: number run at once.

    Raises:
        InvalidInputError: `allow_execution` is not True.
        UnsupportedError: this system does not let a user run a process without network.
    """
    if allow_execution is not True:
        raise InvalidInputError(
            "This runs model-written programs: pass allow_execution=True if this machine may do that."
        )
    _check_system()

    def run(text: str) -> bool:
        return _passes(text, seconds, memory)

    with ThreadPoolExecutor(processes) as pool:
        return list(tqdm(pool.map(run, programs), total=len(programs), desc="running programs", unit="program"))


def _check_system() -> None:
    if shutil.which("unshare") is None:
        raise UnsupportedError(
            "No `unshare` (util-linux, Linux only) on this system, so programs cannot be isolated and are not run."
        )
    tried = subprocess.run([*_ALONE, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise UnsupportedError(
            "This system does not allow users a network namespace, so model-written programs are not run. `unshare` "
            f"says: {tried.stderr.strip()}"
        )


def _passes(text: str, seconds: float, memory: int) -> bool:
    done = secrets.token_hex(8)  # said at the very end: a program that leaves early has not passed

    def limit() -> None:
        import resource  # not on every system; where it is missing, so is `unshare`

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with tempfile.TemporaryDirectory(prefix="eelib-") as folder, tempfile.TemporaryFile() as said:
        command = [*_ALONE, sys.executable, "-I", "-B", "-"]
        given = f"{text}\nprint('\\n{done}')\n".encode("utf-8", "replace")
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.DEVNULL, cwd=folder,
            env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}, preexec_fn=limit, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                process.communicate(given, timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()  # and with it the namespace and all that runs in it
                process.wait()
                return False
        said.seek(max(0, said.seek(0, 2) - 64))
        return process.returncode == 0 and said.read().decode(errors="replace").rstrip().endswith(done)
