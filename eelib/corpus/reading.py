"""Text that is not the model's own: a file of documents, or a dataset streamed from the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

from eelib.errors import CorpusError
from eelib.packaged import case_file
from eelib.workspace import expanded


def _hellaswag() -> Iterator[str]:
    for line in case_file("hellaswag").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        yield f"{case['ctx']} {case['endings'][case['expected_index']]}"


def _pydoc() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from dict.fromkeys(topics.values())  # some topics share a text


def _benchmark_prompts() -> Iterator[str]:
    for line in case_file("prompts").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]


PACKAGED = {"hellaswag": _hellaswag, "pydoc": _pydoc, "benchmark_prompts": _benchmark_prompts}
"""Text of other kinds than a model's own that needs no download, by name: hellaswag, what people do every day, in 100
short paragraphs (contexts with their right endings); pydoc, Python's reference by topic, with examples of code;
benchmark_prompts, questions and contexts of benchmarks that nothing is measured on, to begin chats with."""


def read_documents(source: str) -> Iterator[str]:
    """The documents of a packaged source (`PACKAGED`), of a .jsonl file with a field "text", of a .txt file with blank
    lines between them, or of a dataset that `datasets.load_dataset` knows (a Hub id or a folder), streamed. `~` and
    `$VARIABLES` in a path are expanded.

    Raises:
        CorpusError: it cannot be read, or holds something else.
    """
    if source in PACKAGED:
        yield from PACKAGED[source]()
        return
    path = expanded(source)
    if path.suffix == ".jsonl" and path.is_file():
        for number, line in enumerate(_text(path).splitlines(), start=1):
            try:
                yield json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise CorpusError(f"{path}, line {number}: expected a JSON object with a field 'text'.") from error
    elif path.suffix == ".txt" and path.is_file():
        yield from (text for text in _text(path).split("\n\n") if text.strip())
    elif path.suffix in (".txt", ".jsonl"):
        raise CorpusError(f"No file {source}.")
    else:
        yield from _stream(source)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is no text in UTF-8: {error}.") from error


def _stream(source: str) -> Iterator[str]:
    import datasets  # heavy, and of no use to the other sources

    try:
        rows = datasets.load_dataset(source, split="train", streaming=True)
        for row in rows:
            yield row["text"]
    except KeyError as error:
        raise CorpusError(f"Dataset {source!r} has no column 'text', but {sorted(row)}.") from error
    except Exception as error:  # whatever the library and the network raise, the user needs one sentence
        raise CorpusError(
            f"Cannot read dataset {source!r}: {error}. Expected 'self', a .txt or .jsonl file, a folder of data "
            "files, or the Hub id of a dataset with a split 'train' and a column 'text'."
        ) from error
