"""Which tokens each step of training learns from, and what the model says of them."""

from collections.abc import Iterator, Sequence

import torch
from accelerate import PartialState
from torch import Tensor

from eelib.lessons import Lesson, Lessons


class Batches:
    """The steps of a run: every epoch takes all sequences, in an order of its own.

    Args:
        sequences, counted: as `distil` takes them.
        epochs, batch_size, shuffle_buffer, seed: as in `TrainConfig`.
    """

    def __init__(
        self,
        sequences: Sequence[Tensor],
        counted: Sequence[Tensor] | None,
        *,
        epochs: int,
        batch_size: int,
        shuffle_buffer: int,
        seed: int,
    ):
        self.sequences, self.counted, self.seed = sequences, counted, seed
        self.together = max(1, shuffle_buffer // batch_size)  # steps that shuffle their tokens among each other
        generator, self.steps = torch.Generator().manual_seed(seed), []
        for _ in range(epochs):
            order = torch.randperm(len(sequences), generator=generator)
            self.steps += [batch.tolist() for batch in order.split(batch_size)]

    def __len__(self) -> int:
        return len(self.steps)

    def taught(self, lessons: Lessons, first: int = 0) -> Iterator[Lesson | None]:
        """This process's share of every step from number `first` on; None where it has none.

        Steps that shuffle their tokens are taught together, also where `first` lies among them.
        """
        state = PartialState()
        for start in range(first // self.together * self.together, len(self), self.together):
            group = self.steps[start : start + self.together]
            shares = [batch[state.process_index :: state.num_processes] for batch in group]
            parts = [lessons.on(*self._texts(share)) for share in shares if share]
            lesson = Lesson.joined(parts) if parts else None
            owners = torch.cat([torch.arange(len(batch)) % state.num_processes for batch in group])
            sizes = torch.tensor([self._size(i) for batch in group for i in batch])
            own = owners.repeat_interleave(sizes) == state.process_index  # [token]
            place = own.cumsum(0) - 1  # of this process's tokens, in their lesson
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + start)
            order = torch.randperm(len(own), generator=generator).tensor_split(len(group))
            for tokens in order[max(first - start, 0) :]:
                mine = place[tokens[own[tokens]]]
                yield lesson.at(mine.to(lesson.choice.device)) if len(mine) else None

    def _texts(self, numbers: list[int]) -> tuple[list[Tensor], list[Tensor] | None]:
        counted = None if self.counted is None else [self.counted[i] for i in numbers]
        return [self.sequences[i] for i in numbers], counted

    def _size(self, number: int) -> int:
        return len(self.sequences[number]) if self.counted is None else int(self.counted[number].sum())
