"""Docstrings: first lines that a reader can scan, and examples at the front door that run."""

import ast
import doctest
import re

import pytest
import torch
from tiny import PROJECT, chatty, own_text, prompts, random_heads

import eelib
from eelib.confidence import metrics

NAMES = sorted(name for name in eelib.__all__ if not (PROJECT / "eelib" / name).is_dir())
NAMES = [name for name in NAMES if callable(getattr(eelib, name))]
FILES = sorted(path.relative_to(PROJECT) for room in ("eelib", "workflow") for path in (PROJECT / room).rglob("*.py"))


@pytest.fixture(scope="module")
def namespace(llama, tmp_path_factory):
    """What examples may use: all names of the front door, a model, heads, text and traces."""
    heads, tokenizer, folder = random_heads(llama), chatty(), tmp_path_factory.mktemp("model")
    sequences = [own_text(llama, prompt, max_new_tokens=12)[0] for prompt in prompts(8)]
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    names = {name: getattr(eelib, name) for name in eelib.__all__} | {
        "torch": torch, "model": llama, "tokenizer": tokenizer, "heads": heads, "sequences": sequences,
        "input_ids": prompts(1)[0], "traces": eelib.record_traces(llama, heads, sequences), "folder": folder,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_KNOWN", dict(metrics._KNOWN))  # one example registers a metric
        yield names


@pytest.mark.parametrize("name", NAMES)
def test_every_name_at_the_front_door_has_an_example_that_runs(name, namespace):
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(eelib, name), name, globs=dict(namespace))
    assert example.examples, f"{name} has no example"
    report = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_first_lines_are_short_sentences_and_public_names_have_one(file):
    for name, node in documented(ast.parse((PROJECT / file).read_text(encoding="utf-8"))):
        text = ast.get_docstring(node)
        if text is None:
            assert name.startswith("_") or "." in name or isinstance(node, ast.Module), f"{name} has no docstring"
            continue
        first, *rest = text.splitlines()
        assert len(first.split()) <= 12 and len(first) <= 110, f"{name}: {first}"
        assert re.match(r"[A-Z`]", first) and first.endswith((".", "?")), f"{name}: {first}"
        assert not rest or not rest[0], f"{name}: the second line is not empty"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_dataclasses_list_their_fields(file):
    for name, node in documented(ast.parse((PROJECT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
            fields = [line.target.id for line in node.body if isinstance(line, ast.AnnAssign)]
            listed = ast.get_docstring(node).partition("Attributes:\n")[2].partition("\n\n")[0]
            names = ", ".join(re.findall(r"^    ([a-z_0-9, ]+): ", listed, re.MULTILINE)).split(", ")
            assert sorted(names) == sorted(fields) or not fields, f"{name} lists {names} and has {fields}"


def documented(tree, prefix=""):
    """Module, classes and functions with their dotted names; functions inside functions are nobody's business."""
    yield prefix or "module", tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name = f"{prefix}.{node.name}" if prefix else node.name
            if isinstance(node, ast.ClassDef):
                yield from documented(node, name)
            else:
                yield name, node
