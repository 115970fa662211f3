"""Backbone: a frozen language model in segments of blocks.

No architecture is known by name: the code around the blocks is the model's own, run with stand-ins for the blocks, and
a model whose parts do not reproduce its logits is refused.
"""

import operator
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from eelib.backbone import fingerprints
from eelib.backbone.kv_cache import KVCache, cache_argument
from eelib.backbone.lengths import hides_what_left, lengths_of_positions
from eelib.backbone.probing import Recorder, Tap, check_mode, find_parts, unwrapped, with_parts
from eelib.errors import EelibError, InvalidInputError, ModelError, UnsupportedError
from eelib.settings import Number


@dataclass(frozen=True)
class Span:
    """Inputs of the blocks for the positions [start, start + length).

    Attributes:
        start: first position.
        length: number of positions.
        hidden: input of block 0, [batch, position, hidden].
        calls: positional and keyword arguments of each block (masks, rotary tables, positions, cache).
    """

    start: int
    length: int
    hidden: Tensor
    calls: list[tuple[tuple, dict[str, Any]]]


def _parts_of(model: PreTrainedModel) -> tuple:
    """Everything that probing looked at, to notice replaced parts.

    Without the model itself, which must not be kept alive.
    """
    return (model.config, *(module for module in model.modules() if module is not model))


def pad(
    sequences: Sequence[Tensor], loss_mask: Sequence[Tensor] | None = None
) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"]]:
    """Sequences [position] as a batch, padded on the right with token 0.

    Returns tokens and the mask of the positions that count (None: all real ones). States of a causal model do not
    depend on what follows.
    """
    masks = [torch.ones(len(s), dtype=torch.bool) for s in sequences] if loss_mask is None else list(loss_mask)
    tokens = nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    return tokens, nn.utils.rnn.pad_sequence(masks, batch_first=True)


class Backbone:
    """A causal language model that runs any segment of its blocks.

    The model itself is never changed. Use `Backbone.of(model)`: probing takes a few forward passes, so it is done once
    a model, and again when a part is replaced. Threads may share one; they take turns in the model's code around the
    blocks.

    Raises:
        ModelError: the model cannot be split into blocks; the message says what was found.

    Example:
        >>> backbone = Backbone.of(model)
        >>> backbone.n_blocks, backbone.check_depths(2)
        (6, (2, 4))
        >>> states = backbone.states(input_ids, [2, 6])
        >>> bool(torch.allclose(backbone.unembed(states[6]), model(input_ids).logits))
        True
    """

    _known: ClassVar[weakref.WeakKeyDictionary] = weakref.WeakKeyDictionary()
    _probing: ClassVar = threading.RLock()

    def __init__(self, model: PreTrainedModel):
        check_mode(model)
        try:
            self._probe(model)
        except EelibError:
            raise
        except Exception as error:  # whatever a model's own code raises where its parts are run by themselves
            raise ModelError(
                f"Cannot split {type(model).__name__} into blocks: run in parts or position by position, it fails with "
                f"{type(error).__name__}: {error}"
            ) from error

    def _probe(self, model: PreTrainedModel) -> None:
        parts = find_parts(model)
        self._model, self._parts, self._probed = weakref.ref(model), parts, _parts_of(model)
        self._turn = threading.RLock()
        self._known_as: dict[str, str] = {}  # fingerprints of the same checkpoint in another type
        self.lengths = lengths_of_positions(model.config.get_text_config())
        self.blocks, self.final_norm, self.unembedding = parts.blocks, parts.final_norm, parts.unembedding
        self.hidden_size = parts.hidden_size
        self._recorders = [Recorder(block, parts.n_returned) for block in parts.blocks]
        self._tap = Tap(parts.unembedding)
        recorders = nn.ModuleList(self._recorders)
        self._decoder = with_parts(model.get_submodule(parts.decoder_path), {parts.blocks_path: recorders})
        self._cache_argument = cache_argument(self._decoder)
        blocks_path = f"{parts.decoder_path}.{parts.blocks_path}"
        self._around = with_parts(model, {blocks_path: recorders, parts.unembedding_path: self._tap})
        self._check()
        self.unmasked_window = self._unmasked_window()

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Backbone":
        """The backbone of a model, probed once and cached.

        It is probed again when a part was replaced. For a wrapped model (`torch.compile`, PEFT, data parallel) it is
        that of the model inside.
        """
        model = unwrapped(model)
        with cls._probing:
            known = cls._known.get(model)
            parts = _parts_of(model)
            same = known is not None and len(parts) == len(known._probed)
            if not same or not all(map(operator.is_, parts, known._probed)):
                known = cls._known[model] = cls(model)
            return known

    @property
    def model(self) -> PreTrainedModel:
        return self._model()

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    @property
    def vocab_size(self) -> int:
        return self.unembedding.weight.shape[0]

    @property
    def n_tokens(self) -> int:
        """Number of token ids; the embedding may have more rows."""
        try:
            return self.model.get_input_embeddings().weight.shape[0]
        except (NotImplementedError, AttributeError):  # transformers' own, of a model whose embeddings it cannot find
            return self.vocab_size

    @property
    def context_length(self) -> int | None:
        """Maximum number of positions; None if the config names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def position_arguments(self, start: int, length: int) -> dict[str, Tensor]:
        """Positions from `start` on, where the model's default differs from `generate`'s."""
        if not self._parts.numbered:
            return {}
        return {"position_ids": torch.arange(start, start + length, device=self.model.device)[None]}

    def capture(
        self,
        input_ids: Int[Tensor, "batch position"],
        start: int = 0,
        cache: KVCache | None = None,
        positions: Int[Tensor, "1 position"] | None = None,
    ) -> Span:
        """Embed tokens, and record the arguments of every block.

        The model's own decoder runs with recorders for blocks, so that masks, rotary tables and positions are its own.
        With gradients enabled they reach the embedding.

        Args:
            start: position of the first token.
            positions: of all tokens, where they do not follow each other.

        Raises:
            UnsupportedError: a batch of texts so long that positions depend on the longest of them.
        """
        if input_ids.shape[0] > 1 and self.lengths is not None and start + input_ids.shape[1] > self.lengths.same_up_to:
            raise UnsupportedError(
                f"Texts of {start + input_ids.shape[1]} tokens in one batch: beyond {self.lengths.same_up_to} this "
                f"model's positions ({self.lengths.kind}) depend on the longest text of the batch. Pass one text at a "
                "time (batch_size=1), or shorter ones."
            )
        numbered = {"position_ids": positions}
        if positions is None:
            numbered = self.position_arguments(start, input_ids.shape[1])
        with self._turn:
            try:
                if cache is not None:
                    cache.reported = start
                kept = {self._cache_argument: cache, "use_cache": cache is not None}
                self._decoder(input_ids=input_ids, **numbered, **kept)
            finally:
                if cache is not None:
                    cache.reported = None
            calls = [recorder.call for recorder in self._recorders]
            for recorder in self._recorders:
                recorder.call = None
        return Span(start, input_ids.shape[1], calls[0][0], [(args, kwargs) for _, args, kwargs in calls])

    def run(
        self,
        first: int,
        last: int,
        hidden: Float[Tensor, "batch position hidden"],
        span: Span,
        blocks: Sequence[nn.Module] | None = None,
    ) -> Tensor:
        """Run the blocks first, ..., last - 1 on a span.

        Args:
            blocks: run these in place of the model's own.

        Returns:
            [batch, position, hidden].
        """
        blocks = self.blocks if blocks is None else blocks
        for block, (args, kwargs) in zip(blocks[first:last], span.calls[first:last], strict=True):
            hidden = block(hidden, *args, **kwargs)
            if isinstance(hidden, tuple):
                hidden = hidden[0]
        return hidden

    def normalise(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... width"]:
        """The unembedding's input: final norm, and whatever the model adds."""
        if self._parts.norm_is_all:
            return self.final_norm(hidden)
        return self._run_around(state=hidden)

    def postprocess(self, logits: Float[Tensor, "... classes"]) -> Float[Tensor, "... classes"]:
        """Scaling or soft-capping of the unembedding's output, class by class, if any."""
        if self._parts.raw:
            return logits
        return self._run_around(logits=logits)

    def unembed(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocab"]:
        """Logits for states after `n_blocks` blocks, or fewer (the logit lens)."""
        return self.postprocess(self.unembedding(self.normalise(hidden)))

    def _run_around(self, state: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
        """Run the code around blocks and unembedding, each row a one-token sequence."""
        given = state if state is not None else logits
        rows = given.reshape(-1, 1, given.shape[-1])
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
        recorder = self._recorders[-1]
        with self._turn:
            recorder.state = rows if state is not None else rows.new_zeros(*rows.shape[:2], self.hidden_size)
            self._tap.logits = rows if logits is not None else None
            try:
                output = self._around(input_ids=ids, use_cache=False).logits
                found = output if logits is not None else self._tap.given
            finally:
                recorder.state = self._tap.logits = self._tap.given = None
                for recorder in self._recorders:
                    recorder.call = None
        return found.reshape(*given.shape[:-1], found.shape[-1])

    @torch.no_grad()
    def states(self, input_ids: Int[Tensor, "batch position"], depths: Sequence[int]) -> dict[int, Tensor]:
        """Hidden states after each of `depths` blocks, [batch, position, hidden].

        `n_blocks` may be among them. One pass without a cache. Rows padded on the right need no mask: a causal model
        never looks ahead.
        """
        span = self.capture(input_ids)
        states, hidden, at = {}, span.hidden, 0
        for depth in sorted(depths):
            hidden = states[depth] = self.run(at, depth, hidden, span)
            at = depth
        return states

    def check_depths(self, depths: int | Sequence[int]) -> tuple[int, ...]:
        """Depths as a tuple; a number stands for that many, evenly spaced.

        4 gives depths near 1/5, 2/5, 3/5 and 4/5 of the blocks.

        Raises:
            InvalidInputError: they do not ascend strictly within 1 <= depth < n_blocks.
        """
        if np.ndim(depths) == 0:
            n = Number(least=1, most=self.n_blocks - 1, whole=True)("depths", depths)
            depths = [round(self.n_blocks * (i + 1) / (n + 1)) for i in range(n)]
        depths = tuple(Number(whole=True)("depths", depth) for depth in depths)
        if not depths:
            raise InvalidInputError("depths=[]: expected at least one number of blocks.")
        if list(depths) != sorted(set(depths)) or depths[0] < 1 or depths[-1] >= self.n_blocks:
            raise InvalidInputError(
                f"depths={list(depths)}: expected ascending numbers of blocks between 1 and {self.n_blocks - 1} "
                f"(the model has {self.n_blocks} blocks; depth counts the blocks that ran)."
            )
        return depths

    def state(self) -> list:
        """Cheap evidence of changed weights, without reading them all."""
        return fingerprints.state(self.model)

    def recognise(self, fingerprint: str, sketch: Sequence[float]) -> None:
        """Adopt the fingerprint of the same checkpoint in another type.

        Only if its sketch is like this model's. A fingerprint is the same in float32 and bfloat16; float16 rounds
        twice.
        """
        if fingerprints.alike(sketch, fingerprints.sketch(self.model)):
            self._known_as[self.fingerprint()] = fingerprint

    def fingerprint(self) -> str:
        """SHA-256 of the checkpoint, the same for each of its dtypes.

        Covers unembedding, final norm and a sample of every tensor.
        """
        found = fingerprints.fingerprint(self.model, (self.unembedding, self.final_norm))
        return self._known_as.get(found, found)

    @torch.no_grad()
    def _unmasked_window(self) -> int | None:
        """Smallest sliding window that the cache respects but the masks do not.

        Its keys leave the cache while the masks still show them to positions that share a call. None if there is none.
        Found in the masks for three positions beyond the window.
        """
        windows = KVCache(self.model.config, 0).windows
        for window in sorted({window for window in windows if window is not None}):
            ids = torch.zeros(1, 3, dtype=torch.long, device=self.model.device)
            span = self.capture(ids, window + 2, KVCache(self.model.config, 0))
            for (args, kwargs), of_block in zip(span.calls, windows, strict=True):
                if of_block == window and not hides_what_left(window, [*args, *kwargs.values()]):
                    return window
        return None

    @torch.no_grad()
    def _check(self) -> None:
        """Refuse a model whose parts, reassembled, do not give its own logits.

        Checked in one pass, and as in decoding: with a cache, half of the blocks position by position, the rest at
        once.
        """
        probe, logits = self._parts.probe, self._parts.logits
        n_blocks, half, eps = self.n_blocks, self.n_blocks // 2, torch.finfo(logits.dtype).eps
        once = self.unembed(self.states(probe, [n_blocks])[n_blocks])
        cache, hidden = KVCache(self.model.config, probe.shape[1]), []
        for i in range(probe.shape[1]):
            span = self.capture(probe[:, i : i + 1], i, cache)
            hidden.append(self.run(0, half, span.hidden, span))
        rest = self.run(half, n_blocks, torch.cat(hidden, dim=1), self.capture(probe, 0, cache))
        for found, tolerance, how in (
            (once, 16 * eps, "in one pass"),
            (self.unembed(rest), max(eps**0.5, 1e-5), "position by position with a cache"),
        ):
            difference = (found - logits).abs().max().item() if found.shape == logits.shape else float("inf")
            if not difference <= tolerance * logits.abs().max().item():
                raise ModelError(
                    f"Cannot split {type(self.model).__name__} into blocks: blocks, {type(self.final_norm).__name__} "
                    f"and unembedding, {how}, give logits of shape {list(found.shape)} that differ by {difference:.3g} "
                    f"from its own of shape {list(logits.shape)} and size up to {logits.abs().max():.3g}."
                )
