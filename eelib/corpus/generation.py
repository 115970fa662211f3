"""Self-generated text in large batches: whole conversations, both sides of them.

All rows have the same length at every step, so nothing is padded: where a turn ends, the template's tokens are inserted
and the row goes on with the other side's words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from eelib.backbone.int8 import with_int8
from eelib.backbone.kv_cache import KVCache
from eelib.backbone.probing import with_attention
from eelib.backbone.segments import Backbone, pad
from eelib.backbone.teacher import TeacherOutputs
from eelib.corpus.chat import Turns

_ATTENTION = "eelib_one_query"
_LARGEST = 2**20  # logits at once: memory for larger arrays is fetched anew each time, which costs more
_FEWEST_ROWS = 48  # but at least of so many rows: each time the whole unembedding is read


class TeacherBuffer:
    """Teacher outputs on texts of one length, filled position by position.

    States are in bfloat16.
    """

    def __init__(self, backbone: Backbone, depths: Sequence[int], rows: int, length: int):
        width, dtype = backbone.unembedding.weight.shape[1], backbone.model.dtype
        self._states = {
            depth: torch.empty(rows, length, backbone.hidden_size, dtype=torch.bfloat16) for depth in depths
        }
        self._final = torch.empty(rows, length, width, dtype=dtype)
        self._log_normaliser = torch.empty(rows, length)
        self._argmax = torch.empty(rows, length, dtype=torch.long)

    def put(self, position: int, outputs: TeacherOutputs) -> None:
        """Store the outputs at one position of every row."""
        for depth, state in outputs.states.items():
            self._states[depth][:, position] = state
        self._final[:, position] = outputs.final
        self._log_normaliser[:, position] = outputs.log_normaliser
        self._argmax[:, position] = outputs.argmax

    def of_row(self, row: int, loss_mask: Bool[Tensor, " position"]) -> TeacherOutputs:
        """Outputs at the positions of one text that count."""
        states = {depth: state[row, loss_mask] for depth, state in self._states.items()}
        rest = (part[row, loss_mask] for part in (self._final, self._log_normaliser, self._argmax))
        return TeacherOutputs(states, *rest)


@dataclass(frozen=True)
class GeneratedTexts:
    """A batch of generated texts.

    Attributes:
        tokens: [row, position].
        by_model, by_user: positions whose next token the model chose in that role; at the others the template or a
            prompt did.
        teacher_outputs: of the model at those positions, if requested.
    """

    tokens: Int[Tensor, "row position"]
    by_model: Bool[Tensor, "row position"]
    by_user: Bool[Tensor, "row position"]
    teacher_outputs: TeacherBuffer | None


@torch.no_grad()
def generate_texts(
    model: PreTrainedModel,
    turns: Turns,
    length: int,
    temperatures: Sequence[float],
    prompt_temperature: float,
    prompt_length: int,
    generator: torch.Generator,
    depths: Sequence[int] = (),
    prompts: Sequence[Sequence[int]] = (),
    int8: bool = False,
) -> GeneratedTexts:
    """Generate one conversation per row: user, model, user, ...

    Args:
        turns: the template's tokens between the words. Without a chat template the model continues from the opening,
            and its first `prompt_length` tokens are the user's words.
        length: tokens of each text.
        temperatures: of each row's answers; 0 is greedy.
        prompt_temperature: of the user's words in every row.
        prompt_length: maximum tokens of the user's words.
        depths: where to keep hidden states, for teacher outputs.
        prompts: tokens with which each row's user begins; where empty, the model makes them up.
        int8: generate (and teach, with `depths`) with an int8 copy of the model, keys and values in bfloat16. For a
            CPU.
    """
    rows, device = len(temperatures), model.device
    backbone, cache = Backbone.of(model), KVCache(model.config, length, kept_in=torch.bfloat16 if int8 else None)
    shared = len(turns.opening) if all(window is None or window >= length for window in cache.windows) else 0
    blocks, unembedding = backbone.blocks, backbone.unembedding
    if device.type == "cpu":
        blocks = with_attention(blocks, _ATTENTION, eelib_shared=shared)
    of_whole_numbers = int8 and type(unembedding) is torch.nn.Linear  # its sums: float32 loses nothing of them
    if int8:
        blocks, unembedding = with_int8(blocks), with_int8(unembedding)
    sides = _Sides(turns, prompt_length, prompts or [()] * rows, device)
    of_answers = torch.tensor(temperatures, device=device)
    of_prompts = torch.full((rows,), prompt_temperature, device=device)
    tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
    by_model, by_user = torch.zeros(2, rows, length, dtype=torch.bool, device=device)
    kept = TeacherBuffer(backbone, depths, rows, length) if depths else None
    at, fed = len(turns.opening), torch.tensor([turns.opening], device=device)
    tokens[:, :at] = fed
    for position in range(at - 1, length):
        span = backbone.capture(fed, position + 1 - fed.shape[1], cache)
        states, hidden, passed = {}, span.hidden, 0
        for depth in (*depths, backbone.n_blocks):
            hidden = backbone.run(passed, depth, hidden, span, blocks)
            states[depth], passed = hidden[:, -1].expand(rows, -1), depth
        if len(fed) < rows:  # the opening is the same in every row
            cache.batch_repeat_interleave(rows)
        sides.begin()
        by_model[:, position] = sides.speaking & sides.answering
        by_user[:, position] = sides.speaking & ~sides.answering & ~sides.reciting
        final = backbone.normalise(states.pop(backbone.n_blocks))
        temperature = torch.where(sides.answering, of_answers, of_prompts)
        chosen = (by_model[:, position] | by_user[:, position]).nonzero()[:, 0]  # the others' next token is given
        drawn, best = torch.zeros(2, rows, dtype=torch.long, device=device)
        log_normaliser = torch.zeros(rows, device=device)
        if len(chosen):
            read = final[chosen].float() if of_whole_numbers else final[chosen]
            found = _choose(backbone, unembedding, read, temperature[chosen], generator)
            drawn[chosen], best[chosen], log_normaliser[chosen] = found
        if kept is not None:
            kept.put(position, TeacherOutputs(states, final, log_normaliser, best))
        if position + 1 < length:
            tokens[:, position + 1] = sides.take(drawn)
            fed = tokens[:, position + 1, None]
    return GeneratedTexts(tokens.cpu(), by_model.cpu(), by_user.cpu(), kept)


class _Sides:
    """Whose turn it is in each row, and pending template tokens.

    answering: the model speaks as itself, not as the user, [row].
    reciting: the user's words come from a prompt, [row].
    speaking: a side speaks, not the template, [row].
    """

    def __init__(self, turns: Turns, prompt_length: int, prompts: Sequence[Sequence[int]], device: torch.device):
        between, size = (turns.to_model, turns.to_user), max(map(len, (turns.to_model, turns.to_user, (0,))))
        self.between = torch.tensor([[*b, *[0] * (size - len(b))] for b in between], device=device)  # [side, size]
        self.sizes = torch.tensor([len(b) for b in between], device=device)
        # Tokens of the template that follow the end of each side's words, if a token of its own ends them.
        ends = [next((i for i, token in enumerate(b) if token in turns.ends), None) for b in between]
        self.ends = torch.tensor([-1 if i is None else b[i] for i, b in zip(ends, between, strict=True)], device=device)
        self.after = torch.tensor([0 if i is None else len(b) - i - 1 for i, b in zip(ends, between, strict=True)])
        self.after, self.prompt_length = self.after.to(device), prompt_length
        self.prompts = pad([torch.tensor([*prompt, 0]) for prompt in prompts])[0].to(device)  # [row, position]
        self.limit = torch.tensor([len(prompt) or prompt_length for prompt in prompts], device=device)
        self.reciting = torch.tensor([len(prompt) > 0 for prompt in prompts], device=device)
        self.answering = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self.left, self.said = torch.zeros(2, len(prompts), dtype=torch.long, device=device)

    @property
    def speaking(self) -> Tensor:
        return self.left == 0

    def begin(self) -> None:
        """End the user's words that have grown too long, before a draw."""
        ended = self.speaking & ~self.answering & (self.said >= self.limit)
        self.left = torch.where(ended, self.sizes[0], self.left)
        self._hand_over(ended & (self.left == 0))

    def take(self, drawn: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Next tokens: the drawn ones where a side speaks, else the template's."""
        side, speaking = self.answering.long(), self.speaking
        recited = self.prompts.gather(1, self.said.clamp(max=self.prompts.shape[1] - 1)[:, None]).squeeze(1)
        drawn = torch.where(self.reciting & speaking, recited, drawn)
        forced = self.between[side, (self.sizes[side] - self.left).clamp(max=self.between.shape[1] - 1)]
        token = torch.where(speaking, drawn, forced)
        ended = speaking & (drawn == self.ends[side])
        self.said += speaking
        self.left = torch.where(ended, self.after[side], (self.left - 1).clamp(min=0))
        self._hand_over((ended | ~speaking) & (self.left == 0))
        return token

    def _hand_over(self, rows: Tensor) -> None:
        self.answering = self.answering ^ rows
        self.said = torch.where(rows, 0, self.said)
        self.limit, self.reciting = torch.where(rows, self.prompt_length, self.limit), self.reciting & ~rows


def _choose(
    backbone: Backbone,
    unembedding: torch.nn.Module,
    final: Float[Tensor, "row width"],
    temperature: Float[Tensor, " row"],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled token, argmax and log normaliser of each row.

    A few rows at a time bound the memory.
    """
    parts, rows = [], max(_FEWEST_ROWS, _LARGEST // backbone.vocab_size)
    for some, warmth in zip(final.split(rows), temperature.split(rows), strict=True):
        logits = backbone.postprocess(unembedding(some)).float()
        parts.append((*sample_tokens(logits, warmth, generator), logits.logsumexp(-1)))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def sample_tokens(
    logits: Float[Tensor, "row vocab"], temperature: Float[Tensor, " row"], generator: torch.Generator, chunk: int = 256
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Tokens sampled from softmax(logits / temperature), and the argmax of all rows.

    Temperature 0 takes the argmax. By chunks of the vocabulary first, then within one: on a CPU much faster than
    argmax, and than torch.multinomial, which takes the logarithm of a random number for every token of every row.
    """
    chunks, short = logits.float(), -logits.shape[1] % chunk
    chunks = F.pad(chunks, (0, short), value=float("-inf")) if short else chunks  # even nothing to pad is a copy
    chunks = chunks.unflatten(1, (-1, chunk))  # [row, chunk, token]
    largest = chunks.amax(dim=-1)
    which = largest.argmax(dim=-1)
    best = which * chunk + _chosen(chunks, which).argmax(dim=-1)
    place = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    hot = (temperature > 0).nonzero().squeeze(1)
    weights = (chunks[hot] - largest[hot].amax(dim=-1)[:, None, None]).div_(temperature[hot, None, None]).exp_()
    upto = weights.sum(-1).cumsum(-1)  # [hot row, chunk]
    place = place[hot] * upto[:, -1:]
    which = torch.searchsorted(upto, place, right=True).clamp(max=upto.shape[1] - 1)
    place -= torch.where(which > 0, upto.gather(1, (which - 1).clamp(min=0)), 0.0)
    which = which.squeeze(1)
    inside = _chosen(weights, which).cumsum(-1)
    drawn = which * chunk + torch.searchsorted(inside, place, right=True).clamp(max=chunk - 1).squeeze(1)
    return best.index_copy(0, hot, drawn.clamp(max=logits.shape[1] - 1)), best


def _chosen(chunks: Float[Tensor, "row chunk token"], which: Int[Tensor, " row"]) -> Float[Tensor, "row token"]:
    return chunks[torch.arange(len(chunks), device=chunks.device), which]


def _attention_of_one_query(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """Attention of one query per row.

    Positions that all rows share are read once, and heads that share keys go together, since torch's CPU kernel is
    slow for a single query, and copies shared keys for every head. query [row, head, 1, width]; key and value [row,
    group, position, width].
    """
    dtype, query = query.dtype, query.to(key.dtype)
    scaling, bias = kwargs.get("scaling"), kwargs.get("position_bias")
    if query.shape[2] != 1 or attention_mask is not None or scaling is None or bias is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0].to(dtype), None
    rows, groups, shared = key.shape[0], key.shape[1], module.config.eelib_shared
    query = query.view(rows, groups, -1, query.shape[3])  # heads with the same keys side by side
    if not shared:
        seen = F.scaled_dot_product_attention(query, key, value, scale=scaling)
        return seen.reshape(rows, 1, -1, seen.shape[3]).to(dtype), None
    of_all = query.transpose(0, 1).flatten(1, 2) @ key[0, :, :shared].mT  # [group, row and head, shared position]
    own = (key[:, :, shared:] @ query.mT).mT  # so rather than the other way round: half of the time
    scores = torch.cat([of_all.unflatten(1, (rows, -1)).transpose(0, 1), own], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = (scores * scaling).softmax(-1, dtype=wide).to(value.dtype)
    of_all = weights[..., :shared].transpose(0, 1).flatten(1, 2) @ value[0, :, :shared]
    seen = of_all.unflatten(1, (rows, -1)).transpose(0, 1) + weights[..., shared:] @ value[:, :, shared:]
    return seen.reshape(rows, 1, -1, seen.shape[3]).to(dtype), None


AttentionInterface.register(_ATTENTION, _attention_of_one_query)
