"""CALM (arXiv 2207.07061): three confidences, one decaying threshold, states copied upward.

Its threshold is set by Learn-then-Test: candidates from strict to loose are tested on calibration sequences until one
fails. Keys and values above an exit are computed from the state at the exit, which is cheap but differs from the
model's: `CALMSession` shows the cost in agreement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from eelib.backbone.segments import pad
from eelib.backbone.teacher import Teacher
from eelib.calibration.cascade import HeadScores
from eelib.calibration.risk_control import control_risk
from eelib.confidence.metrics import confidence
from eelib.confidence.traces import record_traces
from eelib.decoding.policies import Policy
from eelib.decoding.session import Session
from eelib.errors import CorpusError, InvalidInputError
from eelib.heads.exit_heads import ExitHeads
from eelib.settings import COUNT, Number, settle

CONFIDENCES = ("softmax", "saturation", "classifier")
"""CALM's confidence measures.

- `softmax`: p(1) - p(2).
- `saturation`: cosine of the state with that at the exit before (the first exit has none).
- `classifier`: linear, on the state, trained to predict the head's agreement with the model.
"""


@dataclass(frozen=True)
class CALM(Policy):
    """Exit where the confidence reaches a decaying threshold.

    For new token t it is clip(0.9 λ + 0.1 exp(-τ t / N)).

    Attributes:
        confidence: one of CONFIDENCES.
        threshold: λ.
        decay: τ.
        length: N, the maximum number of new tokens.
        classifiers: by depth, from `train_classifiers`.
    """

    confidence: str
    threshold: float
    decay: float = 4.0
    length: int = 40
    classifiers: Mapping[int, Pipeline] | None = None

    def __post_init__(self):
        settle(self, length=COUNT, decay=Number(least=0))
        if self.confidence not in CONFIDENCES:
            raise InvalidInputError(
                f"Unknown confidence {self.confidence!r}: expected one of {', '.join(CONFIDENCES)}."
            )
        if self.confidence == "classifier" and not self.classifiers:
            raise InvalidInputError("confidence='classifier' needs classifiers=..., from `train_classifiers`.")

    def threshold_at(self, index: int) -> float:
        """Threshold for the new token with this index."""
        if np.isinf(self.threshold):
            return self.threshold
        return float(np.clip(0.9 * self.threshold + 0.1 * np.exp(-self.decay * index / self.length), 0, 1))

    def exit_depths(self, head_depths):
        return tuple(head_depths)

    def start(self, prompt, head_depths):
        below = dict(zip(head_depths[1:], head_depths, strict=False))
        return {"first": prompt.shape[1] - 1, "below": below, "last": None, "hidden": None}

    def exits(self, state, depth, logits, hidden, position):
        # An exit that declined below leaves nothing to compare with.
        before = state["hidden"] if state["last"] == (position, state["below"].get(depth)) else None
        state["last"], state["hidden"] = (position, depth), hidden
        score = _score(self.confidence, logits, hidden, before, (self.classifiers or {}).get(depth)).item()
        return score >= self.threshold_at(position - state["first"]), score


class CALMSession(Session):
    """CALM's early exit: no verification, states copied to all blocks above.

    Each block above runs in full to make its keys and values, where CALM would compute only these: seconds are an upper
    bound, and `block_positions` count only blocks below a token's exit.
    """

    def emit(self, token, draft=None, drafted=False):
        if draft is not None:
            self.frontier.propagate(self.exit_depths.index(draft.depth) + 1)
        super().emit(token, draft, drafted)


@torch.no_grad()
def train_classifiers(
    model: PreTrainedModel, heads: ExitHeads, sequences: Sequence[Tensor], loss_mask: Sequence[Tensor] | None = None
) -> dict[int, Pipeline]:
    """Logistic regression per depth, from the state to the head's agreement."""
    teacher, found, agrees = Teacher(model, heads.depths), {d: [] for d in heads.depths}, {d: [] for d in heads.depths}
    for start in range(0, len(sequences), 8):
        masks = None if loss_mask is None else loss_mask[start : start + 8]
        outputs = teacher.outputs(sequences[start : start + 8], masks)
        for depth in heads.depths:
            found[depth].append(outputs.states[depth].float().cpu().numpy())
            tokens = heads.drafted_tokens(heads.logits(depth, outputs.states[depth]))
            agrees[depth].append((tokens == outputs.argmax).cpu().numpy())
    classifiers = {}
    for depth in heads.depths:
        right = np.concatenate(agrees[depth])
        if right.all() or not right.any():
            raise CorpusError(f"The head at depth {depth} is always right or always wrong on this text: use more text.")
        fit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
        classifiers[depth] = fit.fit(np.concatenate(found[depth]), right)
    return classifiers


@torch.no_grad()
def confidence_traces(
    model: PreTrainedModel,
    heads: ExitHeads,
    sequences: Sequence[Tensor],
    loss_mask: Sequence[Tensor] | None = None,
    classifiers: Mapping[int, Pipeline] | None = None,
) -> pd.DataFrame:
    """Traces with columns `softmax`, `saturation` and, with classifiers, `classifier`.

    -inf where a head declines.
    """
    traces = record_traces(model, heads, sequences, loss_mask=loss_mask)
    scores = {name: [] for name in CONFIDENCES if name != "classifier" or classifiers}
    for start in range(0, len(sequences), 8):
        tokens, real = pad(sequences[start : start + 8], None if loss_mask is None else loss_mask[start : start + 8])
        states, before = heads.backbone.states(tokens.to(model.device), heads.depths), None
        table = {name: [] for name in scores}
        for depth in heads.depths:
            hidden = states[depth][real.to(model.device)]
            logits = heads.logits(depth, hidden)
            for name in scores:
                score = _score(name, logits, hidden, before, (classifiers or {}).get(depth))
                table[name].append(score.float().cpu().numpy())
            before = hidden
        for name, columns in table.items():
            scores[name].append(np.stack(columns, axis=1).ravel())  # token by token, head by head, as traces are
    for name, parts in scores.items():
        traces[name] = np.where(traces.head_token < 0, -np.inf, np.concatenate(parts)).astype(np.float32)
    return traces


def learn_then_test(traces: pd.DataFrame, column: str, epsilon: float, delta: float, points: int = 100) -> float:
    """CALM's λ: loosest threshold whose share of wrong exits is bounded.

    One threshold for all exits, such that at most 1 - ε of the tokens of new sequences exit and disagree, except with
    probability δ (Learn-then-Test with the Hoeffding-Bentkus p-value, candidates from 1 down until one fails); infinite
    if the first fails. It is tested without decay, which makes the first tokens stricter and is not part of the
    promise.
    """
    tokens = HeadScores.of(traces, column)
    path = np.repeat(np.linspace(1, 0, points)[:, None], len(tokens.depths), axis=1)
    options = {"p_value": "hoeffding_bentkus", "path": path}
    (threshold, *_), _, _ = control_risk(tokens, "output_agreement", epsilon, delta, **options)
    return float("inf") if threshold is None else threshold


def thresholds(traces: pd.DataFrame, epsilons: Sequence[float], delta: float) -> pd.DataFrame:
    """`learn_then_test` for each confidence in the traces and each ε.

    Columns: confidence, epsilon, threshold.
    """
    return pd.DataFrame(
        {"confidence": name, "epsilon": epsilon, "threshold": learn_then_test(traces, name, epsilon, delta)}
        for name in CONFIDENCES
        if name in traces
        for epsilon in epsilons
    )


def _score(
    name: str,
    logits: Float[Tensor, "token classes"],
    hidden: Float[Tensor, "token hidden"],
    before: Float[Tensor, "token hidden"] | None,
    classifier: Pipeline | None,
) -> Float[Tensor, " token"]:
    if name == "softmax":
        return confidence(logits, ("margin",))["margin"]
    if name == "saturation":
        if before is None:
            return hidden.new_full(hidden.shape[:1], float("-inf"))
        return F.cosine_similarity(hidden.float(), before.float(), dim=-1)
    return torch.from_numpy(classifier.predict_proba(hidden.float().cpu().numpy())[:, 1])
