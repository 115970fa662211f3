"""Benchmark cases that come with the set-up, scored with early exits: teacher-forced, one pass for all thresholds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.segments import Backbone, pad
from eelib.confidence.metrics import confidence, known_metrics
from eelib.corpus.chat import as_prompt
from eelib.corpus.reading import read_documents
from eelib.errors import InvalidInputError
from eelib.heads.exit_heads import ExitHeads
from eelib.packaged import case_file

MULTIPLE_CHOICE = ("hellaswag", "truthfulqa_mc1")


@dataclass(frozen=True)
class Case:
    """A multiple-choice case: the model ranks `choices` as continuations of `context`; `answer` indexes the right one.

    per_character: likelihoods are compared per character of the choice, not as sums.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    per_character: bool


def load_cases(task: str) -> list[Case]:
    """The packaged cases of `hellaswag` (log-likelihood per character) or `truthfulqa_mc1` (zero-shot; sums)."""
    if task not in MULTIPLE_CHOICE:
        raise InvalidInputError(f"Unknown task {task!r}: expected one of {', '.join(MULTIPLE_CHOICE)}.")
    rows = read_rows(task)
    if task == "hellaswag":
        return [
            Case(f"{r['activity_label']}: {r['ctx']}", tuple(r["endings"]), r["expected_index"], True) for r in rows
        ]
    return [Case(f"Q: {r['question']}\nA:", tuple(r["choices"]), r["expected_index"], False) for r in rows]


def question_prompts(tokenizer: PreTrainedTokenizerBase, n: int, skip: int = 0) -> list[Int[Tensor, "1 position"]]:
    """GSM8K questions number skip, ..., skip + n - 1 as prompts: chat turns where the tokenizer has a template."""
    return [as_prompt(text, tokenizer) for text in question_texts(tokenizer, n, skip)]


def load_prompts(
    tokenizer: PreTrainedTokenizerBase, n: int, skip: int = 0, file: str | Path | None = None
) -> list[Int[Tensor, "1 position"]]:
    """n prompts to decode, from number `skip` on: of a file, or GSM8K questions.

    Args:
        file: a .jsonl file with a field "text" or a .txt file with blank lines between prompts (`read_documents`); None
            for `question_prompts`.

    Raises:
        InvalidInputError: fewer prompts are there. CorpusError: the file cannot be read.
    """
    return [as_prompt(text, tokenizer) for text in prompt_texts(tokenizer, n, skip, file)]


def prompt_texts(
    tokenizer: PreTrainedTokenizerBase, n: int, skip: int = 0, file: str | Path | None = None
) -> list[str]:
    """The prompts of `load_prompts` as words, for a user's turn or, without a template, as the text to go on with."""
    if file is None:
        return question_texts(tokenizer, n, skip)
    texts = list(islice(read_documents(str(file)), skip, skip + n))
    if len(texts) < n:
        raise InvalidInputError(
            f"{skip + n} prompts asked for, {file} has {skip + len(texts)}: give more, or ask for less."
        )
    return [text.strip() for text in texts]


def question_texts(tokenizer: PreTrainedTokenizerBase, n: int, skip: int = 0) -> list[str]:
    """The same questions as words."""
    rows = read_rows("gsm8k")
    if skip + n > len(rows):
        raise InvalidInputError(f"{skip + n} questions asked for, {len(rows)} are there.")
    template = "{}" if tokenizer.chat_template else "Question: {}\nAnswer:"
    return [template.format(row["prompt"]) for row in rows[skip : skip + n]]


@torch.no_grad()
def score_choices(
    model: PreTrainedModel,
    heads: ExitHeads,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    batch_size: int = 16,
) -> pd.DataFrame:
    """Scores every choice at every exit. One row per case, choice, token of the choice and depth, in that order.

    Columns: case, choice, token, depth (the number of blocks = the full model), one per metric (from the logits the
    head drafts with; -inf where it declines; +inf for the full model, which always speaks), log_prob (nats, of the
    choice's token, over the whole vocabulary), greedy (whether no other token has a larger logit there).
    """
    backbone, rows = Backbone.of(model), []
    texts = [
        (*_encode(tokenizer, case.context, choice), i, j)
        for i, case in enumerate(cases)
        for j, choice in enumerate(case.choices)
    ]
    texts.sort(key=lambda text: len(text[0]))  # like lengths together: less padding
    for start in tqdm(range(0, len(texts), batch_size), desc="scoring choices", unit="batch"):
        batch = texts[start : start + batch_size]
        first = torch.tensor([text[1] for text in batch])
        of_choice = [torch.arange(len(text[0])) >= text[1] for text in batch]
        tokens, of_choice = pad([text[0] for text in batch], of_choice)
        scored = of_choice[:, 1:]  # the position before each token of the choice
        states = backbone.states(tokens.to(model.device), [*heads.depths, backbone.n_blocks])
        row, position = scored.nonzero(as_tuple=True)
        target = tokens[row, position + 1].to(model.device)
        index = {
            "case": np.array([text[2] for text in batch])[row],
            "choice": np.array([text[3] for text in batch])[row],
            "token": (position + 1 - first[row]).numpy(),
        }
        for depth, state in states.items():
            hidden = state[:, :-1][scored.to(model.device)]
            columns = score_tokens(backbone, heads, depth, hidden, target)
            rows.append(pd.DataFrame({**index, "depth": depth, **{k: v.cpu().numpy() for k, v in columns.items()}}))
    table = pd.concat(rows, ignore_index=True)
    return table.sort_values(["case", "choice", "token", "depth"], ignore_index=True)


def answers(
    scores: pd.DataFrame, cases: Sequence[Case], metric: str, thresholds: Mapping[int, float | None]
) -> pd.DataFrame:
    """What the model would answer if each scored token left at the first head whose score reaches its threshold.

    Args:
        scores: from `score_choices`.
        thresholds: by depth; a depth that is missing or None never exits. {} is the full model.

    Returns:
        One row a case: case, predicted, correct, log_prob (of the right choice, nats), blocks (mean over its scored
        tokens).
    """
    limit = scores.depth.map({d: t for d, t in thresholds.items() if t is not None}).fillna(np.inf)
    speaks = (scores[metric] >= limit).to_numpy()  # the full model's score is +inf
    chosen = scores[speaks].drop_duplicates(["case", "choice", "token"])  # the shallowest that speaks
    by_choice = chosen.groupby(["case", "choice"]).log_prob.sum().reset_index()
    lengths = [
        len(cases[row.case].choices[row.choice]) if cases[row.case].per_character else 1
        for row in by_choice.itertuples()
    ]
    by_choice["ranked"] = by_choice.log_prob / lengths
    best = by_choice.loc[by_choice.groupby("case").ranked.idxmax()].set_index("case").choice
    truth = pd.Series([case.answer for case in cases], name="answer")
    right = by_choice[by_choice.choice == by_choice.case.map(truth)].set_index("case").log_prob
    result = pd.DataFrame({"predicted": best, "correct": best == truth, "log_prob": right})
    result["blocks"] = chosen.groupby("case").depth.mean()
    return result.reset_index(names="case")


@torch.no_grad()
def score_tokens(
    backbone: Backbone,
    heads: ExitHeads | None,
    depth: int,
    hidden: Float[Tensor, "token hidden"],
    target: Int[Tensor, " token"],
    metrics: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """What is said at `depth` of the tokens that follow some states.

    Returns:
        A tensor [token] each: the metrics (None: all that are known), log_prob and greedy, as in `score_choices`.
    """
    metrics, parts = known_metrics() if metrics is None else metrics, []
    for states, tokens in zip(hidden.split(1024), target.split(1024), strict=True):
        if depth == backbone.n_blocks:
            wide = backbone.unembed(states)
            scores = {metric: torch.full(tokens.shape, float("inf")) for metric in metrics}
        else:
            wide, narrow = heads.full_logits(depth, states), heads.logits(depth, states)
            declined = heads.drafted_tokens(narrow) < 0
            scores = {m: s.masked_fill(declined, float("-inf")) for m, s in confidence(narrow, metrics).items()}
        log_prob = wide.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        parts.append({**scores, "log_prob": log_prob, "greedy": wide.argmax(-1) == tokens})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _encode(tokenizer: PreTrainedTokenizerBase, context: str, choice: str) -> tuple[Tensor, int]:
    """Tokens of "context choice" and the index of the choice's first token (as lm-evaluation-harness cuts them)."""
    whole = tokenizer(f"{context} {choice}", return_tensors="pt").input_ids[0]
    return whole, len(tokenizer(context).input_ids)


def read_rows(task: str) -> list[dict]:
    """The packaged cases of a task as they are written. Raises FetchError where they were not fetched."""
    return [json.loads(line) for line in case_file(task).read_text(encoding="utf-8").splitlines()]
