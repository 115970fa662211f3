"""Teacher: outputs of the frozen model, computed once for all heads."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.backbone.segments import Backbone, pad
from eelib.errors import TeacherError
from eelib.workspace import expanded, read_tensors, write_tensors


@dataclass(frozen=True)
class TeacherOutputs:
    """Outputs of the frozen model at the positions of a loss mask.

    Attributes:
        states: hidden states by depth, after the blocks below each head.
        final: input of the unembedding, after the final norm.
        log_normaliser: of the model's distribution [nats].
        argmax: the model's most likely token.
    """

    states: dict[int, Float[Tensor, "token hidden"]]
    final: Float[Tensor, "token width"]
    log_normaliser: Float[Tensor, " token"]
    argmax: Int[Tensor, " token"]

    @classmethod
    def from_states(cls, backbone: Backbone, states: dict[int, Tensor], rows: int = 256) -> "TeacherOutputs":
        """Outputs from hidden states [token, hidden], the last block's included.

        Frees the last block's states; a few rows at a time bound the memory for logits.
        """
        finals, normalisers, tokens = [], [], []
        for hidden in states.pop(backbone.n_blocks).split(rows):  # the whole vocabulary for a few rows at once
            finals.append(backbone.normalise(hidden))
            logits = backbone.postprocess(backbone.unembedding(finals[-1]))
            normalisers.append(logits.float().logsumexp(-1))
            tokens.append(logits.argmax(-1))
        return cls(states, torch.cat(finals), torch.cat(normalisers), torch.cat(tokens))

    @classmethod
    def concatenate(cls, parts: Sequence["TeacherOutputs"]) -> "TeacherOutputs":
        """Several outputs joined, in their order."""
        states = {depth: torch.cat([part.states[depth] for part in parts]) for depth in parts[0].states}
        rest = ([getattr(part, name) for part in parts] for name in ("final", "log_normaliser", "argmax"))
        return cls(states, *map(torch.cat, rest))

    def select(self, rows: Int[Tensor, " row"]) -> "TeacherOutputs":
        """Some of the rows."""
        states = {depth: state[rows] for depth, state in self.states.items()}
        return TeacherOutputs(states, self.final[rows], self.log_normaliser[rows], self.argmax[rows])


class Teacher:
    """The frozen model as teacher of heads at some depths.

    Args:
        model: the frozen model.
        depths: where the heads read.
        folder: cache of outputs, one file per sequence, for later epochs and other heads; None recomputes them each
            time.

    Example:
        >>> teacher = Teacher(model, depths=[2, 4])
        >>> outputs = teacher.outputs(sequences)
        >>> outputs.states[2].shape == (sum(map(len, sequences)), model.config.hidden_size)
        True
    """

    def __init__(self, model: PreTrainedModel, depths: Sequence[int], folder: str | Path | None = None):
        self.model, self.backbone = model, Backbone.of(model)
        self.depths = self.backbone.check_depths(depths)
        key = f"{self.backbone.fingerprint()} {model.dtype} {self.depths}".encode()
        self.folder = None if folder is None else expanded(folder) / hashlib.sha256(key).hexdigest()[:12]

    @property
    def sharded(self) -> bool:
        """Whether processes share the weights, and must run together (FSDP)."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return False
        from torch.distributed.tensor import DTensor  # takes a second

        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())

    def outputs(self, sequences: Sequence[Tensor], loss_mask: Sequence[Tensor] | None = None) -> TeacherOutputs:
        """Outputs at the positions that the loss masks let through (None: all).

        Sequences and masks are [position].
        """
        if self.folder is None:
            return self._compute(sequences, loss_mask)
        masks = [None] * len(sequences) if loss_mask is None else loss_mask
        cached = [self._cached(sequence, mask) for sequence, mask in zip(sequences, masks, strict=True)]
        joined = {name: torch.cat([one[name] for one in cached]).to(self.model.device) for name in cached[0]}
        states = {depth: joined.pop(str(depth)).to(self.model.dtype) for depth in self.depths}
        return TeacherOutputs(states, **joined)

    def cache(self, sequences: Sequence[Tensor], loss_mask: Sequence[Tensor] | None = None) -> None:
        """Compute and cache missing outputs, after announcing their size.

        Raises:
            TeacherError: no disk space for them.
        """
        masks = [None] * len(sequences) if loss_mask is None else loss_mask
        missing = [i for i, s in enumerate(sequences) if not self._file(s, masks[i]).is_file()]
        tokens = sum(len(sequences[i]) if masks[i] is None else int(masks[i].sum()) for i in missing)
        self.announce(tokens)
        for i in tqdm(missing, desc="running the teacher", unit="text"):
            self._cached(sequences[i], masks[i])

    def announce(self, tokens: int) -> None:
        """Print the maximum disk space of the outputs on so many tokens.

        Raises:
            TeacherError: there is less.
        """
        if self.folder is None or not tokens:
            return
        size = tokens * self.bytes_per_token
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        what = (
            f"Teacher outputs on {tokens:,} tokens at {len(self.depths)} depths take up to {size / 1e9:.2f} GB in "
            f"{self.folder}"
        )
        if size > 0.9 * free:
            raise TeacherError(
                f"{what}, where {free / 1e9:.2f} GB are free. Free disk space, or do not cache the teacher."
            )
        print(f"{what}; {free / 1e9:.0f} GB are free.")

    def clear_cache(self) -> None:
        """Delete the cached outputs."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def bytes_per_token(self) -> int:
        width = self.backbone.unembedding.weight.shape[1]
        return len(self.depths) * self.backbone.hidden_size * 2 + width * self.model.dtype.itemsize + 4 + 8

    def _file(self, sequence: Tensor, mask: Tensor | None) -> Path:
        digest = hashlib.sha256(sequence.numpy().tobytes())
        digest.update(b"" if mask is None else mask.numpy().tobytes())
        return self.folder / f"{digest.hexdigest()[:24]}.safetensors"

    def _cached(self, sequence: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        file = self._file(sequence, mask)
        if not file.is_file():
            outputs = self._compute([sequence], None if mask is None else [mask])
            self.store(sequence, mask, outputs)
        found, _ = read_tensors(file, TeacherError, scratch=True)
        names = {*map(str, self.depths), "final", "log_normaliser", "argmax"}
        if found.keys() != names or len({of.shape[:1] for of in found.values()}) > 1:
            raise TeacherError(f"{file} holds something else than outputs of this teacher: delete it.")
        return found

    def store(self, sequence: Tensor, mask: Tensor | None, outputs: TeacherOutputs) -> None:
        """Cache the outputs on one sequence, states in bfloat16."""
        tensors = {str(depth): state.bfloat16() for depth, state in outputs.states.items()}
        tensors |= {"final": outputs.final, "log_normaliser": outputs.log_normaliser, "argmax": outputs.argmax}
        write_tensors(self._file(sequence, mask), tensors)

    @torch.no_grad()
    def _compute(self, sequences: Sequence[Tensor], loss_mask: Sequence[Tensor] | None) -> TeacherOutputs:
        tokens, real = pad(sequences, loss_mask)
        real = real.to(self.model.device)
        states = self.backbone.states(tokens.to(self.model.device), [*self.depths, self.backbone.n_blocks])
        return TeacherOutputs.from_states(self.backbone, {depth: state[real] for depth, state in states.items()})
