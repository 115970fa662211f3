"""Batches of training: shuffled teacher outputs, consecutive ones for `fused` heads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from eelib.backbone.teacher import Teacher, TeacherOutputs


@dataclass(frozen=True)
class Lesson:
    """Training data of one step.

    Attributes:
        outputs: teacher outputs at the positions of the first draft, the second, ...; all with the same number of
            tokens.
        previous: the unembedding's input one position before the first draft; None for heads that do not read it.
    """

    outputs: tuple[TeacherOutputs, ...]
    previous: Float[Tensor, "token width"] | None = None

    def __len__(self) -> int:
        return len(self.outputs[0].argmax)


class Batches:
    """Steps of a run, in a new order every epoch.

    Args:
        sequences, loss_mask: as for `train_heads`.
        epochs, batch_size, shuffle_buffer, seed: as in `TrainConfig`.
        drafts: number of consecutive drafts in a lesson; None for heads that do not read the previous position.
    """

    def __init__(
        self,
        sequences: Sequence[Tensor],
        loss_mask: Sequence[Tensor] | None,
        *,
        epochs: int,
        batch_size: int,
        shuffle_buffer: int,
        seed: int,
        drafts: int | None = None,
    ):
        self.sequences, self.loss_mask, self.seed, self.drafts = sequences, loss_mask, seed, drafts
        self.together = max(1, shuffle_buffer // batch_size)  # steps that shuffle their tokens among each other
        generator, self.steps = torch.Generator().manual_seed(seed), []
        for _ in range(epochs):
            order = torch.randperm(len(sequences), generator=generator)
            self.steps += [batch.tolist() for batch in order.split(batch_size)]

    def __len__(self) -> int:
        return len(self.steps)

    def lessons(self, teacher: Teacher, first: int = 0) -> Iterator[Lesson | None]:
        """This process's share of every step from `first` on; None for none.

        Steps that shuffle their tokens together share a pass of the teacher, also when `first` lies among them.
        """
        state = PartialState()
        for start in range(first // self.together * self.together, len(self), self.together):
            group = self.steps[start : start + self.together]
            shares = [batch[state.process_index :: state.num_processes] for batch in group]
            parts = []
            for share, batch in zip(shares, group, strict=True):
                if share:
                    parts.append(teacher.outputs(*self._texts(share)))
                elif teacher.sharded:  # the others wait for this process's part of the weights
                    teacher.outputs(*self._texts(batch[:1]))
            outputs = TeacherOutputs.concatenate(parts) if parts else None
            begins = None
            if self.drafts is not None and parts:
                begins = torch.cat([in_a_row(*self._texts(share), self.drafts + 1) for share in shares if share])
            owners = torch.cat([torch.arange(len(batch)) % state.num_processes for batch in group])
            sizes = torch.tensor([self._size(i) for batch in group for i in batch])
            own = owners.repeat_interleave(sizes) == state.process_index  # [token]
            place = own.cumsum(0) - 1  # of this process's tokens, in their outputs
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + start)
            order = torch.randperm(len(own), generator=generator).tensor_split(len(group))
            for tokens in order[max(first - start, 0) :]:
                mine = place[tokens[own[tokens]]]
                if begins is not None:
                    mine = mine[begins[mine]]
                yield self._lesson(outputs, mine.to(outputs.argmax.device)) if len(mine) else None

    def _lesson(self, outputs: TeacherOutputs, rows: Tensor) -> Lesson:
        if self.drafts is None:
            return Lesson((outputs.select(rows),))
        return Lesson(tuple(outputs.select(rows + 1 + i) for i in range(self.drafts)), outputs.final[rows])

    def _texts(self, numbers: list[int]) -> tuple[list[Tensor], list[Tensor] | None]:
        loss_mask = None if self.loss_mask is None else [self.loss_mask[i] for i in numbers]
        return [self.sequences[i] for i in numbers], loss_mask

    def _size(self, number: int) -> int:
        return len(self.sequences[number]) if self.loss_mask is None else int(self.loss_mask[number].sum())


def in_a_row(sequences: Sequence[Tensor], loss_mask: Sequence[Tensor] | None, n: int) -> Bool[Tensor, " token"]:
    """Rows of `Teacher.outputs` that begin n consecutive positions of one text."""
    found = []
    for i, sequence in enumerate(sequences):
        counts = torch.ones(len(sequence), dtype=torch.bool) if loss_mask is None else loss_mask[i].bool()
        whole = F.pad(counts, (0, n - 1)).unfold(0, n, 1).all(-1)
        found.append(whole[counts])
    return torch.cat(found)
