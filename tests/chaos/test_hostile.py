"""Files made to harm: absurd sizes, other types, links, code; and names that a shell would run."""

import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from chaos.project import run_one, tiny_project
from chaos.readers import CONFIG, RECIPE, Places
from safetensors.torch import load_file, save_file
from tiny import PROJECT

import eelib
from eelib.errors import EelibError, FetchError, InvalidInputError, ModelError
from eelib.packaged.wheels import member
from eelib.workspace import Workspace, atomic_write, read_json, read_table, read_yaml
from eelib.workspace.artefacts import LARGEST_TEXT, digest_of_content
from workflow.batch import read_config


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return Places(tmp_path_factory.mktemp("good"))


@pytest.fixture
def places(good, tmp_path):
    """A copy of the good files, to change; the model and what reads them stay."""
    shutil.copytree(good.folder, tmp_path / "files")
    return good, tmp_path / "files"


def reseal(file: Path, **changes) -> None:
    """What whoever wants to harm can do: change a JSON artefact and its digest. A value of None drops the key."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    content = {key: value for key, value in content.items() if value is not None and key != "digest"}
    file.write_text(json.dumps(content | {"digest": digest_of_content(content)}), encoding="utf-8")


def replace_weights(folder: Path, tensors: dict) -> None:
    """Other weights, and a configuration that says nothing of their digest, as an earlier version wrote it."""
    save_file(tensors, folder / "model.safetensors")
    reseal(folder / "config.json", weights=None)


ODD = [0, -1, 2**70, 1e308, float("nan"), "", "x", [], [[]], {}, {"a": 1}, True, [None], ["1"], [2**64], "9" * 5000]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "odd"),
    [("heads", ODD[1::5]), pytest.param("heads", ODD, marks=SLOW), pytest.param("fused", ODD, marks=SLOW)],
)
def test_every_key_of_a_configuration_missing_or_something_else(places, kind, odd):
    good, folder = places
    file = folder / kind / "config.json"
    whole = file.read_text(encoding="utf-8")
    content = json.loads(whole)
    cases = [{key: value} for key in content for value in [None, *odd]]
    cases += [{"heads": content["heads"] | {key: value}} for key in content["heads"] for value in odd]
    cases += [{"heads": {k: v for k, v in content["heads"].items() if k != key}} for key in content["heads"]]
    cases += [{"more": 1}, {"heads": content["heads"] | {"more": 1}}, {"training": {"validation": [{"depth": "a"}]}}]
    cases += [{"heads": content["heads"] | {"width": 2**16}}, {"heads": content["heads"] | {"depths": [1, 2, 3, 4, 5]}}]
    for changes in cases:
        file.write_text(whole, encoding="utf-8")
        reseal(file, **changes)
        try:
            good.decode(folder / kind)
        except EelibError as error:
            assert len(str(error)) < 9000, str(error)[:200]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_weights_that_are_not_finite(places, value):
    good, folder = places
    file = folder / "heads" / "model.safetensors"
    tensors = {name: tensor.double() for name, tensor in load_file(file).items()}
    tensors[min(tensors)].view(-1)[0] = value
    replace_weights(file.parent, tensors)
    with pytest.raises(EelibError, match=r"not finite in torch\.float32"):
        good.decode(folder / "heads")


def test_weights_of_other_types_shapes_and_names(places):
    good, folder = places
    file = folder / "heads" / "model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    served = {torch.float64, torch.bfloat16, torch.float16}
    for dtype in (*served, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn):
        replace_weights(file.parent, {key: tensor.to(dtype) for key, tensor in tensors.items()})
        if dtype in served:
            good.decode(folder / "heads")
        else:
            with pytest.raises(EelibError, match="expected floats"):
                good.decode(folder / "heads")
    for changed in (
        {}, {name: tensors[name]}, tensors | {"more": torch.zeros(1)}, tensors | {name: tensors[name][:1]},
        tensors | {name: tensors[name][None]}, tensors | {name: torch.zeros(())},
    ):  # fmt: skip
        replace_weights(file.parent, changed)
        with pytest.raises(EelibError, match="do not have the weights"):
            good.decode(folder / "heads")


def test_draft_vocabularies_that_are_none(places):
    good, folder = places
    file = folder / "fused" / "model.safetensors"
    tensors = load_file(file)
    drafted = tensors["draft_tokens"]
    for wrong in (drafted - 5, drafted + 90, drafted.flip(0), drafted * 0, drafted.float(), drafted.to(torch.int32)):
        replace_weights(file.parent, tensors | {"draft_tokens": wrong.contiguous()})
        with pytest.raises(EelibError, match=r"draft other tokens|expected floats"):
            good.decode(folder / "fused")


@pytest.mark.parametrize("size", [2**63 + 7, 2**62, 2**40, 10**8, 3])
def test_headers_of_absurd_size(places, size):
    good, folder = places
    for file, read in [
        (folder / "heads" / "model.safetensors", lambda: good.decode(folder / "heads")),
        (folder / "checkpoint.safetensors", lambda: good.restore(folder)),
        (folder / good.cached, lambda: good.outputs(folder)),
    ]:
        content = file.read_bytes()
        file.write_bytes(struct.pack("<Q", size) + content[8:])
        with pytest.raises(EelibError, match="safetensors"):
            read()
        length = struct.unpack("<Q", content[:8])[0]
        told = json.loads(content[8 : 8 + length])
        for value in told.values():
            if "shape" in value:
                value["shape"], value["data_offsets"] = [size], [0, size * 4]
        lied = json.dumps(told).encode()
        file.write_bytes(struct.pack("<Q", len(lied)) + lied + content[8 + length :])
        with pytest.raises(EelibError, match="safetensors"):
            read()


def test_a_model_of_more_blocks_than_its_weights_could_fill(places):
    _, folder = places
    reseal(folder / "model" / "config.json", num_hidden_layers=10**9)
    with pytest.raises(ModelError, match="1,000,000,000 blocks"):
        eelib.load_model(folder / "model")


@pytest.mark.parametrize("name", ["heads: config", "calibration", "corpus: about", "invented prompts", "notebook",
                                  "provenance", "cases", "model: config"])  # fmt: skip
def test_json_of_ten_thousand_levels(places, name):
    good, folder = places
    reader = good.readers()[name]
    for content in (b"[" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"a": "\\ud800"}', b"1" * 10_000):
        (folder / reader.file).write_bytes(content)
        if name == "provenance":
            assert "traces.parquet" in reader.read(folder)  # as if nothing had been recorded
            continue
        with pytest.raises(EelibError):
            reader.read(folder)


def test_json_of_a_hundred_megabytes(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(100 * 2**20)
    with pytest.raises(InvalidInputError, match="larger than"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"a" * LARGEST_TEXT + b'"}')
    with pytest.raises(EelibError, match="a line of more than"):
        list(eelib.corpus.reading.read_documents(str(tmp_path / "a.jsonl")))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, "a: &a [*a]", "[" * 10_000, "a: 2001-99-99", "!!python/object/apply:os.system ['touch pwned']", "? [a]\n: b",
     "\ud800", "corpus: [1]", "corpus: {1: 2}", "heads: {depths: *x}", "heads: 3", "- a", "", "cache_teacher: maybe",
     "corpus: {prompts: [a]}"],
    ids=range(15),
)  # fmt: skip
def test_recipes_and_configs_that_are_none(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (eelib.Recipe.load, read_config):
        with pytest.raises(InvalidInputError) as error:
            read(tmp_path / "a.yaml")
        assert len(str(error.value)) < 2000
    assert not (tmp_path / "pwned").exists()


def test_traces_with_other_columns(places):
    good, _ = places
    for column, values in {
        "agrees": "True", "depth": "1", "entropy": "x", "position": 0.5, "agrees_": 0,
    }.items():  # fmt: skip
        changed = good.traces.assign(**{column.rstrip("_"): values})
        with pytest.raises(EelibError):
            eelib.calibrate(changed, "entropy", 0.5)
    for column in ("agrees", "depth", "sequence", "position", "entropy"):
        with pytest.raises(EelibError):
            eelib.calibrate(good.traces.drop(columns=column), "entropy", 0.5)
    with pytest.raises(EelibError, match="NaN"):
        eelib.calibrate(good.traces.assign(entropy=np.float32("nan")), "entropy", 0.5)


@pytest.mark.parametrize(
    "tokens", [["a", "b"], [[-1, 2], [3]], [[0.5], [1.0]], [[[1]], [[2]]], [[], [1]], [None, [1]], [[2**40], [1]]]
)
def test_corpora_of_something_else(places, tokens):
    good, folder = places
    reseal(folder / "corpus" / "corpus.json", sha256={})
    shutil.rmtree(folder / "corpus" / "provenance")
    table = pd.DataFrame({"tokens": tokens, "loss_mask": [[True] * 2, [True]]})
    table.to_parquet(folder / "corpus" / "test.parquet")
    with pytest.raises(EelibError):
        good.corpus(folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "pipe", "/proc/self/mem"])
def test_links_and_pipes_in_place_of_files(places, target):
    """A file elsewhere is read as what it should be, and what is in it is not told; what has no end is not begun."""
    good, folder = places
    for reader in good.readers().values():
        file = folder / reader.file
        whole = file.read_bytes()
        file.unlink()
        os.mkfifo(file) if target == "pipe" else file.symlink_to(target)
        try:
            if target == "/etc/passwd" and reader.file == "prompts.txt":
                continue  # any text is text
            if not file.is_file() and reader.file in ("checkpoint.safetensors", good.cached):
                continue  # taken for one that is not there: the work begins anew
            reader.read(folder)
            assert reader.file.startswith("provenance"), reader.file
        except EelibError as error:
            assert "root:" not in str(error)
        finally:
            file.unlink()
            file.write_bytes(whole)


def test_nothing_is_written_through_a_link(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "w"
    outside.write_text("untouched")
    inside.mkdir()
    (inside / "a.json").symlink_to(outside)
    with atomic_write(inside / "a.json") as path:
        path.write_text("ours")
    assert outside.read_text() == "untouched" and (inside / "a.json").read_text() == "ours"


SLUGS = ["../up", "a/b", "..", ".", "", "a\nb", "/etc", "a\0b", "a\\b", "\x1b[31m"]
IN_SHELLS = ["a b", "$(touch pwned)", "a;touch pwned", "'a'", '"a"', "`touch pwned`", "{a}", "-rf", "a&b", "a|b", "*"]


@pytest.mark.parametrize("slug", [*SLUGS, *IN_SHELLS])
def test_slugs(tmp_path, slug):
    if slug in SLUGS:
        with pytest.raises(InvalidInputError, match="expected the name of a folder"):
            Workspace(slug, tmp_path)
    else:
        assert Workspace(slug, tmp_path).heads.parent == tmp_path / "data" / "heads"
    config = {"models": {slug: {"name": "a", "dtype": "float32"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="calls a model"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("workspace", ["a{b}", "a'b", 'a"b', "a\nb", "", 3, None, ["a"]])
def test_workspaces_that_patterns_cannot_hold(tmp_path, workspace):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(CONFIG) | {"workspace": workspace}))
    with pytest.raises(InvalidInputError, match="workspace"):
        read_config(tmp_path / "config.yaml")


EVIL = "e $(touch pwned); touch pwned & `touch pwned` | touch pwned #"


@pytest.mark.slow
def test_names_through_snakemakes_shell(tmp_path):
    """Workspace, recipe and prompt file of names that a shell would run: used as names, or refused."""
    code = "from pathlib import Path\nPath(workspace, 'said').write_text(f'{recipe}|{prompts}')"
    project, workspace = tiny_project(tmp_path / "project", code), tmp_path / EVIL
    (tmp_path / f"{EVIL}.yaml").write_text(RECIPE, encoding="utf-8")
    given = {"recipe": f"{tmp_path}/{EVIL}.yaml", "prompts": f"'{EVIL}'\n\"{EVIL}\""}
    config = {
        "workspace": str(workspace), "models": {"tiny": {"name": EVIL, "dtype": "float32"}},
        "parameters": {"01_train_heads": given},
    }  # fmt: skip
    (tmp_path / f"{EVIL}.config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run_one(project, tmp_path / f"{EVIL}.config.yaml", workspace)
    assert not list(tmp_path.rglob("pwned"))
    assert (workspace / "said").read_text() == f"{given['recipe']}|{given['prompts']}", done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"project", EVIL, f"{EVIL}.yaml", f"{EVIL}.config.yaml"}


class _Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_no_code_of_a_model_is_run(places, monkeypatch, tmp_path):
    _, folder = places
    monkeypatch.chdir(tmp_path)
    model = folder / "model"
    (model / "evil.py").write_text("open('pwned', 'w')\nclass Evil: pass", encoding="utf-8")
    whole = json.loads((model / "config.json").read_text(encoding="utf-8"))
    remote = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # who is asked might say yes: nobody is
    for changes in ({"auto_map": remote}, {"auto_map": remote, "model_type": "evil"}):
        (model / "config.json").write_text(json.dumps(whole | changes), encoding="utf-8")
        with suppress(ModelError):
            eelib.load_model(model, device="cpu")
    (model / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    (model / "model.safetensors").unlink()
    with (model / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": _Evil()}, file)
    with pytest.raises(ModelError):
        eelib.load_model(model, device="cpu")
    assert not (tmp_path / "pwned").exists()


def test_no_pickle_in_a_batch_of_text(places, monkeypatch, tmp_path):
    good, folder = places
    monkeypatch.chdir(tmp_path)
    np.savez(folder / "batch.npz", np.array([_Evil()]), np.zeros(1), allow_pickle=True)
    with pytest.raises(EelibError, match="damaged"):
        good.readers()["batch of text"].read(folder)
    assert not (tmp_path / "pwned").exists()


RUNS_CODE = re.compile(
    r"^\s*\"?(?:import|from) (?:pickle|dill|cloudpickle|marshal|shelve|joblib)\b"
    r"|torch\.load\(|yaml\.(?:unsafe_)?load\(|(?<!\.)\beval\(|(?<!\.)\bexec\(|read_pickle|extractall|os\.system"
    r"|trust_remote_code=True|weights_only=False|allow_pickle=True|shell=True",
    re.MULTILINE,
)


def test_no_pickle_and_no_code_of_others_in_the_source():
    """Of what can run code, the source has only the words that forbid it."""
    files = [
        *(PROJECT / "eelib").rglob("*.py"),
        *(PROJECT / "workflow").rglob("*.py"),
        PROJECT / "workflow" / "Snakefile",
    ]
    for file in [*files, *(PROJECT / "notebooks").glob("*.ipynb")]:
        text = file.read_text(encoding="utf-8")
        assert not RUNS_CODE.search(text), f"{file}: {RUNS_CODE.search(text)[0]}"
        for call in re.findall(r"Auto\w+\.from_pretrained\((?:[^()]|\([^()]*\))*\)", text):
            assert "trust_remote_code=False" in call, f"{file}: {call}"


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil", "C:\\evil"])
def test_archives_unpack_nothing_under_names_of_theirs(tmp_path, name):
    wheel = tmp_path / "w" / "a.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, "evil")
        archive.writestr("good", "good")
    assert member(wheel, "good") == b"good"
    with pytest.raises(FetchError, match="cannot be read"):
        member(wheel, "absent")
    wheel.write_bytes(wheel.read_bytes()[:40])
    with pytest.raises(FetchError, match="cannot be read"):
        member(wheel, "good")
    assert {path.name for path in tmp_path.rglob("*")} == {"w", "a.whl"}


def test_a_table_that_was_changed_is_not_what_was_recorded(places):
    good, folder = places
    good.traces.assign(agrees=True).to_parquet(folder / "traces.parquet")
    with pytest.raises(InvalidInputError, match="not what was written"):
        read_table(folder / "traces.parquet")
    (folder / "provenance" / "traces.json").unlink()
    assert read_table(folder / "traces.parquet").agrees.all()


def test_yaml_that_is_fine(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert read_yaml(tmp_path / "a.yaml", "config") == {"a": [1, 2], "b": [1, 2]}
