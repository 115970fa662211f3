"""The main job on small models, and which results must agree."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml
from tiny import PROJECT

ARTEFACTS = ("corpora/{}/*.parquet", "heads/{}/model.safetensors", "fused/{}/model.safetensors")
"""What must be equal to the last bit, below data/: patterns, with a place for the model."""
TIMED = ("second", "speed", "predicted", "measured", "error", "scale", "bytes", "front")
"""What names of columns contain that depend on the clock."""
CHOSEN = ("05_speed", "05_curve", "09_")
"""Beginnings of the names of tables whose settings, and order of rows, the clock chose."""
SETTLED = ("decoder", "equal", "lossless", "parameters", "n_blocks")
"""Columns of such tables that are equal whatever was chosen."""
LEFT = ("**/.eelib-*", "**/*.part.ipynb", "**/*.failed.ipynb", "**/*.tmp")
"""What must not be left behind."""


def settings_of_tests():
    """The small parameters, and the GPT-NeoX, of the notebooks' tests."""
    file = PROJECT / "tests" / "workflow" / "test_notebooks.py"
    spec = importlib.util.spec_from_file_location("small_notebooks", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configured(workspace: Path, models: dict[str, str], **settings: object) -> list[str]:
    """The command of a batch in this workspace.

    Models and their text are kept beside it.

    Args:
        models: {slug: "gpt-neox", tiny and random, with a seed if several: "gpt-neox 1"; or a packaged model}.
        settings: more of the config, such as gpu=1.
    """
    of_tests = settings_of_tests()
    parameters, described = dict(of_tests.SMALL), {}
    workspace.mkdir(parents=True, exist_ok=True)
    for slug, model in models.items():
        described[slug] = {"name": model, "dtype": "bfloat16"}
        kind, _, seed = model.partition(" ")
        if kind == "gpt-neox":
            shared = workspace.parent / "shared" / slug
            if not shared.exists():
                shared.mkdir(parents=True)
                of_tests.pythia_like(shared, int(seed or 0))
            described[slug] = {"name": str(shared / "model"), "dtype": "float32"}
            text = {"source": str(shared / "text"), "documents": None, "length": 48}
            changes = {"corpus": text, "heads": {"draft_vocab_size": None}}
            own = {name: parameters[name] | {"changes": changes} for name in ("01_train_heads", "06_heads")}
            described[slug]["parameters"] = own
    config = {"workspace": str(workspace), "models": described, "parameters": parameters, **settings}
    (workspace / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return [sys.executable, "-m", "workflow.batch", "paper", "--config", str(workspace / "config.yaml")]


def results(workspace: Path, model: str = "*") -> Iterator[tuple[str, str]]:
    """Digest of everything that must be equal, by name."""
    for pattern in ARTEFACTS:
        for file in sorted((workspace / "data").glob(pattern.format(model))):
            yield file.relative_to(workspace).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted((workspace / "figures").glob(f"{model}/*.csv")):
        table = pd.read_csv(file)
        if file.name.startswith(CHOSEN):
            settled = [name for name in SETTLED if name in table]
            table = table[settled]
            if "decoder" in table:  # some names say a depth that was chosen
                table = table.assign(decoder=table.decoder.str.replace(r"=\d+", "", regex=True))
            table = table.sort_values(settled, ignore_index=True) if settled else table
        untimed = table[[name for name in table if not any(part in name for part in TIMED)]]
        yield file.relative_to(workspace).as_posix(), hashlib.sha256(untimed.to_csv().encode()).hexdigest()


def differing(expected: Path, found: Path, model: str = "*") -> tuple[list[str], int]:
    """Names of what differs between two workspaces, and how much was compared."""
    one, other = dict(results(expected, model)), dict(results(found, model))
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)), len(one)
