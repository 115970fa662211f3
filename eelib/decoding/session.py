"""Session: one call of the engine, token by token."""

import time
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from eelib.backbone.probing import check_mode
from eelib.backbone.segments import Backbone
from eelib.decoding.acceptance import Draft, Greedy, Sampling
from eelib.decoding.batches.steps import Advance, Ask, Steps, Unembed, steps, stepwise
from eelib.decoding.bitwise import RowExact
from eelib.decoding.branches import branch
from eelib.decoding.frontier import Frontier, exact_is_affordable
from eelib.decoding.options import attended
from eelib.decoding.output import TRACE_COLUMNS, DecodingOutput, DecodingStats
from eelib.decoding.policies import Never, Outcome, Policy
from eelib.errors import HeadsError, InvalidInputError, UnsupportedError
from eelib.heads.exit_heads import ExitHeads

_ROOM = 1024  # new tokens that the cache has room for at first; a longer text makes it grow


@dataclass(frozen=True)
class DecodingCall:
    """Arguments of one call, with transformers' processors, criteria and config.

    Attributes:
        model: the full model.
        input_ids: the prompt, [1, position].
        policy: where to exit and when to stop drafting.
        heads: trained heads; None for the logit lens.
        logits_processor, stopping_criteria, generation_config: transformers' own.
        model_kwargs: further arguments for a custom `generate` (attention_mask, past_key_values, ...).
        verify: whether exits are drafts for the full model, or final.
        exact: verify with the bits of decoding one token at a time; None: where that is nearly free.
        streamer: gets the prompt and each token once it is final.
        given: names of the caller's own generation arguments; None if unknown.
        generator: what sampling draws with; None for torch's own.
    """

    model: PreTrainedModel
    input_ids: Int[Tensor, "batch position"]
    policy: Policy
    heads: ExitHeads | None
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    model_kwargs: dict[str, Any]
    verify: bool = True
    exact: bool | None = None
    streamer: BaseStreamer | None = None
    given: frozenset[str] | None = None
    generator: torch.Generator | None = None


class Session:
    """State of one `generate` call; subclass it to draft or verify differently.

    A round of self-speculative decoding:

    1. Draft: `feed` passes the newest token to the frontier, and `draft` takes it from exit to exit until a head is
       confident; its draft is fed in turn, until no head is confident or the draft limit is reached. Drafts that the
       policy looked up are fed all at once.
    2. Verify: `verify` runs all states that wait at exits to the end, for the full model's logits at every draft in one
       pass.
    3. Accept: drafts count up to the first that the full model rejects; its own token follows.
    4. Emit: `emit` makes each of these tokens final; positions behind them are rolled back.

    Without verification a step is `feed`, `draft` and `emit`; where no head is confident, `emit_full`.

    Hooks: `make_frontier`, `feed`, `draft`, `ask`, `verify`, `emit`, `emit_full`. Those that need the model are
    `stepwise`, so that a batch can serve many sessions at once; one that is overridden by a usual method runs for its
    session alone, with the same result.

    Attributes:
        call: arguments of `generate`.
        backbone: the frozen model.
        frontier: progress of each position through it.
        policy, policy_state: the policy, and its state in this call.
        exact: whether verification has the bits of decoding one token at a time.
        exit_depths: where heads may be asked, ascending.
        heads: the head at each of these depths.
        tokens: prompt and all final tokens, [1, position].
    """

    def __init__(self, call: DecodingCall):
        self.call, self.policy = call, call.policy
        if not isinstance(call.policy, Policy):
            raise InvalidInputError(f"policy={call.policy!r}: expected a policy, such as eelib.FixedExit(6, 4).")
        if not isinstance(call.heads, ExitHeads | None):
            raise InvalidInputError(f"heads={call.heads!r}: expected ExitHeads, or None for the logit lens.")
        self.backbone = Backbone.of(call.model)
        check_mode(call.model)
        self._read = attended(call.model, call.input_ids, call.generation_config, call.model_kwargs, call.given)
        self._unread = int((~self._read).sum())
        if self._unread and call.exact:
            raise UnsupportedError(
                f"exact=True with masked tokens is not supported, and {self._unread} of this prompt are masked: remove "
                "them, or pass an attention_mask of ones. Without a mask, transformers masks every pad_token_id that "
                "eos_token_id does not name, also inside a prompt."
            )
        self._reads_previous = call.heads is not None and call.heads.reads_previous
        if self._reads_previous and not call.verify:
            raise UnsupportedError(
                "verify=False with heads of kind 'fused', which read the full model's previous state: decode with "
                "verification, or train heads of another kind for early exit."
            )
        if call.heads is not None and call.heads.backbone is not self.backbone:
            raise HeadsError(
                "These heads were loaded onto another model object, or parts of this one were replaced since: load "
                "them onto this one as it is now."
            )
        self._check_lengths()
        self.policy.check(call.heads)
        n_blocks = self.backbone.n_blocks
        head_depths = call.heads.depths if call.heads is not None else tuple(range(1, n_blocks))
        self.exit_depths = tuple(depth for depth in self.policy.exit_depths(head_depths) if depth != n_blocks)
        lens_depths = [depth for depth in self.exit_depths if call.heads is None or depth not in call.heads.depths]
        lens = ExitHeads.init(call.model, lens_depths, "none") if lens_depths else None
        self.heads = {depth: lens if depth in lens_depths else call.heads for depth in self.exit_depths}
        self.rule = Sampling(call.generator) if call.generation_config.do_sample else Greedy()
        self._rules = call.logits_processor, call.stopping_criteria
        self._argmax_only = not call.generation_config.do_sample and not call.logits_processor
        self.policy_state = self.policy.start(call.input_ids, head_depths)
        self.tokens = call.input_ids.to(call.model.device)
        exact = bool(call.exact)
        if call.exact is None and call.verify and not self._unread and type(self.policy) is not Never:
            exact = exact_is_affordable(self.backbone)
        self.exact = RowExact.of(self.backbone) if exact else None
        self.frontier = self.make_frontier(min(call.generation_config.max_length, self.tokens.shape[1] + _ROOM))
        if any(self.frontier.cache.windows) and (self._read.int().diff() < 0).any():
            raise UnsupportedError(
                "Masked tokens inside a prompt are not supported with sliding windows: remove them from the prompt."
            )
        self.head_positions = dict.fromkeys(self.exit_depths, 0)
        self._noted = 0  # heads asked for what is in the trace, or drafted
        self._previous: Tensor | None = None  # for heads that read it: what was read one position before the newest
        self.drafted = self.accepted = self.rounds = 0
        self._rows: list[tuple] = []
        self.ended = self.tokens.shape[1] >= call.generation_config.max_length

    @stepwise
    def decode(self) -> Steps:
        """Decode to the end; return the `DecodingOutput`."""
        started, prompt_length, streamer = time.perf_counter(), self.tokens.shape[1], self.call.streamer
        self._put = streamer.put if streamer is not None else lambda tokens: None
        self._put(self.tokens.cpu())
        if not self.ended:
            self.frontier.feed(self.tokens[:, self._read])
            yield from steps(self, "emit_full")
        advance = self._round if self.call.verify else self._step
        while not self.ended:
            yield from advance()
        stats = DecodingStats(
            emitted=self.tokens.shape[1] - prompt_length,
            drafted=self.drafted,
            accepted=self.accepted,
            rounds=self.rounds,
            block_positions=tuple(self.frontier.block_positions),
            block_calls=tuple(self.frontier.block_calls),
            head_positions=self.head_positions,
            seconds=time.perf_counter() - started,
            exact=self.exact is not None,
        )
        return DecodingOutput(self.tokens, pd.DataFrame(self._rows, columns=list(TRACE_COLUMNS)), stats)

    def _check_lengths(self) -> None:
        """Refuse texts so long that joint verification would differ from plain decoding."""
        lengths, longest = self.backbone.lengths, self.call.generation_config.max_length - 1 - self._unread
        window = self.backbone.unmasked_window
        if window is not None and longest > window and type(self.policy) is not Never:
            raise UnsupportedError(
                f"A text of up to {longest} tokens: this model's cache drops keys outside a window of {window}, but "
                "its masks show them to positions that share a call. Set max_new_tokens or max_length to stay within, "
                "or decode with eelib.Never()."
            )
        if lengths is None or longest <= lengths.same_up_to:
            return
        if not (lengths.same_beyond and int(self._read.sum()) > lengths.same_up_to):
            raise UnsupportedError(
                f"A text of up to {longest} tokens: beyond {lengths.same_up_to} this model's positions "
                f"({lengths.kind}) depend on the length of the text. Set max_new_tokens or max_length so that it stays "
                "below" + (", or give a prompt that is longer itself." if lengths.same_beyond else ".")
            )

    def make_frontier(self, capacity: int) -> Frontier:
        """Frontier of this call, with initial room for `capacity` positions."""
        return Frontier(self.backbone, self.exit_depths, capacity, self.exact)

    def feed(self, prefix: Int[Tensor, "1 position"]) -> None:
        """Pass new tokens of the text to the frontier."""
        self.frontier.feed(prefix[:, self.frontier.length + self._unread :])

    @stepwise
    def draft(self, prefix: Int[Tensor, "1 position"]) -> Steps:
        """Take the newest position from exit to exit until a head drafts.

        Returns its `Draft`, or None when none does.
        """
        position = prefix.shape[1] - 1
        for segment, depth in enumerate(self.exit_depths):
            hidden = (yield Advance(self.frontier, segment))[:, -1]
            if self.policy.asks(self.policy_state, depth, position):
                draft = yield from steps(self, "ask", depth, hidden, prefix)
                if draft is not None:
                    return draft
        return None

    @stepwise
    def ask(self, depth: int, hidden: Float[Tensor, "1 hidden"], prefix: Int[Tensor, "1 position"]) -> Steps:
        """Ask the head at `depth` about the newest state.

        Returns its `Draft`, or None where it declines or the policy goes on.
        """
        heads = self.heads[depth]
        final, logits = yield Ask(heads, depth, hidden, self._previous)
        self.head_positions[depth] += 1
        token = heads.drafted_tokens(logits).item()
        if token < 0:
            return None  # "other" leads: the head declines
        exits, score = self.policy.exits(self.policy_state, depth, logits, hidden, prefix.shape[1] - 1)
        if not exits or self._argmax_only:
            return Draft(token, depth, score, final=final) if exits else None
        scores = self.scores(prefix, heads.widen(logits))
        if not scores.isfinite().any():
            return None  # processors left nothing that the head can draft
        token, probabilities = self.rule.draw(scores)
        return Draft(token, depth, score, probabilities, final)

    @stepwise
    def verify(self, prefix: Int[Tensor, "1 position"]) -> Steps:
        """Ask the full model at every waiting state.

        Returns its logits, [state, vocab].

        prefix: the text with all drafts.
        """
        hidden = yield from steps(self.frontier, "complete")
        return (yield Unembed(self.frontier, hidden))[0]

    def emit(self, token: int, draft: Draft | None = None, drafted: bool = False) -> None:
        """Make a token final.

        Args:
            draft: the head's; None for the full model's token.
            drafted: whether the full model has verified the draft.
        """
        position = self.tokens.shape[1]
        self.tokens = _append(self.tokens, token)
        self._put(self.tokens[:, -1].cpu())
        self.ended = self._ends(self.tokens)
        self._note(position, token, draft, drafted, accepted=drafted, ends=self.ended)

    @stepwise
    def emit_full(self) -> Steps:
        """Take every position to the end, and emit the full model's token."""
        hidden = yield from steps(self.frontier, "complete")
        logits = (yield Unembed(self.frontier, hidden[:, -1:]))[0]
        self.emit(self.rule.draw(self.scores(self.tokens, logits))[0])

    def scores(self, prefix: Int[Tensor, "1 position"], logits: Float[Tensor, "1 vocab"]) -> Float[Tensor, "1 vocab"]:
        """Scores of the next token: float32 logits after the processors.

        A copy, as in transformers.
        """
        scores = logits.to(torch.float32, copy=True)
        return self._rules[0](prefix, scores) if self._rules[0] else scores

    def _round(self) -> Steps:
        """Draft, verify all drafts in one pass, and emit what stands.

        That is the longest accepted prefix and the model's next token.
        """
        prefix, drafts, limit = self.tokens, [], self.policy.draft_limit(self.policy_state)
        asked_before = sum(self.head_positions.values())
        self.rounds += 1
        room = self.call.generation_config.max_length - prefix.shape[1] - 1
        looked_up = self.policy.look_up(self.policy_state, prefix)[:room] if room > 0 else ()
        if looked_up:
            drafts = [Draft(token, 0, float("nan")) for token in looked_up]
            prefix, limit = torch.cat([prefix, prefix.new_tensor([looked_up])], dim=1), 0
        elif limit and self.exit_depths and self._reads_previous:
            newest = prefix.shape[1] - 1 - self._unread
            self._previous = self.backbone.normalise(self.frontier.finished(newest - 1))
        final_rules = self._rules
        if limit and self.exit_depths:
            self._rules = LogitsProcessorList(branch(final_rules[0])), StoppingCriteriaList(branch(final_rules[1]))
        while True:
            self.feed(prefix)
            draft = (yield from steps(self, "draft", prefix)) if len(drafts) < limit else None
            if draft is None:
                break
            self._previous = draft.final
            prefix = _append(prefix, draft.token)
            drafts.append(replace(draft, asked=self._newly_asked(), ends=self._ends(prefix)))
            if drafts[-1].ends:
                break  # nothing can follow this draft, so it is not fed
        self._rules = final_rules
        self.drafted += len(drafts)
        n_accepted = self._judge(drafts, (yield from steps(self, "verify", prefix)), prefix)
        self.accepted += n_accepted
        passes = sum(draft.depth for draft in drafts) / self.backbone.n_blocks
        asked = sum(self.head_positions.values()) - asked_before
        self.policy.observe(self.policy_state, Outcome(len(drafts), n_accepted, passes, asked))
        self.frontier.roll_back(self.tokens.shape[1] - 1 - self._unread)  # the newest token is final, but not fed

    def _step(self) -> Steps:
        """Early exit: the token of the first confident head is final."""
        self.feed(self.tokens)
        draft = yield from steps(self, "draft", self.tokens)
        if draft is None:
            yield from steps(self, "emit_full")
        else:
            self.emit(draft.token, replace(draft, asked=self._newly_asked()))

    def _judge(self, drafts: list[Draft], logits: Tensor, prefix: Tensor) -> int:
        """Emit what stands; return the number of accepted drafts.

        logits: the model's at the state before each draft, and at the last draft's if it was fed, [state, vocab].
        """
        start = self.tokens.shape[1]
        for i, row in enumerate(logits):
            scores = self.scores(prefix[:, : start + i], row[None])
            if i == len(drafts):
                self.emit(self.rule.draw(scores)[0])
                return i
            token = self.rule.judge(drafts[i], scores)
            if token != drafts[i].token:
                self._note_rejected(drafts[i:], start + i)
                self.emit(token)
                return i
            self.emit(token, drafts[i], drafted=True)
            if self.ended:
                self._note_rejected(drafts[i + 1 :], start + i + 1)
                return i + 1
        return len(drafts)

    def _note_rejected(self, drafts: list[Draft], start: int) -> None:
        for position, draft in enumerate(drafts, start):
            self._note(position, draft.token, draft, drafted=True, accepted=False, ends=draft.ends)

    def _note(self, position: int, token: int, draft: Draft | None, drafted: bool, accepted: bool, ends: bool) -> None:
        made = draft or Draft(token, self.backbone.n_blocks, float("nan"), asked=self._newly_asked())
        self._rows.append((self.rounds, position, token, made.depth, made.score, drafted, accepted, made.asked, ends))

    def _newly_asked(self) -> int:
        """Heads asked since the last call."""
        total = sum(self.head_positions.values())
        asked, self._noted = total - self._noted, total
        return asked

    def _ends(self, tokens: Tensor) -> bool:
        return bool(self._rules[1](tokens, None).any())


def _append(tokens: Tensor, token: int) -> Tensor:
    return torch.cat([tokens, tokens.new_tensor([[token]])], dim=1)
