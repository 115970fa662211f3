"""One call of the decoding engine, token by token: heads draft, the full model verifies, and everything is counted."""

import time
from dataclasses import dataclass
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
from eelib.decoding.branches import branch
from eelib.decoding.frontier import Frontier, exact_is_affordable
from eelib.decoding.options import attended
from eelib.decoding.policies import Never, Policy
from eelib.display import table_html
from eelib.errors import HeadsError, InvalidInputError, UnsupportedError
from eelib.heads.exit_heads import ExitHeads

_ROOM = 1024  # new tokens that the cache has room for at first; a longer text makes it grow

TRACE_COLUMNS = ("round", "position", "token_id", "depth", "score", "drafted", "accepted")


@dataclass(frozen=True)
class DecodingStats:
    """What one call did.

    emitted: new tokens.
    drafted, accepted: drafts made, and those that the full model confirmed.
    rounds: verifications; prefill is none.
    block_positions, block_calls: positions that passed each block, and in how many calls.
    head_positions: positions at which the head of each depth was asked, also when it declined.
    seconds: wall-clock, prefill included.
    exact: whether verification had the bits of decoding one token at a time.
    """

    emitted: int
    drafted: int
    accepted: int
    rounds: int
    block_positions: tuple[int, ...]
    block_calls: tuple[int, ...]
    head_positions: dict[int, int]
    seconds: float
    exact: bool = False

    @property
    def acceptance_rate(self) -> float:
        """accepted / drafted; NaN when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def tokens_per_second(self) -> float:
        return self.emitted / self.seconds

    def __repr__(self) -> str:
        return (
            f"DecodingStats({self.emitted} tokens in {self.seconds:.2f} s, {self.rounds} rounds, "
            f"{self.accepted} of {self.drafted} drafts accepted{', exact' if self.exact else ''})"
        )

    def _repr_html_(self) -> str:
        rounds = f"{self.rounds:,}"
        if self.rounds:  # the first token comes from prefill, which is no round
            rounds += f" ({max(0, self.emitted - 1) / self.rounds:.2f} tokens a round)"
        accepted = f"{self.accepted:,}" + (f" ({self.acceptance_rate:.0%})" if self.drafted else "")
        rows = [("new tokens", self.emitted), ("rounds", rounds), ("drafts", self.drafted), ("accepted", accepted)]
        rows += [("head asked, by depth", self.head_positions)] if self.head_positions else []
        rows += [("seconds", self.seconds), ("tokens per second", self.tokens_per_second), ("exact", self.exact)]
        return table_html("DecodingStats", rows)


@dataclass(frozen=True)
class DecodingOutput:
    """What `generate` returns.

    sequences: [1, prompt + new].
    trace: one row per emitted or rejected token: round (0 = prefill), position, token_id, depth (the number of blocks =
        the full model spoke; 0 = looked up in the text), score of the exit, drafted, accepted.
    stats: what it took.
    """

    sequences: Int[Tensor, "1 position"]
    trace: pd.DataFrame
    stats: DecodingStats

    def __repr__(self) -> str:
        return f"DecodingOutput(sequences={list(self.sequences.shape)}, trace={len(self.trace)} rows, {self.stats!r})"

    def _repr_html_(self) -> str:
        prompt = self.sequences.shape[1] - self.stats.emitted
        return (
            table_html("DecodingOutput", [("sequences", f"{prompt} tokens of the prompt, {self.stats.emitted} new")])
            + self.stats._repr_html_()
        )


@dataclass(frozen=True)
class DecodingCall:
    """What one call is given, once transformers has made configs, processors and stopping criteria of its arguments.

    model: the full model.
    input_ids: the prompt, [1, position].
    policy: where to exit and when to stop drafting.
    heads: trained heads; None for the logit lens.
    logits_processor, stopping_criteria, generation_config: transformers' own.
    model_kwargs: what else transformers hands a custom `generate` (attention_mask, past_key_values, ...).
    verify: whether exits are drafts that the full model verifies, or final.
    exact: whether verification has the bits of decoding one token at a time; None: where that costs next to nothing.
    streamer: gets the prompt and each token once it is final.
    given: the names of the generation arguments that the caller gave; None where that is not known.
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


class Session:
    """State of one `generate` call. Subclass it, and override a hook, to change how tokens are drafted or verified.

    A round of self-speculative decoding:

    1. `feed` hands the newest token to the frontier, and `draft` takes it up from exit to exit until a head speaks; the
       same for that draft, until no head speaks or the policy's limit is reached. Where the policy has looked drafts up
       in the text, these are fed all at once, and no head is asked.
    2. `verify` runs all that waits at the exits to the end: the full model's logits for every draft, in one pass.
    3. Drafts are accepted up to the first one that the full model would not have said; its own token follows.
    4. `emit` makes each of these final; what was drafted behind them is rolled back.

    Without verification a step is `feed`, `draft`, and `emit` at once; where no head speaks, `emit_full`.

    Hooks: `make_frontier`, `feed`, `draft`, `ask`, `verify`, `emit`, `emit_full`.

    Attributes:
        call: what `generate` was given.
        backbone, frontier, policy: the frozen model, how far each position has got in it, and who decides.
        policy_state: the policy's own, of this call.
        exact: whether verification has the bits of decoding one token at a time.
        exit_depths: where heads may be asked, ascending; `heads[depth]` is the one there.
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
            raise UnsupportedError("exact=True with masked tokens: leave them out of the prompt.")
        self._reads_previous = call.heads is not None and call.heads.reads_previous
        if self._reads_previous and not call.verify:
            raise UnsupportedError(
                "verify=False with heads of kind 'fused', which read what the full model made of the position before: "
                "decode with verification, or train heads of another kind for early exit."
            )
        if call.heads is not None and call.heads.backbone is not self.backbone:
            raise HeadsError(
                "These heads were loaded onto another model object, or parts of this one were replaced since: load "
                "them onto this one, as it is now."
            )
        self._check_lengths()
        self.policy.check(call.heads)
        n_blocks = self.backbone.n_blocks
        head_depths = call.heads.depths if call.heads is not None else tuple(range(1, n_blocks))
        self.exit_depths = tuple(depth for depth in self.policy.exit_depths(head_depths) if depth != n_blocks)
        lens_depths = [depth for depth in self.exit_depths if call.heads is None or depth not in call.heads.depths]
        lens = ExitHeads.init(call.model, lens_depths, "none") if lens_depths else None
        self.heads = {depth: lens if depth in lens_depths else call.heads for depth in self.exit_depths}
        self.rule = Sampling() if call.generation_config.do_sample else Greedy()
        self._rules = call.logits_processor, call.stopping_criteria
        self._argmax_only = not call.generation_config.do_sample and not call.logits_processor
        self.policy_state = self.policy.start(call.input_ids, head_depths)
        self.tokens = call.input_ids.to(call.model.device)
        self.exact = bool(call.exact)
        if call.exact is None and call.verify and not self._unread and type(self.policy) is not Never:
            self.exact = exact_is_affordable(self.backbone)
        self.frontier = self.make_frontier(min(call.generation_config.max_length, self.tokens.shape[1] + _ROOM))
        if any(self.frontier.cache.windows) and (self._read.int().diff() < 0).any():
            raise UnsupportedError("Masked tokens inside a prompt, with sliding windows: leave them out of the prompt.")
        self.head_positions = dict.fromkeys(self.exit_depths, 0)
        self._previous: Tensor | None = None  # for heads that read it: what was read one position before the newest
        self.drafted = self.accepted = self.rounds = 0
        self._rows: list[tuple] = []
        self.ended = self.tokens.shape[1] >= call.generation_config.max_length

    def decode(self) -> DecodingOutput:
        """Decodes to the end."""
        started, prompt_length, streamer = time.perf_counter(), self.tokens.shape[1], self.call.streamer
        self._put = streamer.put if streamer is not None else lambda tokens: None
        self._put(self.tokens.cpu())
        if not self.ended:
            self.frontier.feed(self.tokens[:, self._read])
            self.emit_full()
        advance = self._round if self.call.verify else self._step
        while not self.ended:
            advance()
        stats = DecodingStats(
            emitted=self.tokens.shape[1] - prompt_length,
            drafted=self.drafted,
            accepted=self.accepted,
            rounds=self.rounds,
            block_positions=tuple(self.frontier.block_positions),
            block_calls=tuple(self.frontier.block_calls),
            head_positions=self.head_positions,
            seconds=time.perf_counter() - started,
            exact=self.exact,
        )
        return DecodingOutput(self.tokens, pd.DataFrame(self._rows, columns=list(TRACE_COLUMNS)), stats)

    def _check_lengths(self) -> None:
        """Refuses a text that may get so long that what is verified together is not what the model would have made of
        it one by one."""
        lengths, longest = self.backbone.lengths, self.call.generation_config.max_length - 1 - self._unread
        window = self.backbone.unmasked_window
        if window is not None and longest > window and type(self.policy) is not Never:
            raise UnsupportedError(
                f"A text of up to {longest} tokens: this model's cache forgets what left a window of {window}, but its "
                "masks show it to positions that share a call. Set max_new_tokens or max_length so that it stays "
                "within, or decode with eelib.Never()."
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
        """The frontier of this call, with room for so many positions at first."""
        return Frontier(self.backbone, self.exit_depths, capacity, self.exact)

    def feed(self, prefix: Int[Tensor, "1 position"]) -> None:
        """Hands the tokens of the text that are new to the frontier."""
        self.frontier.feed(prefix[:, self.frontier.length + self._unread :])

    def draft(self, prefix: Int[Tensor, "1 position"]) -> Draft | None:
        """Takes the newest position up, exit by exit, until a head speaks; None when none does."""
        position = prefix.shape[1] - 1
        for segment, depth in enumerate(self.exit_depths):
            hidden = self.frontier.advance(segment)[:, -1]
            if self.policy.asks(self.policy_state, depth, position):
                draft = self.ask(depth, hidden, prefix)
                if draft is not None:
                    return draft
        return None

    def ask(self, depth: int, hidden: Float[Tensor, "1 hidden"], prefix: Int[Tensor, "1 position"]) -> Draft | None:
        """What the head at `depth` drafts for the newest state; None where it declines or the policy goes on."""
        heads = self.heads[depth]
        final = heads.final(depth, hidden, self._previous)
        logits = heads.read(depth, final)
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

    def verify(self, prefix: Int[Tensor, "1 position"]) -> Float[Tensor, "state vocab"]:
        """The full model's logits at every state that waits; prefix: the text with all drafts."""
        return self.frontier.unembed(self.frontier.complete())[0]

    def emit(self, token: int, draft: Draft | None = None, drafted: bool = False) -> None:
        """Makes a token final.

        Args:
            draft: where a head spoke; None for the full model.
            drafted: whether the full model has verified that draft.
        """
        self._note(self.tokens.shape[1], token, draft, drafted, accepted=drafted)
        self.tokens = _append(self.tokens, token)
        self._put(self.tokens[:, -1].cpu())
        self.ended = self._ends(self.tokens)

    def emit_full(self) -> None:
        """Takes every position to the end; the full model speaks."""
        logits = self.frontier.unembed(self.frontier.complete()[:, -1:])[0]
        self.emit(self.rule.draw(self.scores(self.tokens, logits))[0])

    def scores(self, prefix: Int[Tensor, "1 position"], logits: Float[Tensor, "1 vocab"]) -> Float[Tensor, "1 vocab"]:
        """What a token is chosen by: a float32 copy of the logits, as in transformers, through the processors."""
        scores = logits.to(torch.float32, copy=True)
        return self._rules[0](prefix, scores) if self._rules[0] else scores

    def _round(self) -> None:
        """Drafts, verifies all drafts in one pass, and emits the longest right prefix and the model's next token."""
        prefix, drafts, limit = self.tokens, [], self.policy.draft_limit(self.policy_state)
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
            draft = self.draft(prefix) if len(drafts) < limit else None
            if draft is None:
                break
            drafts.append(draft)
            self._previous = draft.final
            prefix = _append(prefix, draft.token)
            if self._ends(prefix):
                break  # nothing can follow this draft, so it is not fed
        self._rules = final_rules
        self.drafted += len(drafts)
        n_accepted = self._judge(drafts, self.verify(prefix), prefix)
        self.accepted += n_accepted
        self.policy.observe(self.policy_state, len(drafts), n_accepted)
        self.frontier.roll_back(self.tokens.shape[1] - 1 - self._unread)  # the newest token is final, but not fed

    def _step(self) -> None:
        """Early exit: the first head that is sure enough speaks, and that is final."""
        self.feed(self.tokens)
        draft = self.draft(self.tokens)
        self.emit(draft.token, draft) if draft is not None else self.emit_full()

    def _judge(self, drafts: list[Draft], logits: Tensor, prefix: Tensor) -> int:
        """Emits what stands; returns the number of accepted drafts.

        logits: [state, vocab], the model's at the state before each draft, and at the last draft's if it was fed.
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
            self._note(position, draft.token, draft, drafted=True, accepted=False)

    def _note(self, position: int, token: int, draft: Draft | None, drafted: bool, accepted: bool) -> None:
        depth, score = (draft.depth, draft.score) if draft else (self.backbone.n_blocks, float("nan"))
        self._rows.append((self.rounds, position, token, depth, score, drafted, accepted))

    def _ends(self, tokens: Tensor) -> bool:
        return bool(self._rules[1](tokens, None).any())


def _append(tokens: Tensor, token: int) -> Tensor:
    return torch.cat([tokens, tokens.new_tensor([[token]])], dim=1)
