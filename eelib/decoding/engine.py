"""The decoding engine: heads draft, the full model verifies, and the output is the model's own.

`generate` goes through `model.generate(custom_generate=...)`, so that transformers does what it does best:
generation configs, logits processors and stopping criteria. What happens from token to token is in
`eelib.decoding.session`.
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
from eelib.decoding.policies import Policy
from eelib.decoding.session import DecodingCall, DecodingOutput, Session
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
    """Decodes one sequence with early exits, from packed weights where that is quicker (`eelib.backbone.packed`).

    Args:
        model: of transformers, in evaluation mode; also one that is wrapped (`torch.compile`, PEFT).
        input_ids: the prompt, [1, position]: a tensor, an array, a list, or what the tokenizer returns.
        policy: where to exit and when to stop drafting.
        heads: trained heads; None reads exits with the model's own norm and unembedding.
        verify: True: exits are drafts, and the output is the full model's own: the same tokens when greedy, the same
            distribution when sampling. False: an exited token is final.
        exact: verify with the bits that decoding one token at a time has (`eelib.decoding.bitwise`), so that also in
            bfloat16 not even a near-tie falls the other way. None: in 16-bit types on a CPU, where that costs under
            3% of a verification by this machine's clock; `stats.exact` says so.
        streamer: gets the prompt and each token once it is final, and `.end()` in any case.
        session: another way to go from token to token: a subclass of `Session`, as in `eelib.baselines`.
        generate_kwargs: transformers' own (max_new_tokens, do_sample, temperature, eos_token_id, stop_strings with
            tokenizer, attention_mask, logits_processor, stopping_criteria, generation_config, ...);
            what is not given comes from `model.generation_config`. Processors and stopping criteria may keep a state:
            drafts are asked of copies (`eelib.decoding.branches`).

    Raises:
        InvalidInputError: a prompt, policy or heads that are none, an argument that transformers does not take, or a
            model that draws dropout.
        UnsupportedError: an option that this engine does not offer. HeadsError: heads that do not fit model or policy.
        ModelError: a model that cannot be cut.
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
    except EelibError:
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
    """For `model.generate(input_ids, custom_generate=eelib.custom_generate, heads=heads, policy=policy)`.

    Returns what transformers would: the sequences, or with `return_dict_in_generate` a `DecodingOutput`. Transformers
    (5.23) drops a streamer and a tokenizer on the way to a callable; use `eelib.generate` for streaming and for stop
    strings.
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
