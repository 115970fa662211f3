"""How sure a head is: confidence metrics from one pass over its logits, all oriented so that larger = surer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from eelib.errors import InvalidInputError

METRICS = ("entropy", "max_prob", "margin", "max_logit", "margin_logit")
"""Known metrics, in the order of the paper's four (arXiv 2407.21082); `margin_logit` is kept for comparison.

entropy: -H(p) in nats; max_prob: p(1); margin: p(1) - p(2); max_logit: z(1); margin_logit: z(1) - z(2), where z are
the logits, p their softmax, (1) and (2) the two largest.
"""

AXIS_LABELS = {
    "entropy": "entropy: −H(p) [nats]",
    "max_prob": "max_prob: p(1)",
    "margin": "margin: p(1) − p(2)",
    "max_logit": "max_logit: z(1)",
    "margin_logit": "margin_logit: z(1) − z(2)",
}
"""What axes say of each metric; `entropy` holds the negative of the entropy, so that larger is surer."""


def check_metric(metric: str) -> str:
    """The metric's name, if it is known. Raises InvalidInputError otherwise."""
    if metric not in METRICS:
        raise InvalidInputError(f"Unknown metric {metric!r}: expected one of {', '.join(METRICS)}.")
    return metric


def confidence(
    logits: Float[Tensor, "... classes"], metrics: Sequence[str] = METRICS
) -> dict[str, Float[Tensor, "..."]]:
    """Scores of each metric, in float32 (float64 for float64 logits). Larger = more confident.

    Raises:
        InvalidInputError: an unknown metric.
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
    return {check_metric(metric): compute[metric]() for metric in metrics}
