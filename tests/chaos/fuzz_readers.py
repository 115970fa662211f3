"""Coverage-guided fuzz of every reader of files, by atheris: whatever a file holds, errors are eelib's own.

    python tests/chaos/fuzz_readers.py [-max_total_time=1800 and other options of libFuzzer]

The first byte of an input chooses the reader, the others are the file; it begins with good files and mutates them. An
input that makes a reader raise anything else is kept as crash-*, and the script fails.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["eelib", "workflow"]):
    from chaos.readers import Places

from eelib.errors import EelibError  # noqa: E402 (once instrumented)

SLOW = ("model: config", "model: weights", "model: tokenizer")
"""transformers' own readers: damaged by test_damage.py, too slow here."""


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
    main()
