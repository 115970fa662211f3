"""One call of the decoding engine, token by token: heads draft, the full model verifies, the books are kept."""

import time
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from eelib.backbone.segments import Backbone
from eelib.decoding.frontier import Frontier
from eelib.decoding.options import attended
from eelib.decoding.sampling import Draft, Greedy, Sampling
from eelib.errors import HeadsError, UnsupportedError
from eelib.heads.exit_heads import ExitHeads

_ROOM = 1024  # new tokens that the cache has room for at first; a longer text makes it grow

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


class Session:
    """One call: a frontier, the tokens so far, and the books. Peers that go another way override what differs."""

    frontier_type = Frontier

    def __init__(self, model, input_ids, processors, stops, config, model_kwargs, heads, policy, exact):
        self.backbone = Backbone.of(model)
        self.read = attended(input_ids, config, model_kwargs)
        self.unread = int((~self.read).sum())
        if self.unread and exact:
            raise UnsupportedError("exact=True with masked tokens: leave them out of the prompt.")
        if heads is not None and heads.backbone is not self.backbone:
            raise HeadsError("These heads were loaded onto another model object: load them onto this one.")
        n_blocks = self.backbone.n_blocks
        policy.check(heads)
        head_depths = heads.depths if heads is not None else tuple(range(1, n_blocks))
        self.cuts = tuple(depth for depth in policy.cuts(head_depths) if depth != n_blocks)
        own = [depth for depth in self.cuts if heads is None or depth not in heads.depths]
        lens = ExitHeads.init(model, own, "none") if own else None
        self.heads = {depth: lens if depth in own else heads for depth in self.cuts}
        self.policy, self.processors, self.stops = policy, processors, stops
        self.rule = Sampling() if config.do_sample else Greedy()
        self.plain = not config.do_sample and not processors
        self.state = policy.start(input_ids, head_depths)
        self.tokens = input_ids.to(model.device)  # [1, position], all final
        capacity = min(config.max_length, self.tokens.shape[1] + _ROOM)
        self.frontier = self.frontier_type(self.backbone, self.cuts, capacity, exact)
        if any(self.frontier.cache.windows) and (self.read.int().diff() < 0).any():
            raise UnsupportedError("Masked tokens inside a prompt, with sliding windows: leave them out of the prompt.")
        self.head_positions = dict.fromkeys(self.cuts, 0)
        self.drafted = self.accepted = self.rounds = 0
        self.rows: list[tuple] = []
        self.ended = self.tokens.shape[1] >= config.max_length

    def decode(self, verify: bool, streamer: BaseStreamer | None) -> DecodingOutput:
        started, prompt_length = time.perf_counter(), self.tokens.shape[1]
        self.put = streamer.put if streamer is not None else lambda tokens: None
        try:
            self.put(self.tokens.cpu())
            if not self.ended:
                self.frontier.feed(self.tokens[:, self.read])
                self._emit_own()
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
        prefix, drafts, limit = self.tokens, [], self.policy.draft_limit(self.state)
        self.rounds += 1
        while True:
            self.frontier.feed(prefix[:, -1:])
            draft = self._draft(prefix) if len(drafts) < limit else None
            if draft is None:
                break
            drafts.append(draft)
            prefix = _append(prefix, draft.token)
            if self._ends(prefix):
                break  # nothing can follow this draft, so it is not fed
        self.drafted += len(drafts)
        n_accepted = self._judge(drafts, self._verify(prefix), prefix)
        self.accepted += n_accepted
        self.policy.observe(self.state, len(drafts), n_accepted)
        self.frontier.roll_back(self.tokens.shape[1] - 1 - self.unread)  # the newest token is final, but not fed

    def _verify(self, prefix: Tensor) -> Tensor:
        """The model's logits [state, vocab] at every state that waits; prefix: the text with all drafts."""
        return self.frontier.unembed(self.frontier.complete())[0]

    def _judge(self, drafts: list[Draft], logits: Tensor, prefix: Tensor) -> int:
        """Emits what stands; returns the number of accepted drafts.

        logits: [state, vocab], the model's at the state before each draft, and at the last draft's if it was fed.
        """
        start = self.tokens.shape[1]
        for i, row in enumerate(logits):
            scores = self._scores(prefix[:, : start + i], row[None])
            if i == len(drafts):
                self._emit(self.rule.draw(scores)[0])
                return i
            token = self.rule.judge(drafts[i], scores)
            if token != drafts[i].token:
                self._note_rejected(drafts[i:], start + i)
                self._emit(token)
                return i
            self._emit(token, drafts[i], drafted=True)
            if self.ended:
                self._note_rejected(drafts[i + 1 :], start + i + 1)
                return i + 1
        return len(drafts)

    def _step(self) -> None:
        """Early exit: the first head that is sure enough speaks, and that is final."""
        self._feed()
        draft = self._draft(self.tokens)
        self._emit(draft.token, draft) if draft is not None else self._emit_own()

    def _feed(self) -> None:
        """Without verification: hands the newest token in."""
        self.frontier.feed(self.tokens[:, -1:])

    def _draft(self, prefix: Tensor) -> Draft | None:
        """Takes the newest position up, exit by exit, until a head speaks; None when none does."""
        position = prefix.shape[1] - 1
        for segment, depth in enumerate(self.cuts):
            hidden = self.frontier.advance(segment)[:, -1]
            if self.policy.asks(self.state, depth, position):
                draft = self._ask(depth, hidden, prefix)
                if draft is not None:
                    return draft
        return None

    def _ask(self, depth: int, hidden: Tensor, prefix: Tensor) -> Draft | None:
        """What the head at `depth` drafts for the newest state; None where it declines or the policy goes on."""
        logits = self.heads[depth].logits(depth, hidden)
        self.head_positions[depth] += 1
        token = self.heads[depth].tokens(logits).item()
        if token < 0:
            return None  # "other" leads: the head declines
        exits, score = self.policy.exits(self.state, depth, logits, hidden, prefix.shape[1] - 1)
        if not exits or self.plain:
            return Draft(token, depth, score) if exits else None
        scores = self._scores(prefix, self.heads[depth].widen(logits))
        if not scores.isfinite().any():
            return None  # processors left nothing that the head can draft
        token, probabilities = self.rule.draw(scores)
        return Draft(token, depth, score, probabilities)

    def _scores(self, prefix: Tensor, logits: Tensor) -> Tensor:
        """What a token is chosen by, [1, vocab]: a float32 copy, as in transformers, through the processors."""
        scores = logits.to(torch.float32, copy=True)
        return self.processors(prefix, scores) if self.processors else scores

    def _emit_own(self) -> None:
        """Takes every position to the end; the full model speaks."""
        logits = self.frontier.unembed(self.frontier.complete()[:, -1:])[0]
        self._emit(self.rule.draw(self._scores(self.tokens, logits))[0])

    def _emit(self, token: int, draft: Draft | None = None, drafted: bool = False) -> None:
        self._note(self.tokens.shape[1], token, draft, drafted, accepted=drafted)
        self.tokens = _append(self.tokens, token)
        self.put(self.tokens[:, -1].cpu())
        self.ended = self._ends(self.tokens)

    def _note_rejected(self, drafts: list[Draft], start: int) -> None:
        for position, draft in enumerate(drafts, start):
            self._note(position, draft.token, draft, drafted=True, accepted=False)

    def _note(self, position: int, token: int, draft: Draft | None, drafted: bool, accepted: bool) -> None:
        depth, score = (draft.depth, draft.score) if draft else (self.backbone.n_blocks, float("nan"))
        self.rows.append((self.rounds, position, token, depth, score, drafted, accepted))

    def _ends(self, tokens: Tensor) -> bool:
        return bool(self.stops(tokens, None).any())


def _append(tokens: Tensor, token: int) -> Tensor:
    return torch.cat([tokens, tokens.new_tensor([[token]])], dim=1)
