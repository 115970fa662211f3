"""Which notebook needs and makes what. `make paper` runs this through `python -m eelib.batch paper`.

A job makes every artefact under a temporary name and renames it, so outputs are flagged `update`: Snakemake then
neither deletes them before a job nor loses the earlier ones when it fails. The executed notebook is the exception:
it goes when its job fails, and by missing it makes the job run again.
"""

import json
import os
import re

import psutil

from eelib.batch import code_hash

WORKSPACE = config.get("workspace", ".")
MODELS = config["models"]


def path(*parts):
    return os.path.normpath(os.path.join(WORKSPACE, *parts))


def artefacts(kind, *files):
    return [path("data", kind, "{model}", file) for file in files]


def figures(*names):
    return [path("figures", "{model}", f"{name}.{kind}") for name in names for kind in ("pdf", "png", "csv")]


CORPORA = artefacts("corpora", "corpus.json", "train.parquet", "calibration.parquet", "test.parquet")
HEADS = artefacts("heads", "model.safetensors", "config.json", "README.md")
TRACES = artefacts("traces", "calibration.parquet", "test.parquet", "others.parquet")
CALIBRATION_TRACES = TRACES[:1]

# notebook: (what it needs, what it makes); those of FULL take longer and run in `make paper-full` only
NOTEBOOKS = {
    "00_quickstart": (HEADS + CORPORA, figures("00_quickstart")),
    "01_train_heads": ([], CORPORA + HEADS + artefacts("results", "training.parquet") + figures("01_training")),
    "02_confidence": (
        HEADS + CORPORA,
        TRACES + artefacts("results", "separation.parquet") + figures("02_densities", "02_roc", "02_risk_coverage", "02_auroc"),
    ),
    "03_calibration": (TRACES, artefacts("results", "calibration.parquet", "violations.parquet")
        + figures("03_calibration", "03_violations", "03_shift")),
    "04_speed_accuracy": (
        HEADS + TRACES,
        artefacts("results", "speed_accuracy.parquet")
        + figures("04_accuracy", "04_speed", "04_exits", "04_anytime"),
    ),
    "05_acceptance": (
        HEADS + CALIBRATION_TRACES,
        artefacts("results", "acceptance.parquet", "predicted.parquet")
        + figures("05_acceptance", "05_speed", "05_predicted"),
    ),
}

FULL = {
    "06_heads": (CORPORA, artefacts("results", "heads.parquet") + figures("06_cost", "06_tokens")),
    "07_robustness": (
        HEADS + TRACES,
        artefacts("results", "robustness.parquet") + figures("07_attacks", "07_monitor"),
    ),
    "08_layerskip_training": (
        CORPORA + HEADS,
        artefacts("results", "layerskip_training.parquet") + figures("08_exits", "08_cost"),
    ),
    "09_peers": (
        CORPORA + HEADS + CALIBRATION_TRACES + artefacts("results", "acceptance.parquet"),
        artefacts("results", "peers.parquet") + figures("09_peers", "09_pareto"),
    ),
    "10_duel": (
        HEADS + CALIBRATION_TRACES + artefacts("results", "acceptance.parquet"),
        artefacts("results", "duel.parquet") + figures("10_duel"),
    ),
}

unknown = set(config.get("parameters") or {}) - set(NOTEBOOKS | FULL)
if unknown:
    raise WorkflowError(f"config: parameters for unknown notebooks {sorted(unknown)}; known: {sorted(NOTEBOOKS | FULL)}")


def executed(notebook):
    return path("data", "runs", "{model}", f"{notebook}.ipynb")


def parameters(notebook):
    """The parameters of a notebook's run as JSON, a function of the wildcards."""

    def of(wildcards):
        model = MODELS[wildcards.model]
        given = {"model": model["name"], "slug": wildcards.model, "dtype": model["dtype"]}
        given |= {"workspace": str(WORKSPACE), "seed": config.get("seed", 0)}
        return json.dumps(given | ((config.get("parameters") or {}).get(notebook) or {}))

    return of


def recipe(notebook):
    """What the recipe of a notebook's run says, if it has one: another recipe is a reason to run it again."""
    if notebook not in ("01_train_heads", "06_heads"):
        return None
    file = ((config.get("parameters") or {}).get(notebook) or {}).get("recipe", "config/heads.yaml")
    return open(file).read() if os.path.isfile(file) else None


def torch_threads():
    """As many as torch takes by itself: Snakemake sets OMP_NUM_THREADS, and timings should be JupyterLab's."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else psutil.cpu_count(logical=False) or os.cpu_count()


wildcard_constraints:
    model="|".join(map(re.escape, MODELS)),


# Intermediate artefacts too: else a failed run further up would leave a stale figure that counts as done.
rule all:
    input:
        [expand([executed(notebook), *made], model=MODELS) for notebook, (_, made) in NOTEBOOKS.items()],


rule full:
    input:
        rules.all.input,
        [expand([executed(notebook), *made], model=MODELS) for notebook, (_, made) in FULL.items()],


for notebook, (needed, made) in (NOTEBOOKS | FULL).items():

    rule:
        name:
            f"notebook_{notebook}"
        input:
            needed,
            # Saving a notebook changes its time, but only an edited code cell is a reason to run it again.
            notebook=ancient(f"notebooks/{notebook}.ipynb"),
        output:
            update(made),
            executed=executed(notebook),
        params:
            parameters=parameters(notebook),
            code=code_hash(f"notebooks/{notebook}.ipynb"),
            recipe=recipe(notebook),
        threads: torch_threads()
        resources:
            machine=config.get("exclusive", 1),  # one notebook at a time on one machine: they measure time
            gpu=config.get("gpu", 0),
            mem_mb=config.get("mem_mb", 8000),
            runtime=config.get("runtime", 240),
        retries: 1
        shell:
            "python -m eelib.batch run {input.notebook:q} {output.executed:q} --parameters {params.parameters:q}"
