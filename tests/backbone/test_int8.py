import pytest
import torch
from tiny import tiny_model
from torch import nn

from eelib.backbone import int8
from eelib.backbone.int8 import int8_pays, with_int8


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


@pytest.mark.parametrize("whole", [True, False])
def test_sums_of_the_largest_numbers_do_not_overflow(monkeypatch, whole):
    """Also on a CPU where torch's own product of eight-bit matrices does."""
    if not whole:
        monkeypatch.setattr(int8, "_sums_are_whole", lambda: False)
        monkeypatch.setattr(torch, "_int_mm", None)  # not to be asked
    linear = nn.Linear(512, 3, bias=False)
    linear.weight.data.fill_(0.5)
    x = torch.tensor([[2.0], [-2.0]]).expand(2, 512)
    expected = torch.tensor([[512.0], [-512.0]]).expand(2, 3)
    torch.testing.assert_close(with_int8(linear)(x), expected, rtol=1e-6, atol=0)  # float32 rounds the two scales


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_eight_bits_pay_with_vnni_only_and_where_nothing_better_is(monkeypatch, vnni, amx, whole):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(int8, "_sums_are_whole", lambda: whole)
    assert int8_pays(torch.device("cpu")) == (vnni and whole and not amx) and not int8_pays(torch.device("cuda"))


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
    assert 0 < (found - expected).norm() < 0.25 * expected.norm()  # 42 products, each off by up to 1/254


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_was_rounded_last_is_not_taken_for_what_stands_there_now(mode):
    with mode():
        layers, x = nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4)), torch.randn(3, 8)
        copied = with_int8(layers)
        before = copied[0](x), copied[1](x)
        x.mul_(-2)
        fresh = with_int8(layers)
        for layer in (1, 0):
            assert copied[layer](x).equal(fresh[layer](x.clone())) and not copied[layer](x).equal(before[layer])
