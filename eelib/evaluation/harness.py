"""Tasks of lm-evaluation-harness at several early-exit settings, case by case.

Needs the extra `bench`. Offline tasks are the packaged cases of `eelib.evaluation.cases`; all others have the harness's
own names and come from the Hub.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from eelib.errors import InvalidInputError, UnsupportedError
from eelib.evaluation.cases import MULTIPLE_CHOICE, load_cases, read_rows
from eelib.evaluation.harness_model import (  # which says what to install where the harness is missing
    EarlyExitLM,
    lm_eval,
)
from eelib.statistics import mean_interval

OFFLINE = tuple(f"offline_{name}" for name in (*MULTIPLE_CHOICE, "gsm8k"))
"""Tasks that need no network: `load_cases` in the harness's form, and GSM8K, zero-shot."""

_JUDGED_BY = {"hellaswag": "acc_norm", "truthfulqa_mc1": "acc"}

_ONE_BY_ONE = ("use_cache", "samples", "log_samples", "predict_only", "model", "model_args")

Sample = dict[str, Any]
Metric = Callable[[Sample], float]


def evaluate(
    settings: Mapping[str, lm_eval.api.model.LM],
    tasks: Sequence,
    limit: int | None = None,
    *,
    reference: str = "full",
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """Run settings on the same cases, each compared with the reference.

    By `lm_eval.simple_evaluate`. Settings derived from one another by `EarlyExitLM.with_thresholds` share their passes
    over multiple-choice texts.

    Args:
        settings: by name, with `reference` among them, usually the full model.
        tasks, limit, metrics, options: as in `run_cases`.
        seed: of the bootstrap.

    Returns:
        As `summarise`.

    Raises:
        InvalidInputError: the reference is not among the settings; and the errors of `run_cases`.
    """
    _check_reference(settings, reference)
    loaded = list(_load(tasks, options.pop("task_manager", None)))
    known = {}
    try:
        for lm in settings.values():
            lm._known = known
        found = {name: run_cases(lm, loaded, limit, metrics=metrics, **options) for name, lm in settings.items()}
    finally:
        for lm in settings.values():
            lm._known = None
    return summarise(found, reference=reference, seed=seed)


def multiple_choice_accuracy(
    settings: Mapping[str, lm_eval.api.model.LM], limit: int | None = None, *, reference: str = "full", seed: int = 0
) -> pd.DataFrame:
    """Accuracy on the packaged multiple-choice cases, by each task's own metric.

    Args:
        settings, limit, reference, seed: as in `evaluate`.

    Returns:
        One row per task and setting: task (without "offline_"), and the columns of `summarise` with accuracy for value.
    """
    found = evaluate(settings, [f"offline_{name}" for name in MULTIPLE_CHOICE], limit, reference=reference, seed=seed)
    found["task"] = found.task.str.removeprefix("offline_")
    found = found[found.metric == found.task.map(_JUDGED_BY)].drop(columns="metric").reset_index(drop=True)
    return found.rename(columns=lambda name: name.replace("value", "accuracy"))


def run_cases(
    lm: lm_eval.api.model.LM,
    tasks: Sequence,
    limit: int | None = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    task_manager: lm_eval.tasks.TaskManager | None = None,
    **options,
) -> pd.DataFrame:
    """Run `lm_eval.simple_evaluate`; one row per task, case and metric.

    Args:
        tasks: names (of OFFLINE, or the harness's), its config dicts, or loaded tasks.
        limit: maximum cases of each task.
        metrics: your own, by name: from the harness's record of a case (doc, target, arguments, resps, filtered_resps,
            its own metrics, and task and blocks) to a number.
        task_manager: one that knows more tasks.
        options: of `lm_eval.simple_evaluate`, such as num_fewshot, apply_chat_template, gen_kwargs.

    Returns:
        Columns: task, case, metric, value, answer (what the metric scores: number of the choice, text, or whether the
            continuation is greedy), log_prob (nats: of the right choice or the continuation; else NaN) and blocks
            (share of all; NaN for other models). Metrics over all cases at once (perplexity, F1) are left out; a task
            with no other has log_prob for metric. A group of tasks also has all its cases under its own name.

    Raises:
        InvalidInputError: an unknown task, or an invalid metric of your own.
        UnsupportedError: an option that does not work case by case.
        FetchError: offline cases have not been fetched.
    """
    refused = [name for name in _ONE_BY_ONE if name in options]
    if refused:
        raise UnsupportedError(f"{', '.join(refused)}: not supported, since every case is run and recorded. Omit it.")
    loaded = lm_eval.tasks.TaskManager(include_defaults=False).load(list(_load(tasks, task_manager)))
    if isinstance(lm, EarlyExitLM):
        lm.records.clear()
    fixed = {"limit": limit, "bootstrap_iters": 0, "task_manager": lm_eval.tasks.TaskManager(include_defaults=False)}
    run = lm_eval.simple_evaluate(lm, tasks=list(loaded["tasks"].values()), **fixed, **options)
    blocks = lm.blocks_by_case().to_dict() if isinstance(lm, EarlyExitLM) else {}
    tables = {}
    for name, task in loaded["tasks"].items():
        rows = []
        for sample in run["samples"][name]:
            own = metrics if sample["filter"] == run["samples"][name][0]["filter"] else None
            share = blocks.get((name, sample["doc_id"]), math.nan)
            rows += _rows(task, sample | {"task": name, "blocks": share}, own or {})
        tables[name] = pd.DataFrame(rows)
    for name, group in loaded["groups"].items():
        members = [task.task_name for task in group.get_all_tasks()]
        apart = [tables[m].assign(task=name, case=m + " " + tables[m].case.astype(str)) for m in members]
        tables[name] = pd.concat(apart)
    return pd.concat(tables.values(), ignore_index=True)


def summarise(found: Mapping[str, pd.DataFrame], *, reference: str = "full", seed: int = 0) -> pd.DataFrame:
    """Settings compared with the reference on the same cases of `run_cases`.

    Returns:
        One row per task, metric and setting: cases, value (mean over cases; for `acc` the accuracy),
        value_less_{reference}, changed_answers (share of cases), log_prob_less_{reference} (nats; NaN without
        log-likelihood) and blocks (share of all that ran per token, mean over cases). Values and differences, paired by
        case, have a 95% interval from a bootstrap over cases under _low and _high.

    Raises:
        InvalidInputError: the reference is missing, or settings were run on other cases.
    """
    _check_reference(found, reference)
    keys, rows = ["task", "metric"], []
    for (task, metric), base in found[reference].groupby(keys, sort=False):
        base = base.set_index("case")
        for setting, table in found.items():
            own = table[(table.task == task) & (table.metric == metric)].set_index("case")
            if not own.index.equals(base.index):
                raise InvalidInputError(
                    f"{setting!r} was not run on the cases of {reference!r} in {task}, {metric}: run all settings on "
                    "the same cases."
                )
            row = {"task": task, "metric": metric, "setting": setting, "cases": len(own)}
            row |= _interval("value", own.value, seed)
            row |= _interval(f"value_less_{reference}", own.value - base.value, seed)
            row["changed_answers"] = (own.answer != base.answer).mean() if own.answer.notna().all() else math.nan
            row |= _interval(f"log_prob_less_{reference}", own.log_prob - base.log_prob, seed)
            rows.append(row | {"blocks": own.blocks.mean()})
    return pd.DataFrame(rows)


class _OfflineTask(lm_eval.api.task.ConfigurableTask):
    """Task of packaged cases."""

    def __init__(self, name: str):
        self._name = name.removeprefix("offline_")
        super().__init__(config={"task": name, "test_split": "test", "num_fewshot": 0} | self._config_of())

    def _config_of(self) -> dict:
        measured = {"aggregation": "mean", "higher_is_better": True}
        if self._name in MULTIPLE_CHOICE:
            fields = {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer"}
            names = ["acc_norm", "acc"] if self._name == "hellaswag" else ["acc"]
            return fields | {
                "output_type": "multiple_choice",
                "metric_list": [{"metric": name, **measured} for name in names],
            }
        number = {"function": "regex", "group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"}
        return {
            "output_type": "generate_until",
            "doc_to_text": "Question: {{prompt}}\nAnswer:",
            "doc_to_target": "expected",
            "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False},
            "filter_list": [{"name": "flexible-extract", "filter": [number, {"function": "take_first"}]}],
            "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [",", "\\$", "\\.$"], **measured}],
        }

    def download(self, dataset_kwargs: dict | None = None, **kwargs) -> None:
        from datasets import Dataset

        if self._name in MULTIPLE_CHOICE:
            rows = [
                {"context": case.context, "choices": list(case.choices), "answer": case.answer}
                for case in load_cases(self._name)
            ]
        else:
            rows = read_rows(self._name)
        self.dataset = {"test": Dataset.from_list(rows)}


def _load(tasks: Sequence, manager: lm_eval.tasks.TaskManager | None) -> list:
    """Load tasks and groups of tasks.

    The harness's index takes a while to build, so only if needed.
    """
    loaded = []
    for task in [tasks] if isinstance(tasks, str) else tasks:
        if isinstance(task, str) and task in OFFLINE:
            loaded.append(_OfflineTask(task))
        elif isinstance(task, str | dict):
            manager = manager or lm_eval.tasks.TaskManager()
            try:
                found = manager.load([task])
            except KeyError as error:
                known = ", ".join(OFFLINE)
                raise InvalidInputError(
                    f"Unknown task {task!r}: expected one of {known}, or a task of the harness."
                ) from error
            name = task if isinstance(task, str) else task.get("group")
            loaded += [found["groups"][name]] if name in found["groups"] else found["tasks"].values()
        else:
            loaded.append(task)
    return loaded


def _rows(task: lm_eval.api.task.Task, sample: Sample, own: Mapping[str, Metric]) -> list[dict]:
    """One row per metric of one case."""
    answers, log_prob = _answers(task, sample)
    values, ending = {}, "" if sample["filter"] == "none" else f",{sample['filter']}"
    for name in sample["metrics"]:
        if task.aggregation().get(name, lm_eval.api.metrics.mean) is lm_eval.api.metrics.mean:
            values[name + ending] = float(sample[name])
    for name, function in own.items():
        if name in values:
            raise InvalidInputError(f"Your metric {name!r} has the name of a metric of {sample['task']}: rename it.")
        value = function(sample)
        if not np.isscalar(value) or isinstance(value, str):
            raise InvalidInputError(f"Your metric {name!r} gave {value!r} for a case: expected a number.")
        values[name] = float(value)
    if not values and not own:
        values["log_prob"] = log_prob
    place = {"task": sample["task"], "case": sample["doc_id"], "log_prob": log_prob, "blocks": sample["blocks"]}
    return [
        place | {"metric": name, "value": value, "answer": answers.get(name, answers[""])}
        for name, value in values.items()
    ]


def _answers(task: lm_eval.api.task.Task, sample: Sample) -> tuple[dict[str, str | None], float]:
    """Answers by metric ("": any other), and log-likelihood of the right one."""
    found, doc = sample["filtered_resps"], sample["doc"]
    if task.OUTPUT_TYPE == "loglikelihood":
        return {"": str(found[0][1])}, float(found[0][0])
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return {"": None}, float(found[0])
    if task.OUTPUT_TYPE != "multiple_choice":
        return {"": str(found[0])}, math.nan
    choices = task.doc_to_choice(doc)
    sums = np.array([log_prob for log_prob, _ in found[: len(choices)]])
    lengths = {"": 1, "acc_norm": [*map(len, choices)], "acc_bytes": [len(choice.encode()) for choice in choices]}
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    right = choices.index(right) if right in choices else right
    known = isinstance(right, int) and 0 <= right < len(choices)
    answers = {name: str((sums / np.array(length)).argmax()) for name, length in lengths.items()}
    return answers, float(sums[right]) if known else math.nan


def _interval(name: str, values: npt.ArrayLike, seed: int) -> dict[str, float]:
    value, low, high = (math.nan,) * 3 if np.isnan(values).any() else mean_interval(values, seed=seed)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _check_reference(settings: Mapping, reference: str) -> None:
    if reference not in settings:
        names = ", ".join(map(repr, settings))
        raise InvalidInputError(f"No setting {reference!r}, to compare with, among {names}.")
