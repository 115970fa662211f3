"""That arrays in annotations are checked at all, in every run of the tests."""

from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int
from shapes import checked
from torch import Tensor

from eelib.backbone.teacher import TeacherOutputs
from eelib.confidence.metrics import confidence


@checked
def rows(x: Float[Tensor, "row width"], some: Int[Tensor, " row"], name: str = "") -> Float[Tensor, " row"]:
    return x[:, 0] if name != "wrong" else x[0]


def test_arguments_and_results_of_one_call_share_their_sizes():
    x, some = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    assert rows(x, some).shape == (3,) and rows(x[:2], some[:2], name=None).shape == (2,)
    for given in ((x, some[:2]), (x, some.float()), (x[0], some), (x, some, "wrong")):
        with pytest.raises(BeartypeCallHintViolation):
            rows(*given)


def test_fields_are_checked_and_what_has_no_arrays_is_left_alone():
    @checked
    @dataclass
    class Pair:
        first: Float[Tensor, " n"]
        second: Float[Tensor, " n"]

    Pair(torch.zeros(2), torch.zeros(2))
    with pytest.raises(BeartypeCallHintViolation):
        Pair(torch.zeros(2), torch.zeros(3))

    def plain(x: int) -> Tensor: ...

    assert checked(plain) is plain


def test_the_library_is_checked():
    with pytest.raises(BeartypeCallHintViolation):
        confidence(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(BeartypeCallHintViolation):
        TeacherOutputs({}, torch.zeros(3, 4), torch.zeros(2), torch.zeros(3, dtype=torch.long))
