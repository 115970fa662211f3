"""Token ids as people have them."""

import numpy as np
import pytest
import torch
from tiny import VOCAB_SIZE, prompts, random_heads
from transformers import BatchEncoding

import eelib
from eelib.backbone.tokens import sequences_of, token_ids
from eelib.errors import InvalidInputError

ROW = [5, 6, 7]


@pytest.mark.parametrize(
    "given",
    [
        ROW,
        [ROW],
        tuple(ROW),
        np.array(ROW),
        np.array([ROW], dtype=np.int32),
        torch.tensor(ROW),
        torch.tensor([ROW], dtype=torch.int32),
        {"input_ids": ROW},
        BatchEncoding({"input_ids": [ROW], "attention_mask": [[1, 1, 1]]}),
        BatchEncoding({"input_ids": torch.tensor([ROW])}),
        [np.int64(token) for token in ROW],
    ],
)
def test_ids_of_any_kind(given):
    found = token_ids(given)
    assert found.tolist() == [ROW] and found.dtype is torch.long


@pytest.mark.parametrize(
    "given, message",
    [
        (None, "expected token ids"),
        ("the sky", "expected token ids"),
        ([0.5, 1.5], "whole numbers"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "whole numbers"),
        ([[1, 2], [3]], "rows of equal length"),
        (["a", "b"], "whole numbers|expected token ids"),
        ([3, VOCAB_SIZE], "from 0 to 96"),
        ([-1, 3], "from 0 to 96"),
        (object(), "expected token ids"),
    ],
)
def test_what_is_no_ids_is_refused(llama, given, message):
    with pytest.raises(InvalidInputError, match=message):
        token_ids(given, vocab_size=VOCAB_SIZE)
    if "rows" in message:
        return  # for `generate` these are two prompts
    with pytest.raises(InvalidInputError, match=message):
        eelib.generate(llama, given, policy=eelib.Never(), max_new_tokens=2)


def test_several_texts_of_any_kind():
    padded = BatchEncoding({"input_ids": [[0, 5, 6], ROW], "attention_mask": [[0, 1, 1], [1, 1, 1]]})
    for given in ([[5, 6], ROW], [torch.tensor([5, 6]), np.array([ROW])], padded, ({"input_ids": [5, 6]}, ROW)):
        assert [row.tolist() for row in sequences_of(given)] == [[5, 6], ROW]
    assert [row.tolist() for row in sequences_of(ROW)] == [ROW]
    assert [row.tolist() for row in sequences_of(torch.tensor([ROW, ROW]))] == [ROW, ROW]
    with pytest.raises(InvalidInputError, match="expected \\[position\\]"):
        sequences_of([[ROW, ROW]])


def test_generate_traces_and_comparison_take_them(llama):
    asked, heads = prompts(1)[0], random_heads(llama)
    own = llama.generate(asked, do_sample=False, max_new_tokens=8)
    encoding = BatchEncoding({"input_ids": asked.tolist(), "attention_mask": [[1] * 7]})
    for given in (asked[0], asked.tolist(), asked.numpy(), encoding):
        out = eelib.generate(llama, given, policy=eelib.FixedExit(3, 2), heads=heads, max_new_tokens=8)
        assert torch.equal(out.sequences, own)
        traces = eelib.record_traces(llama, heads, [given])
        assert len(traces) == 7 * len(heads.depths)
    assert eelib.verify_lossless(llama, heads, eelib.FixedExit(3, 2), asked, max_new_tokens=8).equal.all()


def test_masked_tokens_of_an_encoding_are_not_read(llama):
    asked = prompts(1)[0]
    padded = BatchEncoding({"input_ids": [[0, 0, *asked[0].tolist()]], "attention_mask": [[0, 0] + [1] * 7]})
    own = llama.generate(**{k: torch.tensor(v) for k, v in padded.items()}, do_sample=False, max_new_tokens=8)
    assert torch.equal(eelib.generate(llama, padded, policy=eelib.FixedExit(3, 2), max_new_tokens=8).sequences, own)
