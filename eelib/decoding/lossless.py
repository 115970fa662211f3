"""Losslessness: is the output the model's own, except for near-ties?"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, PreTrainedModel

from eelib.backbone.segments import Backbone
from eelib.backbone.tokens import sequences_of
from eelib.decoding.branches import branch
from eelib.decoding.engine import generate
from eelib.decoding.options import prepared
from eelib.decoding.policies import Policy
from eelib.errors import InvalidInputError
from eelib.heads.exit_heads import ExitHeads

NEAR_TIE_ROUNDINGS = 8
"""Maximum gap of a near-tie between the two best logits, in units of rounding at their size.

The summation order of logits depends on how many positions share a call, so each carries an error of a few roundings; a
smaller gap is decided by the order, not by the model.
"""


@torch.no_grad()
def verify_lossless(
    model: PreTrainedModel,
    heads: ExitHeads | None,
    policy: Policy | Mapping[str, Policy],
    prompts: Any,
    *,
    exact: bool | None = None,
    **generate_kwargs,
) -> pd.DataFrame:
    """Compare `eelib.generate` with the model's own `generate`, prompt by prompt.

    Args:
        policy: one, or several by name, all compared with the same text of the model's.
        prompts: token ids of several prompts, each as for `eelib.generate`.
        exact: as in `eelib.generate`.
        generate_kwargs: as in `eelib.generate`. Decoding is greedy unless `do_sample=True` is among them.

    Returns:
        Columns: prompt; policy; tokens (emitted by the model); equal; first_mismatch (index among the new tokens; -1 if
            equal); gap (between the model's two best scores there, after logits processors); rounding (one unit of the
            dtype's rounding at the best logit); near_tie (gap <= NEAR_TIE_ROUNDINGS * rounding); drafted; accepted.

    Example:
        >>> table = verify_lossless(model, heads, FixedExit(3, 2), [input_ids], max_new_tokens=8)
        >>> bool(table.equal.all())
        True
    """
    policies = policy if isinstance(policy, Mapping) else {repr(policy): policy}
    options = {"do_sample": False, **generate_kwargs, "return_dict_in_generate": False}
    rows = []
    asked = [prompt[None].to(model.device) for prompt in sequences_of(prompts, Backbone.of(model).n_tokens)]
    if not asked:
        raise InvalidInputError("No prompts to compare texts on.")
    for index, prompt in enumerate(tqdm(asked, desc="comparing", unit="prompt")):
        own = model.generate(prompt, **options)[0]
        for name, one in policies.items():
            out = generate(model, prompt, heads=heads, policy=one, exact=exact, **options)
            found = first_mismatch(model, prompt.shape[1], out.sequences[0], own, **options)
            counts = {"drafted": out.stats.drafted, "accepted": out.stats.accepted}
            rows.append({"prompt": index, "policy": name, **found, **counts})
    return pd.DataFrame(rows)


@torch.no_grad()
def first_mismatch(
    model: PreTrainedModel,
    prompt_length: int,
    ours: Int[Tensor, " ours"],
    own: Int[Tensor, " own"],
    **generate_kwargs,
) -> dict[str, int | float | bool]:
    """First mismatch of two continuations, and whether it is a near-tie.

    Args:
        ours, own: prompt and new tokens; `own` is the model's.
        generate_kwargs: with which `own` was made.

    Returns:
        Columns of `verify_lossless`.
    """
    found = {"tokens": len(own) - prompt_length, "equal": torch.equal(ours, own)}
    return found | _gap(model, prompt_length, ours, own, generate_kwargs)


def nearly_tie(gap, size, dtype: torch.dtype):
    """Whether gaps are near-ties of best logits this large.

    Numbers or tensors; `size` is the absolute value.
    """
    return gap <= NEAR_TIE_ROUNDINGS * torch.finfo(dtype).eps * size


def _gap(model: PreTrainedModel, prompt_length: int, ours: Tensor, own: Tensor, generate_kwargs: dict) -> dict:
    if torch.equal(ours, own):
        return {"first_mismatch": -1, "gap": float("nan"), "rounding": float("nan"), "near_tie": False}
    common = min(len(ours), len(own))
    differing = (ours[:common] != own[:common]).nonzero()
    at = differing[0].item() if len(differing) else common
    best = _scores(model, own[None, :prompt_length], own[None, :at], generate_kwargs).topk(2).values
    gap = (best[0] - best[1]).item()
    rounding = torch.finfo(model.dtype).eps * best[0].abs().item()
    near_tie = nearly_tie(gap, best[0].abs().item(), model.dtype)
    return {"first_mismatch": at - prompt_length, "gap": gap, "rounding": rounding, "near_tie": near_tie}


def _scores(model: PreTrainedModel, prompt: Tensor, prefix: Tensor, generate_kwargs: dict) -> Tensor:
    """Scores of the model's next token after a prefix, [vocab].

    Logits after its processors. The prefix is [1, position].
    """
    backbone = Backbone.of(model)
    logits = backbone.unembed(backbone.states(prefix, [backbone.n_blocks])[backbone.n_blocks][:, -1]).float()

    def processors(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        return LogitsProcessorList(branch(logits_processor))

    options = {name: value for name, value in generate_kwargs.items() if name != "streamer"}
    made = model.generate(prompt, custom_generate=processors, **prepared(model, {"do_sample": False} | options))
    return made(prefix, logits)[0]
