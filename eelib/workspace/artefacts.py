"""Reading and writing of artefacts: JSON, YAML, tensors, tables and notes.

Every file is data from somewhere: damaged, cut off, or made to harm. What cannot be read is one of eelib's own errors
before anything uses it; nothing in a file is ever run. Where a file carries a digest, or one was recorded when it was
written, it must match.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eelib.errors import EelibError, InvalidInputError
from eelib.workspace.layout import expanded
from eelib.workspace.ledger import check_recorded, note_input, recorded
from eelib.workspace.writing import atomic_write, write_whole

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

LARGEST_TEXT = 2**26
"""Bytes of JSON, YAML or one line of text that are read at most: a hundred times what eelib writes."""
_LARGEST_YAML = 100_000  # values, counted as often as they are referred to
_ABOUT = "about"
_READINGS = 5
Error = type[EelibError]


def read_bytes(
    path: str | Path, error: Error = InvalidInputError, most: int = LARGEST_TEXT, *, scratch: bool = False
) -> bytes:
    """Content of a regular file, noted as an input unless `scratch`.

    Raises:
        EelibError: of the given class; the file is missing, unreadable, no file, or larger than `most` bytes.
    """
    path = expanded(path)
    if not path.is_file():  # a pipe or a device would never end
        raise error(f"{path} cannot be read: there is no such file.")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    if len(content) > most:
        raise error(
            f"{path} is larger than {most:,} bytes, which nothing of this kind is: look at where it comes from."
        )
    if not scratch:
        note_input(path, hashlib.sha256(content).hexdigest())
    return content


def read_json(
    path: str | Path, error: Error = InvalidInputError, *, digest: bool = True, scratch: bool = False
) -> dict[str, Any]:
    """Object in a JSON file.

    Args:
        error: class of what is raised.
        digest: whether a digest in the object, if it has one, must match; it is left out of what is returned.
        scratch: whether the file is intermediate work, and no input of what is made.

    Raises:
        EelibError: of that class; no JSON, no object, or not what was written.
    """
    content = parse_json(read_bytes(path, error, scratch=scratch), str(path), error)
    if digest and "digest" in content and content.pop("digest") != digest_of_content(content):
        raise error(f"{path} was changed after it was written: its digest does not match. Make it again.")
    return content


def parse_json(content: bytes, where: str, error: Error) -> dict[str, Any]:
    """Object that some bytes are, as JSON in UTF-8.

    Raises:
        EelibError: of the given class; they are not.
    """
    try:
        found = json.loads(content.decode("utf-8"))
        if re.search(rb"\\u[dD][89a-fA-F]", content):
            json.dumps(found, ensure_ascii=False).encode()  # half a character can be parsed, but never printed
    except (ValueError, RecursionError, MemoryError) as reason:
        raise error(f"{where} is not JSON: {short(reason)}") from reason
    if not isinstance(found, dict):
        raise error(f"{where} holds a {type(found).__name__}: expected a JSON object.")
    return found


def read_lines(path: str | Path, *fields: str, error: Error = InvalidInputError) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines, each with these fields.

    Raises:
        EelibError: of the given class; by file and line.
    """
    found = []
    for number, line in enumerate(read_bytes(path, error).splitlines(), start=1):
        found.append(parse_json(line, f"{path}, line {number},", error))
        missing = [field for field in fields if field not in found[-1]]
        if missing:
            raise error(f"{path}, line {number}: no {', '.join(missing)}.")
    return found


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Mapping in a YAML file.

    Args:
        what: what the file is, for errors: "recipe".

    Raises:
        InvalidInputError: no YAML, no mapping with words as keys, or one that grows beyond bounds where its references
            are followed.
    """
    import yaml

    content = read_bytes(path, most=2**20)
    try:
        found = yaml.safe_load(content.decode("utf-8-sig"))
    except (ValueError, RecursionError, yaml.YAMLError) as reason:
        mark = getattr(reason, "problem_mark", None)  # what the file says is nobody's business: it may be a link
        said = short(reason) if mark is None else f"{reason.problem}, line {mark.line + 1}"
        raise InvalidInputError(f"The {what} {path} cannot be read: {said}") from None
    left, count = [found], 0
    while left and count <= _LARGEST_YAML:
        value, count = left.pop(), count + 1
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value
    if count > _LARGEST_YAML:
        raise InvalidInputError(f"The {what} {path} holds more than {_LARGEST_YAML:,} values: expected some dozens.")
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InvalidInputError(f"{path} holds something else than a {what}: expected names with settings.")
    return found


def read_tensors(
    path: str | Path, error: Error = InvalidInputError, *, scratch: bool = False
) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Tensors of a safetensors file, and what was kept with them.

    Among that, if `write_tensors` wrote the file, is their `digest`. A file that another takes the place of meanwhile
    is read again.

    Raises:
        EelibError: of the given class; the file is damaged, or is replaced as often as it is read.
    """
    path = expanded(path)
    for _ in range(_READINGS):
        before = _version(path, error)
        try:
            found = _read_tensors(path, error)
        except error:
            if _version(path, error) == before:
                raise
            continue
        if _version(path, error) == before:  # safetensors opens a path twice, for its header and for its tensors
            if not scratch:
                note_input(path)
            return found
    raise error(f"{path} is being written: it was replaced {_READINGS} times while it was read. Read it afterwards.")


def _version(path: Path, error: Error) -> tuple[int, int, int]:
    """What tells a file from the one that replaces it."""
    if not path.is_file():
        raise error(f"{path} cannot be read: there is no such file.")
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read_tensors(path: Path, error: Error) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        AttributeError,
        MemoryError,
        SafetensorError,
    ) as reason:
        raise error(f"{path} cannot be read as safetensors: {short(reason)}") from reason
    about = parse_json(header[_ABOUT].encode(), f"What {path} says of itself", error) if _ABOUT in header else {}
    rest = {name: value for name, value in about.items() if name != "digest"}
    if "digest" in about and about["digest"] != digest_of_tensors(tensors, rest):
        raise error(f"{path} was changed after it was written: its digest does not match. Make it again.")
    return tensors, about


def read_table(path: str | Path, *columns: str, error: Error = InvalidInputError) -> "pd.DataFrame":
    """Table in a Parquet file, with these columns.

    Raises:
        EelibError: of the given class; the file is damaged, lacks a column, or is not what was recorded when it was
            written.
    """
    import pandas as pd

    path = expanded(path)
    content = read_bytes(path, error, most=2**34)
    if check_recorded(path, hashlib.sha256(content).hexdigest()):
        raise error(
            f"{path} is not what was written: its digest is another than recorded in {path.parent / 'provenance'}. "
            "Make it again, or delete the record if you changed the table on purpose."
        )
    try:
        table = pd.read_parquet(io.BytesIO(content))
    except Exception as reason:  # Arrow promises no narrower class for a file that it cannot read
        raise error(f"{path} cannot be read as Parquet: {short(reason)}") from reason
    missing = [column for column in columns if column not in table]
    if missing:
        raise error(f"{path} has no column {', '.join(missing)}, so an earlier version wrote it: make it again.")
    return table


def read_note(path: str | Path) -> tuple[str, str]:
    """Sentence and provenance of a note that `write_note` wrote.

    Raises:
        InvalidInputError: the file is missing or no such note.
    """
    try:
        sentence, _, last = read_bytes(path).decode("utf-8").strip().rpartition("\n\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    if not (sentence and last.startswith("<sub>") and last.endswith("</sub>")):
        raise InvalidInputError(f"{path} is no note: expected a sentence, and a last paragraph in <sub></sub>.")
    return sentence, last.removeprefix("<sub>").removesuffix("</sub>")


def long_lines(file: io.BufferedIOBase, most: int = LARGEST_TEXT) -> Iterator[bytes]:
    """Lines of an open file, none longer than `most` bytes.

    Raises:
        ValueError: one is.
    """
    while line := file.readline(most + 1):
        if len(line) > most:
            raise ValueError(f"a line of more than {most:,} bytes")
        yield line


def write_json(path: str | Path, content: Mapping[str, object]) -> None:
    """Write an object as JSON, with its digest.

    Raises:
        DiskFullError: the disk is full.
    """
    write_whole(path, json.dumps({**content, "digest": digest_of_content(content)}, indent=2) + "\n")


def write_tensors(path: str | Path, tensors: "Mapping[str, Tensor]", about: Mapping[str, object] | None = None) -> str:
    """Write tensors as safetensors, with their digest, which it returns.

    Args:
        about: what else to keep with them, as JSON.

    Raises:
        DiskFullError: the disk is full.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = json.loads(json.dumps(dict(about or {})))
    # One key: several would stand in another order each time.
    digest = digest_of_tensors(tensors, about)
    header = {_ABOUT: json.dumps({**about, "digest": digest})}
    size = sum(tensor.nbytes + len(name) + 128 for name, tensor in tensors.items()) + len(header[_ABOUT])
    with atomic_write(path, size=size) as temporary:
        save_file(tensors, temporary, metadata=header)
    return digest


def write_table(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table as Parquet, and record what it comes from.

    Raises:
        DiskFullError: the disk is full.
    """
    path, content = expanded(path), io.BytesIO()
    table.to_parquet(content)
    with recorded(path.parent) as folder:
        write_whole(folder / path.name, content.getvalue())


def write_note(path: str | Path, sentence: str, provenance: str) -> None:
    """Write what a result shows and where it comes from, in Markdown."""
    write_whole(path, f"{sentence}\n\n<sub>{provenance}</sub>\n")


def digest_of_content(content: Mapping[str, object]) -> str:
    """SHA-256 of an object, as JSON keeps it."""
    kept = json.loads(json.dumps(dict(content)))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def digest_of_tensors(tensors: "Mapping[str, Tensor]", about: Mapping[str, object]) -> str:
    """SHA-256 of tensors, their names, types, shapes and `about`."""
    import torch

    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def short(reason: BaseException, most: int = 160) -> str:
    """What an error says, on one line and not at length."""
    said = " ".join(str(reason).split()) or type(reason).__name__
    return said if len(said) <= most else f"{said[:most]} ..."
