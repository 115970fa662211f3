"""What the frozen model says of a text: the lesson that all heads learn from, computed once for all of them."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.backbone.segments import Backbone, pad
from eelib.errors import LessonsError
from eelib.workspace import atomic_write


@dataclass(frozen=True)
class Lesson:
    """The model at the positions of some text that count, one row each.

    states: after the blocks below each head. final: what the model's unembedding reads. log_normaliser: of its
    distribution, nats. choice: its most likely token.
    """

    states: dict[int, Float[Tensor, "token hidden"]]
    final: Float[Tensor, "token width"]
    log_normaliser: Float[Tensor, " token"]
    choice: Int[Tensor, " token"]

    @classmethod
    def read_off(cls, backbone: Backbone, states: dict[int, Tensor], rows: int = 256) -> "Lesson":
        """From states [token, hidden] at the heads' depths and after the last block; frees the latter."""
        finals, normalisers, choices = [], [], []
        for hidden in states.pop(backbone.n_blocks).split(rows):  # the whole vocabulary for a few rows at once
            finals.append(backbone.normalise(hidden))
            logits = backbone.finish(backbone.unembedding(finals[-1]))
            normalisers.append(logits.float().logsumexp(-1))
            choices.append(logits.argmax(-1))
        return cls(states, torch.cat(finals), torch.cat(normalisers), torch.cat(choices))

    @classmethod
    def joined(cls, lessons: Sequence["Lesson"]) -> "Lesson":
        """Several lessons as one, in their order."""
        states = {depth: torch.cat([lesson.states[depth] for lesson in lessons]) for depth in lessons[0].states}
        parts = ([getattr(lesson, name) for lesson in lessons] for name in ("final", "log_normaliser", "choice"))
        return cls(states, *map(torch.cat, parts))

    def at(self, rows: Int[Tensor, " row"]) -> "Lesson":
        """The lesson on some of its tokens."""
        states = {depth: state[rows] for depth, state in self.states.items()}
        return Lesson(states, self.final[rows], self.log_normaliser[rows], self.choice[rows])


class Lessons:
    """The lessons of one model for heads at some depths.

    Args:
        model: the frozen model.
        depths: where the heads read.
        folder: where to keep every lesson once it is computed, one file a sequence, so that later epochs and other
            heads only read it; None computes it each time.
    """

    def __init__(self, model: PreTrainedModel, depths: Sequence[int], folder: str | Path | None = None):
        self.model, self.backbone = model, Backbone.of(model)
        self.depths = self.backbone.check_depths(depths)
        key = f"{self.backbone.fingerprint()} {model.dtype} {self.depths}".encode()
        self.folder = None if folder is None else Path(folder) / hashlib.sha256(key).hexdigest()[:12]

    def on(self, sequences: Sequence[Tensor], counted: Sequence[Tensor] | None = None) -> Lesson:
        """One lesson for the positions of the sequences [position] that count (None: all), in their order."""
        if self.folder is None:
            return self._teach(sequences, counted)
        masks = [None] * len(sequences) if counted is None else counted
        kept = [self._kept(sequence, mask) for sequence, mask in zip(sequences, masks, strict=True)]
        joined = {name: torch.cat([one[name] for one in kept]).to(self.model.device) for name in kept[0]}
        states = {depth: joined.pop(str(depth)).to(self.model.dtype) for depth in self.depths}
        return Lesson(states, **joined)

    def keep(self, sequences: Sequence[Tensor], counted: Sequence[Tensor] | None = None) -> None:
        """Computes what is not kept yet of the lessons on these sequences. Says first how much that is.

        Raises:
            LessonsError: there is no room for it.
        """
        masks = [None] * len(sequences) if counted is None else counted
        missing = [i for i, s in enumerate(sequences) if not self._file(s, masks[i]).is_file()]
        tokens = sum(len(sequences[i]) if masks[i] is None else int(masks[i].sum()) for i in missing)
        self.announce(tokens)
        for i in tqdm(missing, desc="asking the model", unit="text"):
            self._kept(sequences[i], masks[i])

    def announce(self, tokens: int) -> None:
        """Prints what the lessons on so many tokens will take at most.

        Raises:
            LessonsError: there is no room for it.
        """
        if self.folder is None or not tokens:
            return
        size = tokens * self.bytes_per_token
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        what = (
            f"Lessons on {tokens:,} tokens at {len(self.depths)} depths take up to {size / 1e9:.2f} GB in {self.folder}"
        )
        if size > 0.9 * free:
            raise LessonsError(f"{what}, where {free / 1e9:.2f} GB are free. Make room, or keep no lessons.")
        print(f"{what}; {free / 1e9:.0f} GB are free.")

    def forget(self) -> None:
        """Deletes what is kept."""
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

    def _kept(self, sequence: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        file = self._file(sequence, mask)
        if not file.is_file():
            lesson = self._teach([sequence], None if mask is None else [mask])
            self.store(sequence, mask, lesson)
        return load_file(file)

    def store(self, sequence: Tensor, mask: Tensor | None, lesson: Lesson) -> None:
        """Keeps the lesson on one sequence, its states in bfloat16."""
        tensors = {str(depth): state.bfloat16() for depth, state in lesson.states.items()}
        tensors |= {"final": lesson.final, "log_normaliser": lesson.log_normaliser, "choice": lesson.choice}
        with atomic_write(self._file(sequence, mask)) as path:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)

    @torch.no_grad()
    def _teach(self, sequences: Sequence[Tensor], counted: Sequence[Tensor] | None) -> Lesson:
        tokens, real = pad(sequences, counted)
        real = real.to(self.model.device)
        states = self.backbone.states(tokens.to(self.model.device), [*self.depths, self.backbone.n_blocks])
        return Lesson.read_off(self.backbone, {depth: state[real] for depth, state in states.items()})
