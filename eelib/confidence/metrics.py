"""Confidence metrics of a head's logits; larger is more confident."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eelib.errors import InvalidInputError

METRICS = ("entropy", "max_prob", "margin", "max_logit")
"""The paper's four metrics (arXiv 2407.21082), in its order.

With z the logits, p their softmax, and (1) and (2) the two largest:

- `entropy`: -H(p) in nats.
- `max_prob`: p(1).
- `margin`: p(1) - p(2).
- `max_logit`: z(1).

A fifth is built in for comparison, `margin_logit`: z(1) - z(2).
"""
BUILT_IN = (*METRICS, "margin_logit")
"""Metrics that cannot be registered again."""

Score = Callable[[Float[Tensor, "... classes"]], Float[Tensor, "..."]]


@dataclass(frozen=True)
class _Metric:
    """Confidence metric.

    Attributes:
        label: on axes of figures.
        low, high: range of its scores.
        score: function of a registered metric; None for a built-in one.
    """

    label: str
    low: float = -float("inf")
    high: float = float("inf")
    score: Score | None = None


_KNOWN = {
    "entropy": _Metric("entropy: −H(p) [nats]", high=0.0),  # the negative of the entropy, so that larger is surer
    "max_prob": _Metric("max_prob: p(1)", 0.0, 1.0),
    "margin": _Metric("margin: p(1) − p(2)", 0.0, 1.0),
    "max_logit": _Metric("max_logit: z(1)"),
    "margin_logit": _Metric("margin_logit: z(1) − z(2)", 0.0),
}


def known_metrics() -> tuple[str, ...]:
    """Names of all metrics: built-in ones, then registered ones.

    Example:
        >>> known_metrics()[:4] == METRICS
        True
    """
    return tuple(_KNOWN)


def register_metric(
    name: str, score: Score, *, label: str | None = None, low: float = -float("inf"), high: float = float("inf")
) -> None:
    """Register a metric for traces, benchmarks and `Confidence`.

    Args:
        name: a new name. Registering it again replaces the function, as when a notebook's cell is re-run.
        score: from a head's logits [..., classes], float32 or float64, to scores [...]; larger = more confident. With a
            draft vocabulary the last class is "other".
        label: on axes of figures; the name by default.
        low, high: range of the scores; a calibration file with thresholds outside it is refused.

    Raises:
        InvalidInputError: the name is a built-in metric's, or not an identifier.

    Example:
        >>> register_metric("collision", lambda logits: logits.softmax(-1).square().sum(-1), low=0, high=1)
        >>> "collision" in known_metrics()
        True
    """
    if name in BUILT_IN or not name.isidentifier():
        raise InvalidInputError(f"register_metric({name!r}): expected an identifier that no built-in metric has.")
    _KNOWN[name] = _Metric(label or name, low, high, score)


def check_metric(metric: str) -> str:
    """The metric's name.

    Raises:
        InvalidInputError: it is unknown.
    """
    if not isinstance(metric, str) or metric not in _KNOWN:
        raise InvalidInputError(
            f"Unknown metric {metric!r}: expected one of {', '.join(_KNOWN)}, or register your own with "
            "register_metric."
        )
    return metric


def axis_label(metric: str) -> str:
    """Axis label of a metric; the name itself for other columns."""
    return _KNOWN[metric].label if metric in _KNOWN else metric


def check_thresholds(metric: str, thresholds: Sequence[float | None]) -> None:
    """Refuse thresholds outside the metric's range, beyond rounding.

    Raises:
        InvalidInputError: there are such.
    """
    known = _KNOWN[check_metric(metric)]
    outside = [t for t in thresholds if t is not None and not known.low - 1e-3 <= t <= known.high + 1e-3]
    if outside:
        raise InvalidInputError(
            f"Thresholds {outside} of {metric}: expected values between {known.low:g} and {known.high:g}, the range of "
            "its scores."
        )


def confidence(
    logits: Float[Tensor, "... classes"], metrics: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "..."]]:
    """Scores of each metric (None: all known) for logits.

    In float32, or float64 for float64 logits.

    Raises:
        InvalidInputError: an unknown metric, or a registered one that does not return one score a row.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    top = z.topk(2, dim=-1).values
    log_normalizer = z.logsumexp(dim=-1, keepdim=True)
    p = (top - log_normalizer).exp()
    compute = {
        "entropy": lambda: -torch.special.entr((z - log_normalizer).exp()).sum(-1),
        "max_prob": lambda: p[..., 0],
        "margin": lambda: p[..., 0] - p[..., 1],
        "max_logit": lambda: top[..., 0],
        "margin_logit": lambda: top[..., 0] - top[..., 1],
    }
    chosen = known_metrics() if metrics is None else [check_metric(metric) for metric in metrics]
    return {metric: compute[metric]() if metric in compute else _registered(metric, z) for metric in chosen}


def _registered(metric: str, z: Tensor) -> Tensor:
    score = _KNOWN[metric].score(z)
    if not isinstance(score, Tensor) or score.shape != z.shape[:-1]:
        found = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise InvalidInputError(
            f"The metric {metric!r} gave {found} for logits {list(z.shape)}: expected {list(z.shape[:-1])}."
        )
    return score.to(z.dtype)
