"""The decoding engine: heads draft, the full model verifies, and the output is the model's own.

`generate` goes through `model.generate(custom_generate=...)`, so that transformers does what it does best:
generation configs, logits processors and stopping criteria.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from eelib.backbone import Backbone
from eelib.errors import HeadsError, InvalidInputError, UnsupportedError
from eelib.frontier import Frontier
from eelib.heads import ExitHeads
from eelib.policies import Policy

TRACE_COLUMNS = ("round", "position", "token_id", "depth", "score", "drafted", "accepted")


@dataclass(frozen=True)
class DecodingStats:
    """What one call did.

    emitted: new tokens. drafted, accepted: drafts made, and those that the full model confirmed. rounds:
    verifications (prefill is none). block_positions, block_calls: positions that passed each block, in how many calls.
    head_positions: positions at which the head of each depth was asked, also when it declined. seconds: wall-clock,
    prefill included.
    """

    emitted: int
    drafted: int
    accepted: int
    rounds: int
    block_positions: tuple[int, ...]
    block_calls: tuple[int, ...]
    head_positions: dict[int, int]
    seconds: float

    @property
    def acceptance_rate(self) -> float:
        """accepted / drafted; NaN when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def tokens_per_second(self) -> float:
        return self.emitted / self.seconds


@dataclass(frozen=True)
class DecodingOutput:
    """sequences: [1, prompt + new]. trace: one row per emitted or rejected token, with the round (0 = prefill), its
    position, token_id, depth (the number of blocks = the full model spoke), score of the exit, drafted, accepted.
    stats: what it took.
    """

    sequences: Int[Tensor, "1 position"]
    trace: pd.DataFrame
    stats: DecodingStats


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch position"],
    *,
    policy: Policy,
    heads: ExitHeads | None = None,
    verify: bool = True,
    streamer: BaseStreamer | None = None,
    **generate_kwargs,
) -> DecodingOutput:
    """Decodes with early exits, greedily, one sequence.

    Args:
        policy: where to exit and when to stop drafting.
        heads: trained heads; None reads exits with the model's own norm and unembedding.
        verify: True: exits are drafts, and the output is the full model's own. False: an exited token is final.
        streamer: gets the prompt and each token once it is final, and `.end()` in any case.
        generate_kwargs: transformers' own (max_new_tokens, eos_token_id, logits_processor, stopping_criteria,
            generation_config, ...); what is not given comes from `model.generation_config`.

    Raises:
        UnsupportedError: an option that this engine does not offer. HeadsError: heads that do not fit model or policy.
        ModelError: a model that cannot be cut.
    """

    def engine(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        given = (logits_processor, stopping_criteria, generation_config, model_kwargs)
        return _Session(model, input_ids, *given, heads, policy).decode(verify, streamer)

    return model.generate(input_ids, custom_generate=engine, **generate_kwargs)


def custom_generate(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch position"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    heads: ExitHeads | None = None,
    policy: Policy | None = None,
    verify: bool = True,
    **model_kwargs,
):
    """For `model.generate(input_ids, custom_generate=eelib.custom_generate, heads=heads, policy=policy)`.

    Returns what transformers would: the sequences, or with `return_dict_in_generate` a `DecodingOutput`. A streamer
    given there does not reach a callable (transformers drops it); use `eelib.generate` for that.
    """
    if policy is None:
        raise InvalidInputError("custom_generate needs policy=..., for example eelib.FixedExit(6, 4).")
    given = (logits_processor, stopping_criteria, generation_config, model_kwargs)
    output = _Session(model, input_ids, *given, heads, policy).decode(verify, None)
    return output if generation_config.return_dict_in_generate else output.sequences


@dataclass(frozen=True)
class _Draft:
    token: int
    depth: int
    score: float


class _Session:
    """One call: a frontier, the tokens so far, and the books."""

    def __init__(self, model, input_ids, processors, stops, config, model_kwargs, heads, policy):
        _refuse_unsupported(input_ids, config, model_kwargs)
        self.backbone = Backbone.of(model)
        if heads is not None and heads.backbone is not self.backbone:
            raise HeadsError("These heads were loaded onto another model object: load them onto this one.")
        head_depths = heads.depths if heads is not None else tuple(range(1, self.backbone.n_blocks))
        self.cuts = policy.cuts(head_depths)
        if heads is None and self.cuts:
            heads = ExitHeads.init(model, self.cuts, "none")
        self.heads, self.policy, self.processors, self.stops = heads, policy, processors, stops
        self.state = policy.start(input_ids, head_depths)
        self.max_length = config.max_length
        self.tokens = input_ids.to(model.device)  # [1, position], all final
        self.frontier = Frontier(self.backbone, self.cuts, capacity=self.max_length)
        self.head_positions = dict.fromkeys(self.cuts, 0)
        self.drafted = self.accepted = self.rounds = 0
        self.rows: list[tuple] = []
        self.ended = self.tokens.shape[1] >= self.max_length

    def decode(self, verify: bool, streamer: BaseStreamer | None) -> DecodingOutput:
        started, prompt_length = time.perf_counter(), self.tokens.shape[1]
        self.put = streamer.put if streamer is not None else lambda tokens: None
        try:
            self.put(self.tokens.cpu())
            if not self.ended:
                self.frontier.feed(self.tokens)
                self._emit(self._choices(self.frontier.complete()[:, -1:], self.tokens)[0])
            advance = self._round if verify else self._step
            while not self.ended:
                advance()
        finally:
            if streamer is not None:
                streamer.end()
        stats = DecodingStats(
            emitted=self.tokens.shape[1] - prompt_length,
            drafted=self.drafted,
            accepted=self.accepted,
            rounds=self.rounds,
            block_positions=tuple(self.frontier.block_positions),
            block_calls=tuple(self.frontier.block_calls),
            head_positions=self.head_positions,
            seconds=time.perf_counter() - started,
        )
        return DecodingOutput(self.tokens, pd.DataFrame(self.rows, columns=list(TRACE_COLUMNS)), stats)

    def _round(self) -> None:
        """Drafts, verifies all drafts in one pass, and emits the longest right prefix and the model's next token."""
        prefix, drafts = self.tokens, []
        self.rounds += 1
        while True:
            self.frontier.feed(prefix[:, -1:])
            draft = self._draft(prefix) if len(drafts) < self.policy.max_draft else None
            if draft is None:
                break
            drafts.append(draft)
            prefix = _append(prefix, draft.token)
            if self._ends(prefix):
                break  # nothing can follow this draft, so it is not fed
        # One state more than drafts, but where the last draft could not be followed.
        choices = self._choices(self.frontier.complete(), prefix)
        n_accepted = 0
        for draft, choice in zip(drafts, choices, strict=False):
            if draft.token != choice:
                break
            n_accepted += 1
        self.drafted, self.accepted = self.drafted + len(drafts), self.accepted + n_accepted
        self.policy.observe(self.state, len(drafts), n_accepted)
        for draft in drafts[:n_accepted]:
            self._emit(draft.token, draft, drafted=True)
        for i, draft in enumerate(drafts[n_accepted:]):
            self._note(self.tokens.shape[1] + i, draft.token, draft, drafted=True, accepted=False)
        if n_accepted < len(choices) and not self.ended:
            self._emit(choices[n_accepted])
        self.frontier.roll_back(self.tokens.shape[1] - 1)  # the newest token is final, but not fed

    def _step(self) -> None:
        """Early exit: the first head that is sure enough speaks, and that is final."""
        self.frontier.feed(self.tokens[:, -1:])
        draft = self._draft(self.tokens)
        if draft is not None:
            self._emit(draft.token, draft)
        else:
            self._emit(self._choices(self.frontier.complete()[:, -1:], self.tokens)[0])

    def _draft(self, prefix: Tensor) -> _Draft | None:
        """Takes the newest position up, exit by exit, until a head speaks; None when none does."""
        for segment, depth in enumerate(self.cuts):
            hidden = self.frontier.advance(segment)[:, -1]
            logits = self.heads.logits(depth, hidden)
            self.head_positions[depth] += 1
            token = self._head_token(logits, prefix)
            if token < 0:
                continue
            exits, score = self.policy.exits(self.state, depth, logits, hidden, prefix.shape[1] - 1)
            if exits:
                return _Draft(token, depth, score)
        return None

    def _head_token(self, logits: Tensor, prefix: Tensor) -> int:
        """The token a head would draft; -1 when it declines."""
        token = self.heads.tokens(logits).item()
        if token < 0 or not self.processors:
            return token
        scores = self.processors(prefix, self.heads.widen(logits).float())
        return scores.argmax(-1).item() if scores.isfinite().any() else -1

    def _choices(self, hidden: Tensor, prefix: Tensor) -> list[int]:
        """The full model's greedy tokens after the last states of `prefix`, [1, position, hidden] -> one a state."""
        logits = self.backbone.unembed(hidden)[0].float()  # float32, as transformers picks its tokens
        if self.processors:
            start = self.frontier.length - len(logits) + 1  # tokens read by the first of these states
            rows = [self.processors(prefix[:, : start + i], row[None]) for i, row in enumerate(logits)]
            logits = torch.cat(rows)
        return logits.argmax(-1).tolist()

    def _emit(self, token: int, draft: _Draft | None = None, drafted: bool = False) -> None:
        self._note(self.tokens.shape[1], token, draft, drafted, accepted=drafted)
        self.tokens = _append(self.tokens, token)
        self.put(self.tokens[:, -1].cpu())
        self.ended = self._ends(self.tokens)

    def _note(self, position: int, token: int, draft: _Draft | None, drafted: bool, accepted: bool) -> None:
        depth, score = (draft.depth, draft.score) if draft else (self.backbone.n_blocks, float("nan"))
        self.rows.append((self.rounds, position, token, depth, score, drafted, accepted))

    def _ends(self, tokens: Tensor) -> bool:
        return bool(self.stops(tokens, None).any())


def _append(tokens: Tensor, token: int) -> Tensor:
    return torch.cat([tokens, tokens.new_tensor([[token]])], dim=1)


_REFUSED: dict[str, Callable[[GenerationConfig], bool]] = {
    "do_sample": lambda c: bool(c.do_sample),
    "num_beams": lambda c: (c.num_beams or 1) > 1,
    "num_return_sequences": lambda c: (c.num_return_sequences or 1) > 1,
    "penalty_alpha": lambda c: bool(c.penalty_alpha),
    "dola_layers": lambda c: c.dola_layers is not None,
    "prompt_lookup_num_tokens": lambda c: c.prompt_lookup_num_tokens is not None,
    "assistant_early_exit": lambda c: c.assistant_early_exit is not None,
    "output_scores": lambda c: bool(c.output_scores),
    "output_logits": lambda c: bool(c.output_logits),
    "output_attentions": lambda c: bool(c.output_attentions),
    "output_hidden_states": lambda c: bool(c.output_hidden_states),
}


def _refuse_unsupported(input_ids: Tensor, config: GenerationConfig, model_kwargs: dict) -> None:
    for name, refused in _REFUSED.items():
        if refused(config):
            raise UnsupportedError(
                f"{name}={getattr(config, name)} is not supported: this engine is greedy and returns tokens only."
            )
    if input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise UnsupportedError(
            f"input_ids of shape {list(input_ids.shape)}: expected [1, position], one prompt a call."
        )
    if model_kwargs.get("inputs_embeds") is not None:
        raise UnsupportedError("inputs_embeds is not supported: give input_ids.")
    if model_kwargs.get("attention_mask") is not None:  # transformers drops a mask that is all ones
        raise UnsupportedError("attention_mask with zeros is not supported: give the prompt without padding.")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedError("A filled past_key_values is not supported: give the whole prompt.")
