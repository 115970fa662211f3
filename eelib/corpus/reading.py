"""Reading of text: files of documents, or datasets of the Hub."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from eelib.corpus import code
from eelib.errors import CorpusError, FetchError
from eelib.packaged import case_file
from eelib.workspace import expanded, note_input, read_lines
from eelib.workspace.artefacts import LARGEST_TEXT, long_lines, parse_json


def _hellaswag() -> Iterator[str]:
    for case in read_lines(case_file("hellaswag"), "ctx", "endings", "expected_index", error=FetchError):
        yield f"{case['ctx']} {case['endings'][case['expected_index']]}"


def _pydoc() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from dict.fromkeys(topics.values())  # some topics share a text


def _benchmark_prompts() -> Iterator[str]:
    for row in read_lines(case_file("prompts"), "text", error=FetchError):
        yield row["text"]


def _code(ask: Callable[[str], str]) -> Iterator[str]:
    for row in read_lines(case_file("humaneval"), "prompt", error=FetchError):
        yield ask(row["prompt"])


def _code_prompts() -> Iterator[str]:
    for row in read_lines(case_file("code_prompts"), "text", error=FetchError):
        yield code.description(row["text"])
        yield code.completion(row["text"])


PACKAGED = {
    "hellaswag": _hellaswag,
    "pydoc": _pydoc,
    "benchmark_prompts": _benchmark_prompts,
    "code_completion": partial(_code, code.completion),
    "code_description": partial(_code, code.description),
    "code_prompts": _code_prompts,
}
"""Packaged texts, not the model's own, by name.

- `hellaswag`: 100 short paragraphs on everyday activities (contexts with their right endings).
- `pydoc`: Python's reference by topic, with code examples.
- `benchmark_prompts`: questions and contexts of benchmarks, not used for measurement, as prompts.
- `code_completion`, `code_description`: HumanEval's tasks, as code to complete and as descriptions.
- `code_prompts`: both, of those not used for measurement.
"""


def read_documents(source: str) -> Iterator[str]:
    """Documents of a packaged source, a file, or a dataset.

    Args:
        source: a name in `PACKAGED`; a .jsonl file with a field "text", or a .txt file with blank lines between
            documents (UTF-8, gzipped if the name ends in .gz; `~` and `$VARIABLES` are expanded); or a dataset for
            `datasets.load_dataset` (a Hub id or a folder), streamed.

    Raises:
        CorpusError: it is unreadable, or holds something else.
    """
    if source in PACKAGED:
        yield from PACKAGED[source]()
        return
    path = expanded(source)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind not in (".jsonl", ".txt"):
        yield from _stream(str(path) if path.is_dir() else source)
    elif not path.is_file():
        raise CorpusError(f"No file {source}: expected a .txt or .jsonl file.")
    elif kind == ".jsonl":
        for number, line in _lines(path):
            if line.strip():
                yield _field(path, number, line)
    else:
        paragraph, size = [], 0
        for number, line in chain(_lines(path), [(0, "")]):
            if line.strip():
                paragraph.append(line)
                size += len(line)
                if size > LARGEST_TEXT:
                    raise CorpusError(f"{path}, line {number}: a document of more than {LARGEST_TEXT:,} characters.")
            elif paragraph:
                yield "\n".join(paragraph)
                paragraph, size = [], 0


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, gzipped if it ends in .gz.

    Only a line feed ends a line: Unicode's other separators may occur inside a JSON string.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    note_input(path)
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(long_lines(file), start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}, line {number}: expected text in UTF-8 ({error}).") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CorpusError(f"{path}, after line {number}: cannot be read ({error}).") from error


def _field(path: Path, number: int, line: str) -> str:
    """The text of one line of a .jsonl file."""
    try:
        text = parse_json(line.encode(), f"{path}, line {number},", CorpusError)["text"]
    except (CorpusError, KeyError) as error:
        raise CorpusError(f"{path}, line {number}: expected a JSON object with a field 'text'.") from error
    if not isinstance(text, str):
        raise CorpusError(f"{path}, line {number}: 'text' is {json.dumps(text)[:60]}, expected a string.")
    return text


def _stream(source: str) -> Iterator[str]:
    import datasets  # heavy, and of no use to the other sources

    row: dict[str, object] = {}
    try:
        for row in datasets.load_dataset(source, split="train", streaming=True):
            if not isinstance(row["text"], str):
                raise TypeError(f"its column 'text' holds a {type(row['text']).__name__}")
            yield row["text"]
    except KeyError as error:
        raise CorpusError(f"Dataset {source!r} has no column 'text': it has {', '.join(sorted(row))}.") from error
    except Exception as error:  # whatever the library and the network raise, the user needs one sentence
        raise CorpusError(
            f"Cannot read dataset {source!r}: {error}. Expected 'self', a .txt or .jsonl file, a folder of data "
            "files, or the Hub id of a dataset with a split 'train' and a column 'text'."
        ) from error
