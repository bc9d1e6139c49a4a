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


def straight_line(x: Tensor, step: Tensor, levels: list[float], g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LSQ as the paper writes it, element by element: output, gradient of x, gradient of the step before its scaling."""
    y, to_x, to_step = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(step.expand_as(x))
    spread = step.expand_as(x)
    for at in range(x.numel()):
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), x.shape))
        ratio = x[index].item() / spread[index].item()
        q = min(levels, key=lambda level: abs(level - ratio))
        y[index] = q * spread[index]
        to_x[index] = g[index] if levels[0] < ratio < levels[-1] else 0.0
        to_step[index] = g[index] * (q - ratio if levels[0] < ratio < levels[-1] else q)
    return y, to_x, to_step.sum_to_size(step.shape)


def levels_of(kind: str, bits: int, chosen: str) -> list[float]:
    """The levels in steps, written out."""
    if kind == "unsigned":
        return [float(n) for n in range(2**bits)]
    if kind == "signed":
        return [float(n) for n in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]
    if bits == 2:
        by_name = {"narrow": [-1.0, 0.0, 1.0], "full": [-2.0, -1.0, 0.0, 1.0], "mid_rise": [-1.5, -0.5, 0.5, 1.5]}
        return by_name["mid_rise" if chosen == "auto" else chosen]
    return [float(n) for n in range(1 - 2 ** (bits - 1), 2 ** (bits - 1))]


KINDS = [(kind, bits, "auto") for kind in ("weight", "weight per tensor", "unsigned", "signed") for bits in SEVERAL]
KINDS += [(kind, 2, chosen) for kind in ("weight", "weight per tensor") for chosen in ("narrow", "full", "mid_rise")]


@pytest.mark.parametrize(("kind", "bits", "chosen"), KINDS)
def test_gradient_is_the_papers(kind: str, bits: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", 7)
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    if kind.startswith("weight"):
        settings = {"weight_bit_width": bits, "weight_per_channel": kind == "weight", "weight_levels": chosen}
        layer = qnn.QuantConv2d(2, 3, (2, 3), weight_quant=WeightQuantizer, **settings)
        core = layer.double().weight_quant.tensor_quant
        count = x[0].numel() if kind == "weight" else x.numel()
    else:
        core = qnn.QuantIdentity(act_quant=ActivationQuantizer, signed=kind == "signed", bit_width=bits).act_quant.core
        count = x[0].numel()
    core.double().fit(x.detach().reshape(3, -1) / 2)
    g = torch.randn_like(x)
    y, scale, *_ = core(x)
    y.backward(g)
    levels = levels_of(kind, bits, chosen)
    assert core.num_levels == len(levels)
    expected = straight_line(x.detach(), core.step.detach(), levels, g)
    assert torch.allclose(y, expected[0], rtol=1e-12)
    assert torch.equal(x.grad, expected[1])
    assert torch.allclose(core.step.grad, expected[2] / math.sqrt(count * levels[-1]), rtol=1e-9)
    assert (x.grad == 0).any()
    integers = y / scale
    assert torch.allclose(integers, integers.round(), atol=1e-9) and integers.abs().max() < 2**bits


def test_a_mid_rise_grid_has_no_zero_and_its_step_begins_where_the_error_is_least() -> None:
    core = qnn.QuantLinear(400, 3, False, weight_quant=WeightQuantizer, weight_bit_width=2).weight_quant.tensor_quant
    weights = torch.randn(3, 400) * torch.tensor([[0.1], [1.0], [7.0]])
    core.fit(weights)
    y, scale, *_ = core(weights)
    assert (y / scale).round().unique().tolist() == [-3, -1, 1, 3]
    assert torch.equal(scale * 2, core.step.abs()) and core(torch.zeros(3, 1))[0].gt(0).all()
    for factor in (0.9, 1.1):
        step = core.step.detach() * factor
        levels = torch.tensor([-1.5, -0.5, 0.5, 1.5]) * step[..., None]
        other = (weights[..., None] - levels).abs().amin(-1).square().sum(1)
        assert (other > (y - weights).square().sum(1)).all()
    # 0.996 standard deviations is the optimum for a Gaussian (Max, 1960; the constant of HWGQ)
    assert torch.allclose(core.step.flatten() / weights.std(1), torch.tensor(0.996), rtol=0.15)


def test_a_channel_of_zeros_stays_near_zero_where_no_level_is_zero() -> None:
    core = qnn.QuantLinear(20, 2, False, weight_quant=WeightQuantizer, weight_bit_width=2).weight_quant.tensor_quant
    weights = torch.cat([torch.randn(1, 20), torch.zeros(1, 20)])
    core.fit(weights)
    assert core(weights)[0][1].abs().max() < 1e-7 and (core.scale() > 0).all()


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


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-1.5, 1.5)])
def test_whole_tensors_and_blocks_agree(low: float, high: float) -> None:
    """What runs on other devices than the CPU, against what runs there."""
    x, g, s = torch.randn(2, 3, 400), torch.randn(2, 3, 400), torch.tensor(0.3)
    zero = rounding.has_zero(low)
    y = rounding._round_blocks(x, s, low, high, zero)
    assert torch.equal(y, rounding._round_whole(x, s, low, high, zero))
    whole = rounding._differentiate_whole(g, x, y, s, low, high)
    blocks = rounding._differentiate_blocks(g, x, y, s, low, high)
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
