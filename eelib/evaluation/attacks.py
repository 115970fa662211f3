"""Attacks on early exits: forged thresholds, adversarial prompts, and shift detection."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.calibration.cascade import HeadScores
from eelib.calibration.p_values import alarm_times
from eelib.calibration.thresholds import Calibration
from eelib.confidence.traces import record_traces
from eelib.corpus.chat import answers
from eelib.decoding.engine import generate
from eelib.decoding.policies import Confidence, Never
from eelib.errors import EelibError, InvalidInputError
from eelib.evaluation.comparison import compare, summarise, token_agreements
from eelib.evaluation.weight_reads import emitted_depths
from eelib.heads.exit_heads import ExitHeads

GOALS = ("wrong exits", "no exits")
"""Goals of an attack: tokens that exit and disagree with the model, or tokens that never exit, for slow answers."""

MODES = {
    "lossless": {"exact": True},
    "lossless, no back-off": {"exact": True},
    "early exit": {"verify": False},
}
"""Modes of decoding under attack, with the arguments of `generate` for each.

The first backs off. Lossless decoding is `exact`, so that every token must be plain decoding's.
"""


def forge_thresholds(honest: Calibration, traces: pd.DataFrame) -> dict[str, Calibration]:
    """Forged calibrations with valid digests, in place of an honest one.

    Args:
        traces: of calibration text, for the range of scores that a head can be expected to reach.
    """
    scores, n = traces[honest.metric], len(honest.depths)
    low, high = float(scores.replace(-np.inf, np.nan).min()), float(scores.max())
    return {
        "all exit at once": replace(honest, thresholds=(low,) * n),
        "only the deepest head, always": replace(honest, thresholds=(None,) * (n - 1) + (low,)),
        "none exits": replace(honest, thresholds=(high,) * n),
    }


def load_tampered(
    model: PreTrainedModel, heads: ExitHeads, honest: Calibration, forged: Calibration, prompt: Tensor
) -> pd.DataFrame:
    """Outcome of loading edited, forged or foreign thresholds.

    Args:
        honest: the calibration written first.
        forged: one with other thresholds and a valid digest.
        prompt: [1, position]; a file that loads decodes one token of it.

    Returns:
        One row per file: file (what was done to it), outcome ("used", or "refused: " and the error message).
    """
    n = len(honest.depths)
    cases = {
        "as it was written": (honest.to_json, None),
        "thresholds edited": (_edit(honest, thresholds=list(forged.thresholds)), None),
        "forged, with a digest that fits": (forged.to_json, None),
        "forged, where the caller expects a digest": (forged.to_json, honest.digest),
        "as it was written, where the caller expects its digest": (honest.to_json, honest.digest),
        "a threshold too few": (_edit(honest, thresholds=list(honest.thresholds[1:])), None),
        "NaN": (_edit(honest, thresholds=[float("nan")] * n), None),
        "out of the metric's range": (replace(honest, thresholds=(1e9,) * n).to_json, None),
        "of other heads": (replace(honest, heads_fingerprint="0" * 64).to_json, None),
    }
    rows = []
    for name, (write, digest) in cases.items():
        with TemporaryDirectory() as folder:
            file, outcome = Path(folder) / "calibration.json", "used"
            write(file)
            try:
                policy = Confidence.from_calibration(Calibration.from_json(file, digest=digest))
                generate(model, prompt, heads=heads, policy=policy, do_sample=False, max_new_tokens=1)
            except EelibError as error:
                outcome = f"refused: {error}".replace(folder, "...")
        rows.append({"file": name, "outcome": outcome})
    return pd.DataFrame(rows)


def _edit(calibration: Calibration, **changes) -> Callable[[Path], None]:
    """Write a calibration and change the file, keeping the digest inside."""

    def write(file: Path) -> None:
        calibration.to_json(file)
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(content | changes), encoding="utf-8")

    return write


def compare_modes(
    model: PreTrainedModel,
    heads: ExitHeads,
    calibrations: Mapping[str, Calibration],
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int = 40,
    repeats: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Calibrations in each mode of decoding, beside plain decoding.

    Args:
        calibrations: by name.
        prompts: [1, position] each.
        repeats: of each timed run.
        seed: of the bootstrap over prompts.

    Returns:
        One row per calibration and mode: mode, file (the calibration's name), equal (share of texts equal to plain
        decoding's), acceptance_rate, speed_ratio with its interval and deviation, agreement (`token_agreements`), and
        coverage (share of a text's new tokens that exit early, mean over prompts).
    """
    shared = {"heads": heads, "do_sample": False, "max_new_tokens": max_new_tokens}
    settings, decoders = [], {"plain": partial(generate, model, policy=Never(), exact=True, **shared)}
    for file, calibration in calibrations.items():
        for mode, options in MODES.items():
            name = str(len(settings))
            policy = Confidence.from_calibration(calibration, back_off=mode == "lossless")
            decoders[name] = partial(generate, model, policy=policy, **options, **shared)
            settings.append({"decoder": name, "mode": mode, "file": file})
    runs = compare(decoders, prompts, reference="plain", repeats=repeats)
    runs["coverage"] = [(emitted_depths(out) < len(out.stats.block_calls)).mean() for out in runs.output]
    table = pd.DataFrame(settings).merge(summarise(runs, seed=seed)).set_index("decoder")
    table["agreement"] = token_agreements(model, runs, prompts)
    table["coverage"] = runs.groupby("decoder").coverage.mean()
    kept = table.filter(regex="^(mode|file|equal|acceptance_rate|speed_ratio.*|agreement|coverage)$")
    return kept.reset_index(drop=True)


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
    """Adversarial search: append tokens to questions to serve a goal.

    Appends `suffix` tokens and mutates two at a time. Each round makes `children` of each of the `kept` best texts so
    far, the first round of the first questions. Scored teacher-forced on the model's own greedy answers.

    Returns:
        Columns: text, round (0: the original question), coverage, wrong (share of the answer's tokens that exit and
            disagree); best first.

    Raises:
        InvalidInputError: an unknown goal, or no questions.
    """
    if goal not in GOALS or not questions:
        raise InvalidInputError(
            f"goal={goal!r}, {len(questions)} questions: expected {' or '.join(GOALS)}, and at least one question."
        )
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


def alarm_runs(
    texts: Mapping[str, pd.DataFrame],
    calibration: Calibration,
    epsilon: float,
    *,
    false_alarm: float,
    runs: int = 1000,
    sequences: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Monitor alarms on sequences resampled from each kind of text.

    Args:
        texts: traces by kind of text.
        calibration: the thresholds in use, and the monitored target.
        epsilon: promised agreement.
        false_alarm: probability of an alarm, ever, while the promise holds.
        runs, sequences: number of runs, and of sequences in each.

    Returns:
        One row per kind and run: text, mean_loss (over all of the text's sequences; the promise holds up to 1 -
        epsilon), run, sequences_to_alarm (inf without one).
    """
    tables = []
    for text, traces in texts.items():
        tokens = HeadScores.of(traces, calibration.metric)
        losses = tokens.losses(calibration.thresholds, calibration.target, epsilon)
        raised = alarm_times(losses, 1 - epsilon, false_alarm=false_alarm, runs=runs, sequences=sequences, seed=seed)
        found = {"text": text, "mean_loss": losses.mean(), "run": np.arange(runs), "sequences_to_alarm": raised}
        tables.append(pd.DataFrame(found))
    return pd.concat(tables, ignore_index=True)


def alarm_delays(alarms: pd.DataFrame) -> pd.DataFrame:
    """Delays of the monitor, from `alarm_runs`, by text.

    Columns: mean_loss, share_of_runs_with_an_alarm, median_sequences_to_alarm and sequences_to_alarm_in_90% (of the
    runs; inf where fewer had one).
    """
    rows = [
        {
            "text": text, "mean_loss": table.mean_loss.iloc[0],
            "share_of_runs_with_an_alarm": np.isfinite(table.sequences_to_alarm).mean(),
            "median_sequences_to_alarm": np.median(table.sequences_to_alarm),
            "sequences_to_alarm_in_90%": np.quantile(table.sequences_to_alarm, 0.9, method="higher"),
        }
        for text, table in alarms.groupby("text", sort=False)
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("text")


def alarm_shares(alarms: pd.DataFrame, sequences: int = 500) -> pd.DataFrame:
    """Share of runs with an alarm so far, from `alarm_runs`.

    Columns: text, sequences (0 to this many), share_of_runs.
    """
    numbers = np.arange(sequences + 1)
    tables = []
    for text, table in alarms.groupby("text", sort=False):
        share = (table.sequences_to_alarm.to_numpy()[:, None] <= numbers).mean(axis=0)
        tables.append(pd.DataFrame({"text": text, "sequences": numbers, "share_of_runs": share}))
    return pd.concat(tables, ignore_index=True)
