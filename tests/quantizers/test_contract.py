"""The quantizers' contract: values on the grid and Brevitas' interface, whatever family and bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qkd.errors import SchemeError
from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.injectors import ActivationQuantizer
from tests.support.refusals import Refused
from tests.support.tiny_wirings import activation_layer, weight_layer

SEVERAL = (2, 3, 4, 8)
OLDEST = ("lsq", "hwgq")  # with their grids written out; what holds for all families is in test_families
WEIGHTS = [(family, bits) for family in OLDEST for bits in range(1, 9) if (family, bits) != ("lsq", 1)]
ACTIVATIONS = [(family, bits, False) for family in OLDEST for bits in range(1, 9)]
ACTIVATIONS += [(family, bits, True) for family in OLDEST for bits in range(2, 9)]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("family", "bits"), WEIGHTS)
def test_weights_lie_on_their_grid(family: str, bits: int, per_channel: bool) -> None:
    layer = weight_layer(family, bits, per_channel)
    for mode in (True, False):
        layer.train(mode)
        quantized = layer.quant_weight()
        integers = quantized.value / quantized.scale
        assert quantized.scale.shape == ((5, 1, 1, 1) if per_channel else ())
        assert (quantized.scale > 0).all()
        assert torch.allclose(integers, integers.round(), atol=1e-5)
        assert torch.equal(quantized.int(float_datatype=True), integers.round())
        odd = bits < 8 if family == "hwgq" else bits == 2
        top = 2**bits - 1 if odd else 2 ** (bits - 1) - 1
        assert not odd or (integers.round() % 2).all()
        assert integers.round().abs().max() <= top
        assert layer.weight_quant.is_signed
        assert layer.weight_quant.is_narrow_range
        assert 2 ** (int(layer.weight_quant.bit_width()) - 1) - 1 == top
        assert torch.equal(layer.weight_quant.scale(), quantized.scale)
        assert layer.weight_quant.zero_point() == 0


@pytest.mark.parametrize(("family", "bits", "signed"), ACTIVATIONS)
def test_activations_lie_on_their_grid(family: str, bits: int, signed: bool) -> None:
    layer = activation_layer(family, bits, signed)
    proxy = layer.act_quant
    x = 3 * torch.randn(2, 4, 5, 5)
    for mode in (True, False):
        layer.train(mode)
        y, scale = layer(x), proxy.scale()
        integers = (y / scale).round()
        assert scale.shape == ()
        assert scale > 0
        assert torch.equal(y, integers * scale)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        assert integers.min() == low
        assert integers.max() == high
        assert (proxy.bit_width(), proxy.zero_point()) == (bits, 0)
        assert (proxy.is_signed, proxy.is_narrow_range) == (signed, False)
        assert torch.equal(layer(y), y)


@pytest.mark.parametrize(("family", "bits"), [("lsq", 2), ("lsq", 8), ("hwgq", 1), ("hwgq", 3)])
def test_traced_by_the_compiler_equals_eager(family: str, bits: int) -> None:
    """Dynamo and the differentiable expression, without the code generator, which takes its time."""
    net = nn.Sequential(weight_layer(family, bits), nn.BatchNorm2d(5), activation_layer(family, bits, signed=False))
    copied = copy.deepcopy(net)
    compiled = torch.compile(copied, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 8, 8)
    y, again = net(x), compiled(x)
    assert torch.equal(y, again)
    for output in (y, again):
        output.square().mean().backward()
    for (name, one), other in zip(net.named_parameters(), copied.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize(("family", "bits"), [("lsq", 2), ("hwgq", 2)])
def test_compiled_equals_eager(family: str, bits: int) -> None:
    layer = activation_layer(family, bits, signed=False)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_state_dict_and_copies_keep_everything_and_optimizers_keep_their_parameters() -> None:
    first, second = (
        nn.Sequential(weight_layer("lsq", 4), activation_layer("hwgq", 4, False), activation_layer("lsq", 4, True))
        for _ in range(2)
    )
    ours = [id(parameter) for parameter in second.parameters()]
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert [id(parameter) for parameter in second.parameters()] == ours
    copied = copy.deepcopy(first)
    assert torch.equal(first(x), copied(x))
    assert not {id(p) for p in first.parameters()} & {id(p) for p in copied.parameters()}
    copied(x).sum().backward()
    assert first[0].weight.grad is None


def test_the_state_says_whether_a_quantizer_is_calibrated(refused: Refused) -> None:
    fresh = qnn.QuantReLU(act_quant=ActivationQuantizer, bit_width=4)
    with refused(SchemeError, "quantizer.not-calibrated"):
        fresh(torch.randn(3))
    done = activation_layer("lsq", 4, signed=False)
    assert any(name.endswith("calibrated") for name in done.state_dict())
    fresh.load_state_dict(done.state_dict())
    torch.compile(fresh, backend="aot_eager", fullgraph=True)(torch.randn(3))
    done.load_state_dict(qnn.QuantReLU(act_quant=ActivationQuantizer, bit_width=4).state_dict())
    with refused(SchemeError, "quantizer.not-calibrated"):
        done(torch.randn(3))


def test_a_disabled_relu_is_still_a_relu() -> None:
    layer, x = activation_layer("lsq", 2, signed=False), torch.randn(10)
    layer.act_quant.disable_quant = True
    assert torch.equal(layer(x), x.relu())
    assert layer.act_quant.scale() is None
