"""Heads trained on chat, on code and on both, measured on both (as AdaDecode does, arXiv 2506.03700).

`make bench-heads ARGS=own-text`: `fused` heads by the default recipe, each on as many tokens; thresholds from text of
the measured kind, so that only the heads differ; DSSD tuned by the clock for each. Forty minutes on two cores; run it
alone. Texts and heads stay in data/bench: delete them for other recipes.
"""

from pathlib import Path

import pandas as pd

import eelib
from eelib import evaluation
from eelib.backbone.teacher import Teacher
from eelib.corpus.corpus import Corpus, load_corpus
from eelib.evaluation.comparison import relative_speed
from eelib.statistics import mean_interval

PROJECT = Path(__file__).parents[2]
RECIPES = {"chat": "config/heads.yaml", "code": "config/code_heads.yaml"}
PROMPTS = {"chat": None, "code": "code_description"}  # GSM8K's questions, HumanEval's tasks
TUNING, MEASURED, LENGTH = 10, 16, {"max_new_tokens": 64}


def corpus_of(recipe: eelib.Recipe, model, tokenizer, folder: Path) -> Corpus:
    """The recipe's text, written once."""
    if not (folder / "corpus.json").is_file():
        load_corpus(recipe.corpus, model, tokenizer, folder.parent / "writing").save(folder)
    return Corpus.load(folder)


def portion(corpus: Corpus, tokens: int) -> tuple[list, list]:
    """So many of the training split's documents, from the first on, that about `tokens` of their tokens count."""
    masks, size = corpus.loss_mask["train"], 0
    for number, mask in enumerate(masks):
        if size >= tokens:
            return corpus.train[:number], masks[:number]
        size += int(mask.sum())
    return corpus.train, masks


def heads_of(
    recipe: eelib.Recipe, texts: list, masks: list, model, tokenizer, teacher: Teacher, folder: Path
) -> eelib.ExitHeads:
    """Heads on these texts, trained once."""
    if not (folder / "config.json").is_file():
        heads = eelib.ExitHeads.init(model, **recipe.fused, sequences=texts, tokenizer=tokenizer)
        eelib.train_heads(model, heads, texts, recipe.training, loss_mask=masks, teacher=teacher)
        heads.save_pretrained(folder)
    return eelib.ExitHeads.from_pretrained(folder, model)


def measure(heads: dict[str, eelib.ExitHeads], kind: str, corpus: Corpus, model, tokenizer) -> pd.DataFrame:
    """Agreement and speed of all heads on one kind of text."""
    asked = evaluation.load_prompts(tokenizer, TUNING + MEASURED, file=PROMPTS[kind])
    tuning, held_out = asked[:TUNING], asked[TUNING:]
    texts, settings = evaluation.OwnTexts.write(model, tuning, **LENGTH), []
    timed = evaluation.time_pieces(model, next(iter(heads.values())), tuning[:3], **LENGTH)  # all are of one size
    for trained_on, these in heads.items():
        traces = eelib.record_traces(model, these, corpus.calibration, loss_mask=corpus.loss_mask["calibration"])
        settings += evaluation.dssd_settings(
            traces, these, "entropy", (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (2, 3, 4, 6), kind=trained_on
        )
    tuned = evaluation.tune(model, settings, texts, dict.fromkeys(heads, timed), finalists=1, **LENGTH)
    decoders = {"plain": evaluation.PLAIN.decoder(model, **LENGTH)}
    decoders |= {trained_on: setting.decoder(model, **LENGTH) for trained_on, setting in tuned.chosen.items()}
    runs = evaluation.compare(decoders, held_out, reference="plain")
    if not (ties := evaluation.mismatches(model, runs, held_out)).near_tie.all():
        raise AssertionError(f"a difference that is no near-tie: {ties}")
    own, speeds = evaluation.OwnTexts.of_runs(held_out, runs), evaluation.summarise(runs).set_index("decoder")
    rows = []
    for trained_on, these in heads.items():
        traces = eelib.record_traces(model, these, own.sequences, loss_mask=own.loss_mask)
        agreement = mean_interval(traces.groupby("sequence").agrees.mean())
        rows.append({
            "trained_on": trained_on, "measured_on": kind, "tokens": these.training_record["tokens"],
            **dict(zip(("agreement", "agreement_low", "agreement_high"), agreement, strict=True)),
            **tuned.chosen[trained_on].parameters,
            **speeds.loc[trained_on].filter(regex="^(acceptance_rate|speed_ratio)(_low|_high)?$"),
            **relative_speed(runs, trained_on, "both"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def own_text(name: str, folder: Path) -> pd.DataFrame:
    """The table of three heads on two kinds of text.

    Args:
        name: of the model.
        folder: for the texts and the teacher's outputs.
    """
    model, tokenizer = eelib.load_model(name, dtype="bfloat16")
    recipes = {kind: eelib.Recipe.load(PROJECT / file) for kind, file in RECIPES.items()}
    corpora = {
        kind: corpus_of(recipe, model, tokenizer, folder / name / kind / "corpus") for kind, recipe in recipes.items()
    }
    budget = min(sum(int(mask.sum()) for mask in corpus.loss_mask["train"]) for corpus in corpora.values())
    parts = {kind: portion(corpus, budget) for kind, corpus in corpora.items()}
    halves = [portion(corpus, budget // 2) for corpus in corpora.values()]
    parts["both"] = tuple(one + other for one, other in zip(*halves, strict=True))
    recipe = recipes["chat"]
    teacher = Teacher(model, recipe.fused["depths"], folder / name / "teacher")
    heads = {}
    for kind, part in parts.items():
        teacher.cache(*part)
        heads[kind] = heads_of(recipe, *part, model, tokenizer, teacher, folder / name / kind / "heads")
    return pd.concat([measure(heads, kind, corpora[kind], model, tokenizer) for kind in corpora], ignore_index=True)
