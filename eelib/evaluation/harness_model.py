"""Models for lm-evaluation-harness: with early exits, or from any logits.

Needs the extra `bench`. `EarlyExitLM` scores a token by the first confident head: likelihoods are teacher-forced, with
one pass over each text; generation goes through the engine.
"""

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from eelib.backbone.segments import Backbone, pad
from eelib.calibration.thresholds import Calibration
from eelib.confidence.metrics import check_metric, check_thresholds, confidence
from eelib.decoding.batches import Batcher, Finished
from eelib.decoding.engine import generate
from eelib.decoding.policies import Confidence, Never, Policy
from eelib.errors import HeadsError, InvalidInputError, MissingExtraError
from eelib.heads.exit_heads import ExitHeads
from eelib.settings import COUNT

try:
    import lm_eval.api.task
    import lm_eval.tasks  # noqa: F401 (for eelib.evaluation.harness, so that one place says what to install)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils_hf import MultiTokenEOSCriteria
except ImportError as error:
    raise MissingExtraError(f"No lm-evaluation-harness ({error}): pip install 'eelib[bench]'") from error

Thresholds = Mapping[int, float | None] | Calibration | None
_TOKENS_AT_ONCE = 2**14
_ROWS = 16  # texts generated at once, if we may choose


class EarlyExitLM(HFLM):
    """The harness's `HFLM` with early exits.

    Likelihoods: each token of the continuation is scored over the whole vocabulary by the first head whose score
    reaches its threshold, else by the full model. A head that would draft "other" declines. Generation:
    `eelib.generate`, or a `Batcher` where `batch_size` is more than one. The log-softmax is in float32.

    Blocks are the share of all blocks that had run when a token became final, mean over tokens. Filling in deeper
    blocks later, for the attention of other tokens, is not counted. With `verify=True` a generated token is final only
    after all of them.

    Args:
        heads: trained heads. All are computed, so omit them for the full model alone.
        metric: the score; a calibration brings its own.
        thresholds: by depth, or a calibration; a depth that is missing or None never exits, -inf exits unless the head
            declines. None or {} is the full model.
        batch_size: texts per pass; "auto" for as many as make 16,384 tokens, and 16 where they are generated.
        verify: whether generated exits are drafts for the full model, or final.
        max_length: maximum tokens of a text; None for the model's limit. Longer contexts are cut on the left.
        hflm: further arguments of `HFLM` (`enable_thinking`, `think_end_token`, `add_bos_token`, `truncation`).

    Attributes:
        records: one dict per request since they were last cleared: task, case (number of the document), request, tokens
            (scored or generated) and blocks.

    Raises:
        InvalidInputError: an unknown metric, or invalid thresholds or batch size.
        HeadsError: heads of another model object, or without a depth that thresholds name.
        ModelError: the model cannot be split into blocks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heads: ExitHeads | None = None,
        metric: str | None = None,
        thresholds: Thresholds = None,
        *,
        batch_size: int | str = 1,
        verify: bool = False,
        max_length: int | None = None,
        **hflm,
    ):
        self._automatic = str(batch_size).startswith("auto")
        batch_size = 1 if self._automatic else COUNT("batch_size", batch_size)
        self.cut = Backbone.of(model)
        if heads is not None and heads.backbone is not self.cut:
            raise HeadsError("These heads were loaded onto another model object: load them onto this one.")
        self.metric, self.limits, self.policy = _exits(heads, metric, thresholds)
        tokenizer = copy.deepcopy(tokenizer)  # the harness gives it a padding token
        options = {"backend": "causal", "batch_size": batch_size, "max_length": max_length, **hflm}
        super().__init__(self.cut.model, tokenizer=tokenizer, **options)
        self.heads, self.verify = heads, verify
        self.records: list[dict] = []
        self._known: dict[bytes, tuple] | None = None
        self._spent: list[tuple[int, float]] = []  # tokens and blocks of the requests just answered
        self._prompts: list[tuple[Tensor, dict[str, Any]]] | None = None  # while they are collected, with options
        self._outputs: Iterator[Finished] | None = None  # of prompts that were collected

    def with_thresholds(self, thresholds: Thresholds = None, metric: str | None = None) -> "EarlyExitLM":
        """The same model at other thresholds or by another metric.

        `with_thresholds(None)` is the full model.
        """
        other = copy.copy(self)
        if metric is None and not isinstance(thresholds, Calibration):
            metric = self.metric
        other.metric, other.limits, other.policy = _exits(self.heads, metric, thresholds)
        other.records, other._spent = [], []
        return other

    @property
    def blocks(self) -> float:
        """Share of blocks run per token, mean over `records`; NaN without any."""
        return float(self.blocks_by_case().mean())

    def blocks_by_case(self) -> pd.Series:
        """Share of blocks run per token of each case; index: task, case.

        Over all requests of the case.
        """
        table = pd.DataFrame(self.records, columns=["task", "case", "request", "tokens", "blocks"])
        table["ran"] = table.tokens * table.blocks
        total = table.groupby(["task", "case"], dropna=False)[["ran", "tokens"]].sum()
        return total.ran / total.tokens

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Harness API: (log-likelihood in nats, whether greedy) of each continuation."""
        self._spent.clear()
        found = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        for request, spent in zip(requests, self._spent, strict=True):
            self._note(request, [spent])
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Harness API: log-likelihood in nats of each text, windowed if long."""
        return [
            self._one(super(EarlyExitLM, self).loglikelihood_rolling, request)
            for request in tqdm(requests, desc="scoring texts", unit="text", disable=disable_tqdm)
        ]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Harness API: continuation of each prompt, up to a stop string."""
        answer, several = super().generate_until, len(requests) > 1 and (self._automatic or self.batch_size > 1)
        with tqdm(total=len(requests), desc="generating", unit="prompt", disable=disable_tqdm) as progress:
            self._outputs = self._generated(answer, requests, progress) if several else None
            try:
                found = []
                for request in requests:
                    found.append(self._one(answer, request))
                    if not several:
                        progress.update()
            finally:
                self._outputs = None
        return found

    def _generated(self, answer: Callable, requests: Sequence[Instance], progress: tqdm) -> Iterator[Finished]:
        """Outputs for all requests, decoded several at a time.

        `HFLM` prepares each prompt as it does alone: asked once for the prompts, it finds the outputs the second time.
        """
        hook, self.cache_hook, self._prompts = self.cache_hook, CacheHook(None), []
        try:
            for request in requests:
                answer([request], disable_tqdm=True)
            prompts = self._prompts
        finally:
            self.cache_hook, self._prompts = hook, None
        rows = _ROWS if self._automatic else self.batch_size
        batcher = Batcher(self.model, policy=self.policy, heads=self.heads, verify=self.verify, rows=rows)
        for prompt, options in prompts:
            batcher.add(prompt, **options)
        outputs = {}
        for done in batcher:
            outputs[done.number] = done
            progress.update()
        return iter([outputs[number] for number in range(len(prompts))])

    def _one(self, answer: Callable, request: Instance) -> Any:
        self._spent.clear()
        (found,) = answer([request], disable_tqdm=True)
        self._note(request, self._spent)
        return found

    def _note(self, request: Instance, spent: Sequence[tuple[int, float]]) -> None:
        tokens = sum(n for n, _ in spent)
        ran = sum(n * share for n, share in spent if n)
        named = {"task": request.task_name, "case": request.doc_id, "request": request.idx}
        self.records.append(named | {"tokens": tokens, "blocks": ran / tokens if tokens else math.nan})

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options) -> Tensor:
        if not options["do_sample"]:
            options.pop("temperature", None)  # 0.0, which transformers would not take
        until = [_Until(string, self.tokenizer, context.shape[1], 1) for string in stop]
        options |= {"max_length": max_length, "stopping_criteria": StoppingCriteriaList(until)}
        options |= {"pad_token_id": self.tokenizer.pad_token_id}
        if self._prompts is not None:
            self._prompts.append((context, options))
            return context
        if self._outputs is not None:
            out = next(self._outputs).result()
        else:
            out = generate(self.model, context, policy=self.policy, heads=self.heads, verify=self.verify, **options)
        share = 1.0 if self.verify else out.trace.depth.mean() / self.cut.n_blocks
        self._spent.append((out.stats.emitted, share))
        return out.sequences

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None) -> list[tuple[float, bool]]:
        known = {} if self._known is None else self._known
        keys = [self._key(context, continuation) for _, context, continuation in requests]
        unread = {key: request[1:] for key, request in zip(keys, requests, strict=True) if key not in known}
        for found in self._read(unread, disable_tqdm):
            known |= found
        depths, answers = [*self._depths(), self.cut.n_blocks], []
        limits = np.array([self.limits.get(depth, math.inf) for depth in depths])[:, None]
        for key, (names, _, _) in zip(keys, requests, strict=True):
            scores, log_probs, greedy = known[key]  # [depth, token] each; the full model's scores are +inf
            first = ((scores >= limits) & (scores > -math.inf)).argmax(axis=0)
            token = np.arange(len(first))
            answers.append((float(log_probs[first, token].sum()), bool(greedy[first, token].all())))
            self._spent.append((len(first), float(np.array(depths)[first].mean()) / self.cut.n_blocks))
            if names is not None:
                self.cache_hook.add_partial("loglikelihood", names, answers[-1])
        return answers

    def _depths(self) -> tuple[int, ...]:
        return () if self.heads is None else self.heads.depths

    def _key(self, context: list[int], continuation: list[int]) -> bytes:
        """Cache key of a text under one metric and set of heads."""
        named = f"{id(self.cut)} {id(self.heads)} {self.metric} {self.max_length} {len(context)}".encode()
        return hashlib.sha256(named + np.array(context + continuation, np.int64).tobytes()).digest()

    @torch.no_grad()
    def _read(self, unread: dict[bytes, tuple], disable_tqdm: bool) -> Iterator[dict[bytes, tuple]]:
        """Scores, log-probabilities and greediness of continuations at every depth, [depth, token]."""
        texts: dict[tuple, list] = {}  # continuations of one token, of the same context, share a pass
        for key, (context, continuation) in unread.items():
            if not 0 < len(continuation) <= self.max_length or not context:
                raise InvalidInputError(
                    f"A context of {len(context)} tokens and a continuation of {len(continuation)}: expected at least "
                    f"one each, and at most {self.max_length} in the continuation."
                )
            text = (context + continuation)[-(self.max_length + 1) :][:-1]
            if len(text) < len(context) + len(continuation) - 1:
                logging.getLogger(__name__).warning("A context is longer than the model reads: its beginning is cut.")
            texts.setdefault(tuple(text), []).append((key, continuation))
        order = sorted(texts, key=len, reverse=True)  # the longest first: what does not fit in memory shows at once
        size = max(1, _TOKENS_AT_ONCE // len(order[0])) if self._automatic and order else self.batch_size
        starts = range(0, len(order), size)
        for start in tqdm(starts, desc="scoring", unit="batch", disable=disable_tqdm or len(starts) < 2):
            batch = order[start : start + size]
            asked = [(row, len(text), *each) for row, text in enumerate(batch) for each in texts[text]]
            row = torch.tensor([row for row, _, _, tokens in asked for _ in tokens])
            position = torch.cat([torch.arange(length - len(tokens), length) for _, length, _, tokens in asked])
            target = torch.tensor([token for *_, tokens in asked for token in tokens], device=self.device)
            padded = pad([torch.tensor(text) for text in batch])[0].to(self.device)
            read = []
            for depth, state in self.cut.states(padded, [*self._depths(), self.cut.n_blocks]).items():
                at_depth = score_tokens(self.cut, self.heads, depth, state[row, position], target, self.metric)
                read.append([values.cpu().numpy() for values in at_depth])
            ends = np.cumsum([len(tokens) for *_, tokens in asked])[:-1]
            parts = [np.split(np.stack(each), ends, axis=1) for each in zip(*read, strict=True)]
            yield {key: values for (_, _, key, _), values in zip(asked, zip(*parts, strict=True), strict=True)}


class LogitsLM(HFLM):
    """The harness's `HFLM` over a function from token ids to logits.

    Generation is the plain model's.

    Args:
        logits: from token ids [text, position] to logits [text, position, vocab].
        settings: the harness's own (`batch_size`, `max_length`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        logits: Callable[[Int[Tensor, "text position"]], Float[Tensor, "text position vocab"]],
        **settings,
    ):
        super().__init__(model, tokenizer=tokenizer, **settings)
        self.logits = logits

    @torch.no_grad()
    def _model_call(self, inps: Tensor, **kwargs) -> Tensor:
        return self.logits(inps.to(self.model.device))


@torch.no_grad()
def score_tokens(
    backbone: Backbone,
    heads: ExitHeads | None,
    depth: int,
    hidden: Float[Tensor, "token hidden"],
    target: Int[Tensor, " token"],
    metric: str | None,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"], Bool[Tensor, " token"]]:
    """Confidence, log-probability and greediness of target tokens at a depth.

    Returns:
        The metric of the head's drafting logits (-inf where it declines or without a metric, inf for the full model);
        the log-probability of each target in nats, over the whole vocabulary; and whether no other token has a larger
        logit.
    """
    parts = []
    for states, tokens in zip(hidden.split(1024), target.split(1024), strict=True):
        full = depth == backbone.n_blocks
        logits = backbone.unembed(states) if full else heads.full_logits(depth, states)
        score = torch.full(tokens.shape, math.inf if full else -math.inf)
        if not full and metric is not None:
            drafting = heads.logits(depth, states)
            score = confidence(drafting, [metric])[metric].float()
            score = score.masked_fill(heads.drafted_tokens(drafting) < 0, -math.inf)
        log_prob = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        parts.append((score, log_prob, logits.argmax(-1) == tokens))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


class _Until(MultiTokenEOSCriteria):
    """The harness's stopping criterion, made stateless, for drafts that may be rejected."""

    def __call__(self, input_ids, scores, **kwargs) -> bool:
        self.done_tracker = [False]
        return super().__call__(input_ids, scores, **kwargs)


def _exits(heads: ExitHeads | None, metric: str | None, thresholds: Thresholds) -> tuple[str | None, dict, Policy]:
    """Metric, thresholds by depth, and the policy that decodes by them."""
    if metric is not None:
        check_metric(metric)
    if not thresholds:
        return metric, {}, Never()
    if heads is None:
        raise HeadsError("Thresholds without heads: pass the heads that they were calibrated for.")
    if isinstance(thresholds, Calibration):
        if metric not in (None, thresholds.metric):
            raise InvalidInputError(f"metric={metric!r}, but the calibration is of {thresholds.metric}: omit metric.")
        policy = Confidence.from_calibration(thresholds)
    else:
        if metric is None:
            raise InvalidInputError("Thresholds without a metric: pass the metric that they apply to.")
        others = sorted(set(thresholds) - set(heads.depths))
        if others:
            raise HeadsError(f"Thresholds for depths {others}: these heads are at depths {list(heads.depths)}.")
        policy = Confidence(metric, [thresholds.get(depth) for depth in heads.depths], depths=heads.depths)
    check_thresholds(policy.metric, [t for t in policy.thresholds if t is not None and math.isfinite(t)])
    policy.check(heads)
    policy.exit_depths(heads.depths)
    pairs = zip(heads.depths, policy.thresholds, strict=True)
    return policy.metric, {depth: float(t) for depth, t in pairs if t is not None}, policy
