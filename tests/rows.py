"""Rows for batches: prompts of different lengths, what a row may be given, and rows that cannot be decoded."""

import torch
from tiny import prompts
from transformers import StoppingCriteria

import eelib

SURE = eelib.Confidence("max_prob", (0.25, 0.25, 0.25), back_off=False)
"""With `random_heads`: leaves at every exit, and is often wrong."""


def lengths(n: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Prompts of different lengths, in no order."""
    sizes = torch.randint(1, longest + 1, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [prompt[0, :size].tolist() for prompt, size in zip(prompts(n, longest, seed), sizes, strict=True)]


class After(StoppingCriteria):
    """Stops, with a state of its own, after it has been asked so often; or fails at a text of such a length."""

    def __init__(self, times, fails_at=None):
        self.left, self.fails_at = times, fails_at

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        if input_ids.shape[1] == self.fails_at:
            raise RuntimeError("no more")
        return torch.tensor([self.left < 0])


class Streamer:
    def __init__(self):
        self.tokens, self.ended = [], 0

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended += 1


POISON = {
    "empty": ([], {}),
    "beyond the vocabulary": ([5, 1000], {}),
    "not whole": ([0.5, 2.0], {}),
    "beyond the context": ([5] * 250, {"max_new_tokens": 20}),
    "a criterion that raises": ([5, 6], {"stopping_criteria": [After(99, fails_at=5)]}),
    "two prompts": (torch.ones(2, 3, dtype=torch.long), {}),
    "an option": ([5, 6], {"num_beams": 2}),
    "heads that do not fit": ([5, 6], {"policy": eelib.FixedExit(2, 2)}),
}
"""Prompts and options that fail, before decoding or in the middle of it, for a GPT-2."""
