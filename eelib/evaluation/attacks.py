"""Prompts made to abuse early exits, found by search: what somebody who may ask many times can reach."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.calibration.cascade import HeadScores
from eelib.calibration.thresholds import Calibration
from eelib.confidence.traces import record_traces
from eelib.corpus.chat import answers
from eelib.errors import InvalidInputError
from eelib.heads.exit_heads import ExitHeads

GOALS = ("wrong exits", "no exits")
"""wrong exits: tokens that exit and are not the model's own, so that early exit answers wrongly. no exits: tokens that
need all blocks, so that answers are slow."""


def search_prompts(
    model: PreTrainedModel,
    heads: ExitHeads,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Calibration,
    questions: Sequence[str],
    goal: str,
    *,
    suffix: int = 8,
    rounds: int = 4,
    children: int = 4,
    kept: int = 6,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Appends `suffix` tokens to questions and changes two of them at a time, keeping what serves the goal best.

    Each round makes `children` of each of the `kept` best texts so far, the first round of the first questions. Judged
    teacher-forced on the model's own greedy answers. Columns: text, round (0: the question as it is), coverage, wrong
    (share of the answer's tokens that exit and disagree); the best first.

    Raises:
        InvalidInputError: an unknown goal, or no questions.
    """
    if goal not in GOALS or not questions:
        raise InvalidInputError(f"goal={goal!r}, {len(questions)} questions: expected some, and {' or '.join(GOALS)}.")
    draw, special = np.random.default_rng(seed), set(tokenizer.all_special_ids)
    words = np.array([i for i in range(len(tokenizer)) if i not in special])

    def judged(candidates: list[tuple[str, np.ndarray]], number: int) -> list[dict]:
        texts = [f"{question} {tokenizer.decode(tail)}" if len(tail) else question for question, tail in candidates]
        sequences, spoken = answers(model, tokenizer, texts, max_new_tokens)
        tokens = HeadScores.of(record_traces(model, heads, sequences, loss_mask=spoken), calibration.metric)
        exits = tokens.exits(calibration.thresholds)
        lengths = np.bincount(tokens.sequence)
        coverage = np.bincount(tokens.sequence, exits.any(axis=1)) / lengths
        wrong = np.bincount(tokens.sequence, (exits & ~tokens.agrees).any(axis=1)) / lengths
        return [
            {"question": question, "tail": tail, "text": text, "round": number, "coverage": c, "wrong": w}
            for (question, tail), text, c, w in zip(candidates, texts, coverage, wrong, strict=True)
        ]

    pool = judged([(question, words[:0]) for question in questions], 0)
    for number in tqdm(range(1, rounds + 1), desc=f"searching for {goal}", unit="round"):
        made = []
        for parent in pool[:kept]:
            for _ in range(children):
                tail = parent["tail"].copy() if len(parent["tail"]) else draw.choice(words, suffix)
                tail[draw.choice(suffix, min(2, suffix), replace=False)] = draw.choice(words, min(2, suffix))
                made.append((parent["question"], tail))
        pool += judged(made, number)
        pool.sort(key=lambda found: -found["wrong"] if goal == "wrong exits" else found["coverage"])
    return pd.DataFrame(pool).drop(columns=["question", "tail"]).drop_duplicates("text", ignore_index=True)
