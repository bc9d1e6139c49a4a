"""Rounding and its gradient are the paper's, whatever the layout, the type and the way taken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import qkd.quantizers.round_to_grid as rounding
from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.injectors import ActivationQuantizer, WeightQuantizer
from tests.support.tiny_wirings import activation_layer

SEVERAL = (2, 3, 4, 8)


def straight_line(x: Tensor, step: Tensor, low: int, high: int, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LSQ as the paper writes it, element by element: output, gradient of x, gradient of the step before its scaling."""
    y, to_x, to_step = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(step.expand_as(x))
    spread = step.expand_as(x)
    for at in range(x.numel()):
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), x.shape))
        ratio = x[index].item() / spread[index].item()
        q = min(max(round(ratio), low), high)
        y[index] = q * spread[index]
        to_x[index] = g[index] if low < ratio < high else 0.0
        to_step[index] = g[index] * (q - ratio if low < ratio < high else q)
    return y, to_x, to_step.sum_to_size(step.shape)


@pytest.mark.parametrize("bits", SEVERAL)
@pytest.mark.parametrize("kind", ["weight", "weight per tensor", "unsigned", "signed"])
def test_gradient_is_the_papers(kind: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", 7)
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    if kind.startswith("weight"):
        layer = qnn.QuantConv2d(
            2, 3, (2, 3), weight_quant=WeightQuantizer, weight_bit_width=bits, weight_per_channel=kind == "weight"
        )
        core = layer.double().weight_quant.tensor_quant
        count = x[0].numel() if kind == "weight" else x.numel()
    else:
        core = qnn.QuantIdentity(act_quant=ActivationQuantizer, signed=kind == "signed", bit_width=bits).act_quant.core
        count = x[0].numel()
    core.double().fit(x.detach().reshape(3, -1) / 2)
    g = torch.randn_like(x)
    y, scale, *_ = core(x)
    y.backward(g)
    expected = straight_line(x.detach(), scale, core.low, core.high, g)
    assert torch.allclose(y, expected[0], rtol=1e-12)
    assert torch.equal(x.grad, expected[1])
    assert torch.allclose(core.step.grad, expected[2] / math.sqrt(count * core.high), rtol=1e-9)
    assert (x.grad == 0).any()


def test_a_step_carried_through_zero_is_reflected() -> None:
    core = qnn.QuantReLU(act_quant=ActivationQuantizer, bit_width=2).act_quant.core
    core.fit(torch.rand(1, 100))
    x, grads = torch.randn(50), []
    for sign in (1, -1):
        with torch.no_grad():
            core.step.copy_(core.step.abs() * sign)
        core.step.grad = None
        y = core(x)[0]
        y.sum().backward()
        assert core.scale() > 0
        grads.append(core.step.grad.item())
    assert grads[0] == -grads[1] != 0
    with torch.no_grad():
        core.step.zero_()
    core(x)[0].sum().backward()
    assert core.scale() > 0
    assert core.step.grad.isfinite()


def test_whole_tensors_and_blocks_agree() -> None:
    """What runs on other devices than the CPU, against what runs there."""
    x, g, s = torch.randn(2, 3, 400), torch.randn(2, 3, 400), torch.tensor(0.3)
    y = rounding._round_blocks(x, s, -8, 7)
    assert torch.equal(y, rounding._round_whole(x, s, -8, 7))
    whole = rounding._differentiate_whole(g, x, y, s, -8, 7)
    blocks = rounding._differentiate_blocks(g, x, y, s, -8, 7)
    assert torch.equal(whole[0], blocks[0])
    assert torch.allclose(whole[1], blocks[1], rtol=1e-4)
    assert whole[1].shape == blocks[1].shape == ()


@pytest.mark.parametrize("layout", ["rows", "channels last", "gaps", "expanded gradient"])
def test_memory_layout_changes_nothing(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", 100)
    plain, g = torch.randn(2, 3, 8, 10), torch.randn(2, 3, 8, 10)
    x, given = plain, g
    if layout == "channels last":
        x, given = plain.to(memory_format=torch.channels_last), g
    if layout == "gaps":
        x = torch.stack([plain, plain], -1)[..., 0]
    if layout == "expanded gradient":
        g = given = torch.randn(2, 3, 1, 1).expand(2, 3, 8, 10)
    results = []
    for source, gradient in ((plain, g.contiguous()), (x, given)):
        source = source.detach().requires_grad_()
        step = torch.tensor(0.7, requires_grad=True)
        y, _ = rounding.round_to_grid(source, step, -2, 1, 0.5)
        y.backward(gradient)
        results.append((y, source.grad, step.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.allclose(results[0][2], results[1][2], rtol=1e-4)


@pytest.mark.parametrize("bits", SEVERAL)
def test_bfloat16_rounds_as_float32_does(bits: int) -> None:
    layer = activation_layer("lsq", bits, signed=False)
    core = layer.act_quant.core
    x = torch.randn(1000).bfloat16()
    grads = []
    for values in (x, x.float()):
        core.step.grad = None
        y = core(values)[0]
        y.float().sum().backward()
        grads.append((core(values)[0].dtype, y.float() / core.scale(), core.step.grad.item()))
    assert [kind for kind, *_ in grads] == [torch.bfloat16, torch.float32]
    assert torch.allclose(grads[0][1], grads[1][1], rtol=2**-8)
    assert grads[0][2] == pytest.approx(grads[1][2], rel=1e-5)
    assert core.scale().dtype == torch.float32
