import pytest
import torch
from tiny import tiny_model
from torch import nn

from eelib.backbone.int8 import with_int8


@pytest.mark.parametrize("shape", [(1, 48), (3, 1, 48), (2, 5, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_float_but_for_the_rounding(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 33, bias=bias)
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    found, expected = with_int8(linear)(x), linear(x)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    # Each factor is off by half a step at most, 1/254 of the largest of its row.
    x_max, w_max = x.abs().amax(-1, keepdim=True), linear.weight.abs().amax(1)
    bound = (x_max * linear.weight.abs().sum(1) + x.abs().sum(-1, keepdim=True) * w_max) / 254 * 1.01
    assert ((found - expected).abs() <= bound + 1e-6).all() and not found.equal(expected)


def test_nothing_in_gives_the_bias_out():
    linear = nn.Linear(8, 4)
    assert with_int8(linear)(torch.zeros(2, 8)).allclose(linear.bias.expand(2, -1))
    assert with_int8(linear.bfloat16())(torch.zeros(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_model_is_copied_not_changed():
    model = tiny_model("llama", torch.float32)
    copied, tokens = with_int8(model), torch.arange(12)[None]
    assert all(type(m) is nn.Linear for m in (model.lm_head, model.model.layers[0].mlp.up_proj))
    assert type(copied.lm_head) is not nn.Linear and copied.model.layers[0] is not model.model.layers[0]
    expected, found = model(tokens).logits, copied(tokens).logits
    assert 0 < (found - expected).norm() < 0.25 * expected.norm()
