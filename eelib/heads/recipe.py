"""Recipes: corpus, heads and training in one file.

`accelerate launch -m eelib.heads.recipe config/heads.yaml --model EleutherAI/pythia-410m --slug pythia-410m`
"""

import argparse
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.loading import batch_dtype, load_model
from eelib.backbone.segments import Backbone
from eelib.backbone.teacher import Teacher
from eelib.corpus.corpus import Corpus, load_corpus
from eelib.corpus.documents import CorpusConfig
from eelib.display import table_html
from eelib.errors import EelibError, InvalidInputError, TrainingError
from eelib.heads.exit_heads import ExitHeads, HeadConfig
from eelib.heads.training import TrainConfig, train_heads
from eelib.settings import flag
from eelib.workspace import Workspace, expanded, read_yaml


@dataclass(frozen=True)
class Recipe:
    """Recipe for heads, for `make_heads` or `python -m eelib.heads.recipe`.

    Attributes:
        corpus: which text.
        heads: arguments of `ExitHeads.init` that are known before the text is (depths, kind, draft_vocab_size, width,
            seed).
        training: how they are trained.
        cache_teacher: cache teacher outputs on disk until the heads are done, so that the model runs once for them,
            while it writes the text, instead of every epoch.
        fused: arguments of a second set of heads, of kind `fused`, from the same text; None for no such set. In a file
            their draft vocabulary is that of the others by default.

    Example:
        >>> recipe = Recipe(CorpusConfig(documents=200), {"depths": [2, 4]}, TrainConfig(epochs=1))
        >>> recipe.heads["depths"], recipe.cache_teacher
        ([2, 4], True)
    """

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    heads: Mapping[str, object] = field(default_factory=lambda: {"depths": 4})
    training: TrainConfig = field(default_factory=TrainConfig)
    cache_teacher: bool = True
    fused: Mapping[str, object] | None = None

    def _repr_html_(self) -> str:
        rows = [("corpus", _changed(self.corpus)), ("heads", self.heads), ("fused", self.fused)]
        rows += [("training", _changed(self.training)), ("cache_teacher", self.cache_teacher)]
        return table_html("Recipe: what differs from the defaults", rows)

    @classmethod
    def load(cls, path: str | Path, changes: Mapping[str, object] | None = None, seed: int = 0) -> "Recipe":
        """Read a recipe from a YAML file, with some settings changed.

        Text files in it are relative to its own folder, or to the working folder.

        Args:
            changes: nested like the file, {"corpus": {"documents": 100}}.
            seed: of text, heads and training, where the file names none.

        Raises:
            InvalidInputError: the file is missing or no recipe, or a setting is unknown or out of range.
        """
        path, changes = expanded(path), dict(changes or {})
        loaded = read_yaml(path, "recipe")
        parts = {"corpus": CorpusConfig, "heads": HeadConfig, "fused": HeadConfig, "training": TrainConfig}
        sections = [of for given in (loaded, changes) for name, of in given.items() if name in parts and of is not None]
        words = all(isinstance(of, Mapping) and all(isinstance(key, str) for key in of) for of in sections)
        if not words or not set(loaded) | set(changes) <= {*parts, "cache_teacher"}:
            raise InvalidInputError(
                f"{path} and the changes {changes} hold something else than a recipe: expected settings of "
                f"{', '.join(parts)}, and cache_teacher."
            )
        made = {}
        for name, kind in parts.items():
            named = {**(loaded.get(name) or {}), **(changes.get(name) or {})}
            if name == "fused":
                if not named:
                    continue
                named = {"kind": "fused", "draft_vocab_size": made["heads"].get("draft_vocab_size"), **named}
            settings = {"seed": seed, **named}
            unknown = sorted(set(settings) - {setting.name for setting in fields(kind)})
            if unknown:
                raise InvalidInputError(
                    f"{path}: {name} has no setting {', '.join(unknown)}; it has "
                    f"{', '.join(setting.name for setting in fields(kind))}."
                )
            for key in {"source", "prompts"} & set(settings):
                if isinstance(settings[key], str) and expanded(path.parent / settings[key]).is_file():
                    settings[key] = str(path.parent / settings[key])
            if kind is HeadConfig:
                if "depths" not in settings or (name == "fused" and settings["kind"] != "fused"):
                    raise InvalidInputError(f"{path}: {name}: {named}: expected depths, and in `fused` no other kind.")
                HeadConfig(**{**settings, "depths": (1,)})  # for its errors, before hours of writing text
            made[name] = settings if kind is HeadConfig else kind(**settings)
        cache = changes.get("cache_teacher", loaded.get("cache_teacher", True))
        return cls(**made, cache_teacher=flag("cache_teacher", cache))


def _changed(config: CorpusConfig | TrainConfig) -> dict[str, object]:
    """The settings that are not the default ones."""
    default = type(config)()
    return {name: value for name, value in vars(config).items() if value != getattr(default, name)}


def small_recipe(model: PreTrainedModel, seed: int = 0) -> Recipe:
    """Recipe of one small `fused` head that drafts, for a first look.

    About a minute on two cores (135M parameters).
    """
    few = 4096 if Backbone.of(model).vocab_size > 4096 else None
    shallow = min(2, Backbone.of(model).n_blocks - 1)
    return Recipe(
        CorpusConfig(documents=300, length=96, prompt_length=32, batch_size=300, int8=True, seed=seed),
        {"depths": [shallow], "kind": "fused", "draft_vocab_size": few, "seed": seed},
        TrainConfig(epochs=3, batch_size=2, learning_rate=2e-3, sampled_classes=1024, seed=seed),
    )


@dataclass(frozen=True)
class MadeHeads:
    """Result of `make_heads`.

    Attributes:
        corpus: the text.
        heads: trained heads.
        fused: trained `fused` heads; None if the recipe has none.
        report: of `train_heads`, for both, with a column `kind`.
    """

    corpus: Corpus
    heads: ExitHeads
    fused: ExitHeads | None
    report: pd.DataFrame


def make_heads(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, workspace: Workspace | None
) -> MadeHeads:
    """Make and save corpus and heads by a recipe, resumably.

    Args:
        workspace: where to save. None keeps them in memory and deletes intermediate files.

    Raises:
        InvalidInputError: several processes without a workspace, through whose files they share text and teacher
            outputs.
        TrainingError: another process makes heads in this workspace.
    """
    if workspace is None and PartialState().num_processes > 1:
        raise InvalidInputError("Several processes share text through files: pass make_heads a workspace.")
    if workspace is None:
        with TemporaryDirectory(prefix="eelib-") as folder:
            return make_heads(recipe, model, tokenizer, Workspace("heads", folder))
    state, lock = PartialState(), FileLock(workspace.checkpoints / ".lock", timeout=0)
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        with lock if state.is_main_process else nullcontext():
            return _make(recipe, model, tokenizer, workspace)
    except Timeout as error:
        raise TrainingError(
            f"Another process makes heads in {workspace.checkpoints}: wait for it to end, or use another workspace."
        ) from error


def _make(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, workspace: Workspace
) -> MadeHeads:
    """What `make_heads` does, while no other process does it there."""
    scratch, state = workspace.checkpoints, PartialState()
    parts = {"heads": recipe.heads} | ({"fused": {**recipe.fused, "kind": "fused"}} if recipe.fused else {})
    read = [Backbone.of(model).check_depths(settings["depths"]) for settings in parts.values()]
    depths = tuple(sorted({depth for some in read for depth in some}))
    teacher = Teacher(model, depths, scratch / "teacher" if recipe.cache_teacher else None)
    corpus = load_corpus(recipe.corpus, model, tokenizer, scratch / "corpus", teacher if recipe.cache_teacher else None)
    if recipe.cache_teacher:  # those on text that the model has not written just now
        mine = slice(state.process_index, None, state.num_processes)
        teacher.cache(corpus.train[mine], corpus.loss_mask["train"][mine])
        state.wait_for_everyone()
    made, reports = {}, []
    for name, settings in parts.items():
        heads = ExitHeads.init(model, **settings, sequences=corpus.train, tokenizer=tokenizer)
        report = train_heads(
            model, heads, corpus.train, recipe.training, loss_mask=corpus.loss_mask["train"], teacher=teacher,
            validation=corpus.test, validation_loss_mask=corpus.loss_mask["test"],
            checkpoint=scratch / f"{name}.safetensors", keep_checkpoint=True, log=scratch / f"{name}.jsonl",
        )  # fmt: skip
        made[name] = heads
        reports.append(report.assign(kind=heads.config.kind))
    if state.is_main_process:
        corpus.save(workspace.corpus)
        for name, heads in made.items():
            heads.save_pretrained(getattr(workspace, name))
        for name in made:
            (scratch / f"{name}.safetensors").unlink(missing_ok=True)
        if recipe.cache_teacher:
            # Text first: outputs computed anew differ in their last bits, so a repetition must write both again.
            shutil.rmtree(scratch / "corpus", ignore_errors=True)
            teacher.clear_cache()
    state.wait_for_everyone()
    return MadeHeads(corpus, made["heads"], made.get("fused"), pd.concat(reports, ignore_index=True))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status. Errors print without traceback."""
    parser = argparse.ArgumentParser(prog="python -m eelib.heads.recipe", description="Make heads by a recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", default="smollm2-135m", help="a packaged name, a folder, or a Hub id")
    parser.add_argument("--slug", help="folder name of this model's artefacts; default: the last part of its name")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--workspace", help="folder that holds data/; default: EELIB_HOME or the working folder")
    args = parser.parse_args(arguments)
    # accelerate counts several processes on CPUs only if told so, and leaves `launch --cpu` to who asks.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    try:
        recipe = Recipe.load(args.recipe)
        dtype = batch_dtype(args.dtype, state.device)
        model, tokenizer = load_model(args.model, dtype=dtype, device=state.device)
        workspace = Workspace(args.slug or args.model.rstrip("/").rpartition("/")[2], args.workspace)
        made = make_heads(recipe, model, tokenizer, workspace)
    except EelibError as error:
        parser.exit(1, f"error: {error}\n")
    if state.is_main_process:
        print(made.corpus.report().to_string(index=False))
        for heads, folder in ((made.heads, workspace.heads), (made.fused, workspace.fused)):
            if heads is not None:
                print(pd.DataFrame(heads.training_record["validation"]).to_string(index=False))
                print(f"Heads of kind {heads.config.kind} are in {folder}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
