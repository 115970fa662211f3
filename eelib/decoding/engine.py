"""Decoding engine: heads draft, the full model verifies.

`generate` goes through `model.generate(custom_generate=...)`, so that transformers handles generation configs, logits
processors and stopping criteria. The loop over tokens is in `eelib.decoding.session`.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from eelib.backbone.packing import packed
from eelib.backbone.probing import unwrapped
from eelib.backbone.segments import Backbone
from eelib.backbone.tokens import attention_mask, token_ids
from eelib.decoding.options import prepared
from eelib.decoding.output import DecodingOutput
from eelib.decoding.policies import Policy
from eelib.decoding.session import DecodingCall, Session
from eelib.errors import EelibError, InvalidInputError
from eelib.heads.exit_heads import ExitHeads


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Any,
    *,
    policy: Policy,
    heads: ExitHeads | None = None,
    verify: bool = True,
    exact: bool | None = None,
    streamer: BaseStreamer | None = None,
    session: Callable[[DecodingCall], Session] = Session,
    **generate_kwargs,
) -> DecodingOutput:
    """Decode one sequence with early exits, losslessly by default.

    Uses packed weights where they are faster (`eelib.backbone.packed`).

    Args:
        model: a transformers model in eval mode, possibly wrapped (`torch.compile`, PEFT).
        input_ids: the prompt, [1, position]: a tensor, an array, a list, or a tokenizer's output.
        policy: where to exit and when to stop drafting.
        heads: trained heads; None for the logit lens.
        verify: if True, exits are drafts, and the output is the full model's: the same tokens when greedy, the same
            distribution when sampling. If False, an exited token is final.
        exact: verify with the bits of decoding one token at a time (`eelib.decoding.bitwise`), so that even in bfloat16
            no near-tie falls the other way. None: in 16-bit types on a CPU if it adds at most 3% to a verification, as
            timed on this machine; `stats.exact` tells.
        streamer: gets the prompt and each token once it is final, and `.end()` in any case.
        session: a subclass of `Session` that decodes in another way, as in `eelib.baselines`.
        generate_kwargs: transformers' own (max_new_tokens, do_sample, temperature, eos_token_id, stop_strings with
            tokenizer, attention_mask, logits_processor, stopping_criteria, generation_config, ...); defaults come from
            `model.generation_config`. Processors and criteria may be stateful (`eelib.decoding.branches`).

    Raises:
        InvalidInputError: not a prompt, policy or heads, an argument that transformers refuses, or a model with
            active dropout.
        UnsupportedError: an option that this engine does not support.
        HeadsError: heads that do not fit model or policy.
        ModelError: the model cannot be split into blocks.

    Example:
        >>> policy = FixedExit(depth=3, draft_length=2)
        >>> output = generate(model, input_ids, policy=policy, heads=heads, max_new_tokens=8, do_sample=False)
        >>> plain = model.generate(input_ids, max_new_tokens=8, do_sample=False)
        >>> bool((output.sequences == plain).all())
        True
    """

    given, began = frozenset(generate_kwargs), False
    _check(session, streamer, given)

    def engine(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        nonlocal began
        began = True
        made = (logits_processor, stopping_criteria, generation_config, model_kwargs)
        call = DecodingCall(model, input_ids, policy, heads, *made, verify, exact, streamer, given)
        return _decode(call, session)

    try:
        model, mask = unwrapped(model), attention_mask(input_ids)
        if mask is not None:
            generate_kwargs.setdefault("attention_mask", mask.to(model.device))
        ids = token_ids(input_ids, vocab_size=Backbone.of(model).n_tokens).to(model.device)
        return model.generate(ids, custom_generate=engine, **prepared(model, generate_kwargs))
    except (EelibError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if began:
            raise
        # So far transformers has only looked at what it was given.
        raise InvalidInputError(f"transformers does not take these arguments of generate: {error}") from error
    finally:
        if streamer is not None:
            streamer.end()  # also where nothing was decoded: somebody may be waiting


def _check(session: object, streamer: object, given: Collection[str]) -> None:
    if not callable(session):
        raise InvalidInputError(f"session={session!r}: expected a subclass of Session.")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise InvalidInputError(
            f"streamer={streamer!r}: expected an object with `put` and `end`, as transformers' are."
        )
    if "custom_generate" in given:
        raise InvalidInputError("custom_generate: eelib.generate is one itself; `session` says how tokens are made.")


def custom_generate(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch position"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    heads: ExitHeads | None = None,
    policy: Policy | None = None,
    verify: bool = True,
    exact: bool | None = None,
    **model_kwargs,
):
    """Early exits in transformers' own `generate`, as its `custom_generate`.

    Returns what transformers would: the sequences, or with `return_dict_in_generate` a `DecodingOutput`. Transformers
    (5.23) drops streamer and tokenizer on the way to a callable; use `eelib.generate` for streaming and stop strings.

    Example:
        >>> options = {"heads": heads, "policy": FixedExit(3, 2), "max_new_tokens": 8, "do_sample": False}
        >>> sequences = model.generate(input_ids, custom_generate=custom_generate, **options)
    """
    if policy is None:
        raise InvalidInputError("custom_generate needs policy=..., for example eelib.FixedExit(6, 4).")
    made = (logits_processor, stopping_criteria, generation_config, model_kwargs)
    output = _decode(DecodingCall(model, input_ids, policy, heads, *made, verify, exact), Session)
    return output if generation_config.return_dict_in_generate else output.sequences


def _decode(call: DecodingCall, session: Callable[[DecodingCall], Session]) -> DecodingOutput:
    decoding = session(call)  # refuses what it cannot do before anything is packed
    with packed(call.model) if call.heads is None else packed(call.model, call.heads):
        return decoding.decode()
