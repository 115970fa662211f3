"""Is the output the model's own? And where it is not: is the difference a near-tie of its two best tokens?"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.decoding.engine import generate
from eelib.decoding.policies import Policy
from eelib.heads.exit_heads import ExitHeads

NEAR_TIE_ROUNDINGS = 8
"""A gap between the two best logits counts as a near-tie up to this many units of rounding at their size.

Logits come out of sums whose order of additions depends on how many positions share a call, so each carries the error
of a few roundings; a gap below that is decided by the order, not by the model.
"""


@torch.no_grad()
def verify_lossless(
    model: PreTrainedModel,
    heads: ExitHeads | None,
    policy: Policy | Mapping[str, Policy],
    prompts: Sequence[Tensor],
    *,
    exact: bool = False,
    **generate_kwargs,
) -> pd.DataFrame:
    """Compares `eelib.generate` with the model's own greedy `generate`, prompt [1, position] by prompt.

    Args:
        policy: one, or several by name, all compared with one and the same text of the model's own.
        exact: as in `eelib.generate`.

    Columns: prompt; policy; tokens (emitted by the model); equal; first_mismatch (index among the new tokens; -1 when
    equal); gap (of the model's two best logits there, from a plain pass over the common prefix); rounding (one unit
    of the type's rounding at the best logit's size); near_tie (gap <= NEAR_TIE_ROUNDINGS * rounding); drafted;
    accepted.
    """
    policies = policy if isinstance(policy, Mapping) else {repr(policy): policy}
    rows = []
    for index, prompt in enumerate(tqdm(prompts, desc="comparing", unit="prompt")):
        own = model.generate(prompt, **{"do_sample": False, **generate_kwargs})[0]
        for name, one in policies.items():
            out = generate(model, prompt, heads=heads, policy=one, exact=exact, **generate_kwargs)
            found = first_mismatch(model, prompt.shape[1], out.sequences[0], own)
            counts = {"drafted": out.stats.drafted, "accepted": out.stats.accepted}
            rows.append({"prompt": index, "policy": name, **found, **counts})
    return pd.DataFrame(rows)


@torch.no_grad()
def first_mismatch(
    model: PreTrainedModel, prompt_length: int, ours: Int[Tensor, " ours"], own: Int[Tensor, " own"]
) -> dict[str, int | float | bool]:
    """Where two texts after one prompt part, and whether that is a near-tie; the columns of `verify_lossless`.

    Args:
        ours, own: prompt and new tokens; `own` is the model's.
    """
    found = {"tokens": len(own) - prompt_length, "equal": torch.equal(ours, own)}
    return found | _gap(model, prompt_length, ours, own)


def _gap(model: PreTrainedModel, prompt_length: int, ours: Tensor, own: Tensor) -> dict:
    if torch.equal(ours, own):
        return {"first_mismatch": -1, "gap": float("nan"), "rounding": float("nan"), "near_tie": False}
    common = min(len(ours), len(own))
    differing = (ours[:common] != own[:common]).nonzero()
    at = differing[0].item() if len(differing) else common
    logits = model(input_ids=own[None, :at]).logits[0, -1].float()
    best = logits.topk(2).values
    gap = (best[0] - best[1]).item()
    rounding = torch.finfo(model.dtype).eps * best[0].abs().item()
    near_tie = gap <= NEAR_TIE_ROUNDINGS * rounding
    return {"first_mismatch": at - prompt_length, "gap": gap, "rounding": rounding, "near_tie": near_tie}
