"""Teacher-forced traces of one text, with the best tokens of every exit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.probing import check_mode
from eelib.backbone.segments import Backbone
from eelib.confidence.metrics import confidence, known_metrics
from eelib.decoding.lossless import nearly_tie
from eelib.decoding.output import DecodingOutput
from eelib.errors import InvalidInputError
from eelib.evaluation.weight_reads import WeightReads
from eelib.heads.exit_heads import ExitHeads

BEST = 5
"""Tokens that are kept of every exit, with their probabilities at all exits."""
FUSED_DRAFTS = 3
"""Drafts in a row that are traced for `fused` heads; the last stands for all later ones."""


@dataclass(frozen=True)
class TextTraces:
    """What every exit, the full model last, says of one text.

    Attributes:
        model: its name.
        n_blocks: of the model.
        depths: of the heads.
        prompt_length: number of tokens before the first new one.
        tokens: prompt and new tokens.
        pieces: their text. Where several tokens make one character, the last has it and the others are empty.
        teacher: the full model's token for each new one; the text's own where both nearly tie.
        drafted: each head's token, -1 where it declines; one layer for each draft in a row that heads tell apart.
        scores: by metric; -inf where a head declines.
        kl: divergence of the full model from each exit [nats].
        offsets: where each new token's best tokens begin in `best`, and where the last ones end.
        best: those among the best five of any exit; -1 for "other", all that a head cannot draft.
        probabilities: of these at each exit.
        vocabulary: text of the tokens in `best` and `drafted`.
        reads: weights that pieces of the model read.
        heads_fingerprint: of the heads; None for the logit lens.

    Raises:
        InvalidInputError: a score that is not a number.
    """

    model: str
    n_blocks: int
    depths: tuple[int, ...]
    prompt_length: int
    tokens: Int[np.ndarray, " position"]
    pieces: tuple[str, ...]
    teacher: Int[np.ndarray, " token"]
    drafted: Int[np.ndarray, "draft token exit"]
    scores: dict[str, Float[np.ndarray, "draft token exit"]]
    kl: Float[np.ndarray, "token exit"]
    offsets: Int[np.ndarray, " bound"]
    best: Int[np.ndarray, " best"]
    probabilities: Float[np.ndarray, "best exit"]
    vocabulary: dict[int, str]
    reads: WeightReads
    heads_fingerprint: str | None = None

    def __post_init__(self):
        for metric, scores in self.scores.items():
            wrong = np.argwhere(np.isnan(scores))
            if len(wrong):
                _, token, place = wrong[0]
                raise InvalidInputError(
                    f"The {metric} of new token {token} at depth {self.exits[place]} is not a number (NaN): expected "
                    "scores that can be compared with a threshold. Do the heads, or a metric of your own, overflow?"
                )

    @property
    def exits(self) -> tuple[int, ...]:
        """Depths of the heads and of the full model."""
        return (*self.depths, self.n_blocks)

    def table(self) -> pd.DataFrame:
        """Traces as `record_traces` has them, with a column `draft`, for `replay_policy`."""
        n_drafts, n, _ = self.drafted.shape
        grid = np.indices((n_drafts, n, len(self.depths))).reshape(3, -1)
        columns = {"draft": grid[0] + 1, "sequence": 0, "position": grid[1] + self.prompt_length - 1, "head": grid[2]}
        columns["depth"] = np.array(self.depths)[grid[2]]
        columns |= {metric: scores[:, :, :-1].ravel() for metric, scores in self.scores.items()}
        columns |= {"head_token": self.drafted[:, :, :-1].ravel(), "teacher_token": self.teacher[grid[1]]}
        table = pd.DataFrame(columns)
        table["agrees"] = table.head_token == table.teacher_token
        table.attrs["heads_fingerprint"] = self.heads_fingerprint
        return table


@torch.no_grad()
def trace_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: DecodingOutput,
    heads: ExitHeads | None = None,
    *,
    name: str | None = None,
) -> TextTraces:
    """Trace the new tokens of a decoded text, in one pass.

    Args:
        heads: None for the logit lens at the depths of the output's exits, or at four.
        name: of the model, for titles; its config's by default.

    Raises:
        InvalidInputError: no new token, a model in training mode, or scores that are not numbers.
    """
    backbone = Backbone.of(model)
    check_mode(backbone.model)
    n, text = output.stats.emitted, output.sequences[0]
    if n < 1:
        raise InvalidInputError("The output has no new token: expected at least one to look at.")
    lens = heads is None
    if lens:
        left = sorted({int(d) for d in output.trace.depth} - {0, backbone.n_blocks})
        heads = ExitHeads.init(model, left or min(4, backbone.n_blocks - 1), "none")
    begin = len(text) - n
    states = backbone.states(text[None].to(model.device), [*heads.depths, backbone.n_blocks])
    new = slice(begin - 1, len(text) - 1)
    finals = [[final[0, new] for final in of_draft] for of_draft in _finals(heads, states)]
    parts = []
    rows = max(1, 2**24 // (backbone.vocab_size * (len(heads.depths) + 1)))
    whole = states[backbone.n_blocks][0, new]
    for start in range(0, n, rows):
        at = slice(start, start + rows)
        own = text[begin:][at].to(whole.device)
        parts.append(_read(heads, [[final[at] for final in of_draft] for of_draft in finals], whole[at], own))
    ids = np.concatenate([part["best"] for part in parts])
    drafted = np.concatenate([part["drafted"] for part in parts], axis=1)
    anchor = int(text[begin - 1]) if begin else int(text[0])
    return TextTraces(
        model=name or backbone.model.config._name_or_path or type(backbone.model).__name__,
        n_blocks=backbone.n_blocks,
        depths=heads.depths,
        prompt_length=begin,
        tokens=text.cpu().numpy(),
        pieces=tuple(pieces_of(tokenizer, text.tolist())),
        teacher=np.concatenate([part["teacher"] for part in parts]),
        drafted=drafted,
        scores={m: np.concatenate([part["scores"][m] for part in parts], axis=1) for m in known_metrics()},
        kl=np.concatenate([part["kl"] for part in parts]),
        offsets=np.cumsum([0, *np.concatenate([part["sizes"] for part in parts])]),
        best=ids,
        probabilities=np.concatenate([part["probabilities"] for part in parts]),
        vocabulary=vocabulary_of(tokenizer, {*ids.tolist(), *drafted.ravel().tolist(), *output.trace.token_id}, anchor),
        reads=WeightReads.of(model, heads),
        heads_fingerprint=None if lens else heads.fingerprint(),
    )


def _finals(heads: ExitHeads, states: dict[int, Tensor]) -> list[list[Tensor]]:
    """Predictions of the unembedding's input [1, position, width], by draft and depth.

    For later drafts `fused` heads read their own prediction one position back.
    """
    if not heads.reads_previous:
        return [[heads.final(depth, states[depth]) for depth in heads.depths]]
    previous = [heads.backbone.normalise(states[heads.backbone.n_blocks])] * len(heads.depths)
    finals = []
    for _ in range(FUSED_DRAFTS):
        before = [F.pad(final[:, :-1], (0, 0, 1, 0)) for final in previous]
        previous = [heads.final(d, states[d], back) for d, back in zip(heads.depths, before, strict=True)]
        finals.append(previous)
    return finals


def _read(
    heads: ExitHeads,
    finals: Sequence[Sequence[Tensor]],
    whole: Float[Tensor, "token hidden"],
    own: Int[Tensor, " token"],
) -> dict:
    """Scores, tokens and best tokens of some positions at every exit.

    own: the tokens of the text that follow them.
    """
    full = heads.backbone.unembed(whole)
    largest, teacher = full.max(-1)
    gap = largest - full.gather(-1, own[:, None])[:, 0]
    teacher = torch.where(nearly_tie(gap, largest.abs(), full.dtype), own, teacher)
    logits = [[heads.read(d, final) for d, final in zip(heads.depths, of, strict=True)] for of in finals]
    tokens = [torch.stack([*map(heads.drafted_tokens, of), teacher], dim=-1) for of in logits]
    scores = [[confidence(one) for one in (*of, full)] for of in logits]
    stacked = {
        metric: np.stack([
            torch.stack([s[metric] for s in of], -1).masked_fill(drafted < 0, float("-inf")).float().cpu().numpy()
            for of, drafted in zip(scores, tokens, strict=True)
        ])
        for metric in known_metrics()
    }  # fmt: skip
    log_p = [of.double().log_softmax(-1) for of in (*logits[0], full)]
    wide = [_widen(heads, one) for one in log_p]
    sizes, ids = _union([of.topk(min(BEST, of.shape[-1] - 1), dim=-1).indices.cpu().numpy() for of in wide])
    row = torch.arange(len(sizes)).repeat_interleave(torch.as_tensor(sizes))
    kept = torch.as_tensor(ids)
    probabilities = torch.stack([of.cpu()[row, kept].exp() for of in wide], dim=-1).float()
    return {
        "teacher": teacher.cpu().numpy(), "drafted": np.stack([one.cpu().numpy() for one in tokens]),
        "scores": stacked, "sizes": sizes, "best": np.where(ids == heads.backbone.vocab_size, -1, ids),
        "probabilities": probabilities.numpy(), "kl": _divergence(heads, log_p),
    }  # fmt: skip


def _widen(heads: ExitHeads, log_p: Float[Tensor, "token classes"]) -> Float[Tensor, "token more"]:
    """Log-probabilities over the whole vocabulary and, at the end, "other"."""
    size = heads.backbone.vocab_size
    if log_p.shape[-1] == size:
        return F.pad(log_p, (0, 1), value=float("-inf"))
    wide = log_p.new_full((len(log_p), size + 1), float("-inf"))
    wide[:, -1] = log_p[:, -1]
    return wide.index_copy_(-1, heads.draft_tokens, log_p[:, :-1])


def _divergence(heads: ExitHeads, log_p: Sequence[Float[Tensor, "token classes"]]) -> Float[np.ndarray, "token exit"]:
    """KL(full model ‖ exit) over the head's classes."""
    full = log_p[-1].exp()
    if heads.draft_tokens is not None:
        kept = full[:, heads.draft_tokens]
        full = torch.cat([kept, (1 - kept.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)
    of_heads = [(-torch.special.entr(full) - full * one).sum(-1).clamp(min=0) for one in log_p[:-1]]
    return torch.stack([*of_heads, torch.zeros_like(of_heads[0])], dim=-1).float().cpu().numpy()


def _union(best: Sequence[Int[np.ndarray, "token best"]]) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " all"]]:
    """Distinct tokens of each row: how many, and which."""
    rows = [np.unique(row) for row in np.concatenate(best, axis=1)]
    return np.array([len(row) for row in rows]), np.concatenate(rows)


def pieces_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """Text of each token where it stands, together the whole text.

    A character of several tokens is the last one's, and the others are empty.
    """
    found, start, end = [], 0, 0
    for i in range(1, len(tokens) + 1):
        before, after = (_decode(tokenizer, tokens[start:stop]) for stop in (end, i))
        if after.endswith("\ufffd") and i - end < 4 and i < len(tokens):
            found.append("")  # bytes of a character that is not complete yet
            continue
        found.append(after[len(before) :])
        start, end = end, i
    return found


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], anchor: int) -> dict[int, str]:
    """Text of single tokens as it would follow another (`anchor`).

    With its space; "�" for bytes of a character.
    """
    before = _decode(tokenizer, [anchor])
    return {t: _decode(tokenizer, [anchor, t])[len(before) :] for t in sorted({int(t) for t in tokens}) if t >= 0}


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
