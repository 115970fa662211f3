"""Coverage-guided fuzz of every reader of files, by atheris: whatever a file holds, errors are eelib's own.

    python tests/chaos/fuzz_readers.py [-max_total_time=1800 and other options of libFuzzer] [2>&1 | tee LOG]
    python tests/chaos/fuzz_readers.py --write LOG

The first byte of an input chooses the reader, the others are the file; it begins with good files and mutates them. An
input that makes a reader raise anything else is kept as crash-*, and the script fails. `--write` makes
docs/results/fuzz.csv of the log of a run that ended by itself.
"""

import contextlib
import os
import re
import sys
import tempfile
from datetime import date
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["eelib", "workflow"]):
    from chaos.readers import Places

from eelib.errors import EelibError  # noqa: E402 (once instrumented)

SLOW = ("model: config", "model: weights", "model: tokenizer")
"""transformers' own readers: damaged by test_damage.py, too slow here."""


def write(log: Path) -> None:
    """Keep what a run's last line says."""
    text = log.read_text(encoding="utf-8", errors="replace")
    (inputs, branches), (_, seconds) = (
        re.findall(pattern, text)[-1] for pattern in (r"#(\d+)\s+DONE\s+cov: (\d+)", r"Done (\d+) runs in (\d+) second")
    )
    table = Path(__file__).parents[2] / "docs" / "results" / "fuzz.csv"
    crashes = len(re.findall("SUMMARY: libFuzzer", text))
    names = "minutes", "inputs", "branches", "crashes", "date"
    row = round(int(seconds) / 60), inputs, branches, crashes, date.today()
    table.write_text(f"{','.join(names)}\n{','.join(map(str, row))}\n", encoding="utf-8")


def main() -> None:
    """Fuzz until libFuzzer's options say enough."""
    with tempfile.TemporaryDirectory() as folder:
        files, seeds = Path(folder) / "files", Path(folder) / "seeds"
        files.mkdir(), seeds.mkdir()
        places = Places(files)
        readers = [reader for name, reader in places.readers().items() if name not in SLOW]
        good = {reader.file: (files / reader.file).read_bytes() for reader in readers}
        for number, reader in enumerate(readers):
            (seeds / f"{number}").write_bytes(bytes([number]) + good[reader.file])

        def read(data: bytes) -> None:
            if not data:
                return
            reader = readers[data[0] % len(readers)]
            (files / reader.file).write_bytes(data[1:])
            try:
                with open(os.devnull, "w", encoding="utf-8") as null, contextlib.redirect_stderr(null):
                    reader.read(files)
            except EelibError:
                pass
            finally:
                (files / reader.file).write_bytes(good[reader.file])

        atheris.Setup([sys.argv[0], *sys.argv[1:], str(seeds)], read)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        main()
