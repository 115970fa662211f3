"""Timing: warm-up, interleaved repeats, peak memory, and the machine's description."""

import ctypes
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm


def machine() -> dict[str, str | int]:
    """The machine: processor, cores, threads, accelerator, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "eelib")},
    }


def provenance() -> str:
    """Day (UTC), machine and commit of the git checkout, in one line."""
    about = machine()
    device = about["processor"] if about["accelerator"] == "none" else f"{about['accelerator']}, {about['processor']}"
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    parts = [f"{datetime.now(UTC):%Y-%m-%d}", f"{device}, {threads}"]
    return " · ".join(parts + ([f"commit {commit()}"] if commit() else []))


@cache
def commit() -> str:
    """Short hash of the working folder's commit; empty without one."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 3, warm_up: int = 1, description: str = "timing"
) -> pd.DataFrame:
    """Time candidates in turn, so that a slow minute affects all.

    Returns one row per candidate and repeat: candidate, repeat, seconds, result (the call's return value).
    """
    for _ in range(warm_up):
        for call in candidates.values():
            call()
    rows = []
    for repeat in tqdm(range(repeats), desc=description, unit="repeat"):
        for name, call in candidates.items():
            synchronize()
            started = time.perf_counter()
            result = call()
            synchronize()
            seconds = time.perf_counter() - started
            rows.append({"candidate": name, "repeat": repeat, "seconds": seconds, "result": result})
    return pd.DataFrame(rows)


def peak_memory(call: Callable[[], object]) -> float:
    """Peak memory of a call beyond what was in use [bytes].

    Of the accelerator if there is one, else of the process, as Linux counts it. NaN where the system does not tell.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return float(torch.cuda.max_memory_allocated() - before)
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else a call finds room in what earlier ones gave back
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew from what is held now
        before, _ = _resident("VmRSS"), _resident("VmHWM")
    except (OSError, AttributeError, StopIteration):
        return float("nan")
    call()
    return float(max(0, _resident("VmHWM") - before))


def _resident(field: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(field)
    )
    return int(line.split()[1]) * 1024


def synchronize() -> None:
    """Wait for the accelerator, whose calls return before their work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # no such file off Linux, no such line on some processors
        return platform.processor() or platform.machine()
