"""Decoding engine: heads draft, the full model verifies.

`generate` goes through `model.generate(custom_generate=...)`, so that transformers handles generation configs, logits
processors and stopping criteria. The loop over tokens is in `eelib.decoding.session`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
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
from eelib.decoding.batches.gathering import Gathering, gathering_of
from eelib.decoding.batches.output import BatchOutput
from eelib.decoding.batches.prompts import generators_of, numbered, only_prompt, prompts_of
from eelib.decoding.batches.scheduler import decode_batch
from eelib.decoding.branches import branch
from eelib.decoding.options import prepared
from eelib.decoding.output import DecodingOutput
from eelib.decoding.policies import Policy
from eelib.decoding.session import DecodingCall, Session
from eelib.errors import EelibError, InvalidInputError
from eelib.heads.exit_heads import ExitHeads
from eelib.settings import Number


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Any,
    *,
    policy: Policy,
    heads: ExitHeads | None = None,
    verify: bool = True,
    exact: bool | None = None,
    streamer: BaseStreamer | Sequence[BaseStreamer | None] | None = None,
    session: Callable[[DecodingCall], Session] = Session,
    gather: str | Gathering = "wait",
    seeds: Sequence[int] | int | None = None,
    row_options: Sequence[Mapping[str, Any]] | None = None,
    **generate_kwargs,
) -> DecodingOutput | BatchOutput:
    """Decode one or several prompts with early exits, losslessly by default.

    Uses packed weights where they are faster (`eelib.backbone.packed`). Several prompts are decoded at once, each with
    the text that it would have alone (`eelib.decoding.batches`).

    Args:
        model: a transformers model in eval mode, possibly wrapped (`torch.compile`, PEFT).
        input_ids: the prompt, [1, position]: a tensor, an array, a list, or a tokenizer's output. Several: [row,
            position] with an attention mask if padded on the left, or a list of prompts of any lengths.
        policy: where to exit and when to stop drafting.
        heads: trained heads; None for the logit lens.
        verify: if True, exits are drafts, and the output is the full model's: the same tokens when greedy, the same
            distribution when sampling. If False, an exited token is final.
        exact: verify with the bits of decoding one token at a time (`eelib.decoding.bitwise`), so that even in bfloat16
            no near-tie falls the other way. None: in 16-bit types on a CPU if it adds at most 3% to a verification, as
            timed on this machine, and never for several rows; `stats.exact` tells.
        streamer: gets the prompt and each token once it is final, and `.end()` in any case. For several rows, a list.
        session: a subclass of `Session` that decodes in another way, as in `eelib.baselines`.
        gather: which rows share a call: "wait", "each", "all", "drex", or a rule (`eelib.decoding.batches`).
        seeds: of sampling, one a row: a row draws what it would alone after `torch.manual_seed`. None: from torch's own
            generator.
        row_options: for each prompt, generation options in place of those for all; `policy` may be among them.
        generate_kwargs: transformers' own (max_new_tokens, do_sample, temperature, eos_token_id, stop_strings with
            tokenizer, attention_mask, logits_processor, stopping_criteria, generation_config, ...); defaults come from
            `model.generation_config`. Processors and criteria may be stateful (`eelib.decoding.branches`); each of
            several rows gets copies.

    Returns:
        A `DecodingOutput`; for several rows a `BatchOutput`.

    Raises:
        InvalidInputError: not a prompt, policy or heads, an argument that transformers refuses, or a model with
            active dropout. The row is named where there are several.
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
    streamers = list(streamer) if isinstance(streamer, list | tuple) else [streamer]
    _check(session, streamers, generate_kwargs)
    try:
        rule = gathering_of(gather)
        model, options = unwrapped(model), {"policy": policy, **generate_kwargs}
        settings = {"heads": heads, "verify": verify, "exact": exact}
        input_ids = only_prompt(input_ids)
        prompts = prompts_of(input_ids, generate_kwargs.get("attention_mask"))
        repeats = _repeats(model, generate_kwargs)
        if prompts is None and repeats == 1:
            options |= _row_options(row_options, 1)[0]
            call = prepared_call(model, input_ids, options, streamer=streamers[0], **settings)
            generators = generators_of(seeds, 1, model.device, sample=True)
            return _decode(replace(call, generator=generators[0]), session)
        rows = _rows(prompts or [(input_ids, None)], repeats, options, row_options)
        if streamer is not None and len(streamers) != len(rows):
            raise InvalidInputError(f"{len(streamers)} streamers for {len(rows)} rows: expected a list, one a row.")
        streamers = streamers if streamer is not None else [None] * len(rows)
        settings["exact"] = bool(exact)  # what it costs was timed for one row
        calls = [_row_call(number, model, *row, streamers[number], settings) for number, row in enumerate(rows)]
        generators = generators_of(seeds, len(calls), model.device, any(c.generation_config.do_sample for c in calls))
        if repeats > 1 and not calls[0].generation_config.do_sample:
            raise InvalidInputError(f"num_return_sequences={repeats} without do_sample=True: all would be the same.")
        return decode_batch([replace(c, generator=g) for c, g in zip(calls, generators, strict=True)], session, rule)
    finally:
        for one in streamers:
            if one is not None:
                one.end()  # also where nothing was decoded: somebody may be waiting


def prepared_call(
    model: PreTrainedModel,
    prompt: Any,
    options: Mapping[str, Any],
    *,
    heads: ExitHeads | None,
    verify: bool,
    exact: bool | None,
    streamer: BaseStreamer | None = None,
) -> DecodingCall:
    """What one prompt is decoded with, as transformers prepares it.

    Args:
        options: the policy, and generation options as for `generate`.
    """
    generate_kwargs = dict(options)
    policy = generate_kwargs.pop("policy")
    given = frozenset(generate_kwargs)

    def prepare(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        made = (logits_processor, stopping_criteria, generation_config, model_kwargs)
        return DecodingCall(model, input_ids, policy, heads, *made, verify, exact, streamer, given)

    try:
        mask = attention_mask(prompt)
        if mask is not None:
            generate_kwargs.setdefault("attention_mask", mask.to(model.device))
        ids = token_ids(prompt, vocab_size=Backbone.of(model).n_tokens).to(model.device)
        return model.generate(ids, custom_generate=prepare, **prepared(model, generate_kwargs))
    except (EelibError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # so far transformers has only looked at what it was given
        raise InvalidInputError(f"transformers does not take these arguments of generate: {error}") from error


def row_call(model: PreTrainedModel, prompt: Any, options: Mapping[str, Any], **settings: Any) -> DecodingCall:
    """`prepared_call` for one of several rows.

    Its processors and criteria are copies, since they may keep a state.
    """
    call = prepared_call(model, prompt, options, **settings)
    rules = LogitsProcessorList(branch(call.logits_processor)), StoppingCriteriaList(branch(call.stopping_criteria))
    return replace(call, logits_processor=rules[0], stopping_criteria=rules[1])


def _row_call(number: int, model: PreTrainedModel, prompt: Any, options: Mapping, streamer: Any, settings: Mapping):
    try:
        return row_call(model, prompt, options, streamer=streamer, **settings)
    except Exception as error:
        raise numbered(error, number) from error


def _rows(
    prompts: Sequence[tuple[Any, Any]], repeats: int, options: Mapping[str, Any], row_options: Any
) -> list[tuple[Any, dict[str, Any]]]:
    """Prompt and options of each row."""
    rows = []
    for (prompt, mask), own in zip(prompts, _row_options(row_options, len(prompts)), strict=True):
        of_row = {**options, **own}
        if len(prompts) > 1:
            of_row.pop("attention_mask", None)
            if mask is not None:
                of_row["attention_mask"] = mask[None] if isinstance(mask, Tensor) else token_ids(mask, "attention_mask")
        rows += [(prompt, of_row | ({"num_return_sequences": 1} if repeats > 1 else {}))] * repeats
    return rows


def _row_options(given: Any, n: int) -> list[Mapping[str, Any]]:
    if given is None:
        return [{}] * n
    if not isinstance(given, Sequence) or len(given) != n or not all(isinstance(own, Mapping) for own in given):
        raise InvalidInputError(f"row_options={given!r}: expected a dict of options for each of {n} prompts.")
    return list(given)


def _repeats(model: PreTrainedModel, generate_kwargs: Mapping[str, Any]) -> int:
    """Number of rows for each prompt: num_return_sequences."""
    config = generate_kwargs.get("generation_config") or model.generation_config
    asked = generate_kwargs.get("num_return_sequences", getattr(config, "num_return_sequences", None))
    return Number(least=1, whole=True, optional=True)("num_return_sequences", asked) or 1


def _check(session: object, streamers: Sequence[object], given: Collection[str]) -> None:
    if not callable(session):
        raise InvalidInputError(f"session={session!r}: expected a subclass of Session.")
    for one in streamers:
        if one is not None and not all(callable(getattr(one, name, None)) for name in ("put", "end")):
            raise InvalidInputError(f"streamer={one!r}: expected an object with `put` and `end`, as transformers' are.")
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
    with packed(call.model, call.heads, exact=decoding.exact is not None):
        return decoding.decode()
