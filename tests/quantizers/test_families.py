"""Every family keeps the quantizers' contract: grid, gradient of its paper, state, and a file equal to its emulator."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qkd.errors import SchemeError
from qkd.export import emit, emulate, predict
from qkd.quantizers import FAMILIES, Scheme, calibrate, compile_cores, insert, quantizers, scales
from qkd.quantizers.dorefa import RangeQuant, TanhQuant
from qkd.quantizers.ewgs import DELTA, EwgsQuant, EwgsWeight
from qkd.quantizers.lsq_plus import ShiftedQuant
from qkd.quantizers.pact import ClippedQuant
from qkd.quantizers.pot import PowerOfTwo
from qkd.quantizers.ternary import BinaryQuant, TernaryQuant
from tests.support.families import BITS, WEIGHTS, weight_bits, weights_have
from tests.support.refusals import Refused
from tests.support.tiny_wirings import Bottleneck, activation_layer, images, weight_layer, with_statistics

SIGNED = [(family, bits) for family in FAMILIES for bits in BITS if bits > 1]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("family", "bits"), WEIGHTS)
def test_weights_are_few_integers_times_a_positive_scale(family: str, bits: int, per_channel: bool) -> None:
    layer = weight_layer(family, bits, per_channel)
    quantized = layer.quant_weight()
    integers = quantized.value / quantized.scale
    assert (quantized.scale > 0).all()
    assert quantized.scale.numel() in ((5,) if per_channel else (1,)) or family in ("pact", "dorefa")
    assert torch.allclose(integers, integers.round(), atol=1e-4)
    assert len(integers.round().unique()) <= 2**bits
    assert integers.abs().max() < 127.5
    layer(torch.randn(2, 3, 8, 8)).sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("family", "bits"), [(family, bits) for family in FAMILIES for bits in BITS])
def test_unsigned_activations_lie_on_their_grid(family: str, bits: int) -> None:
    layer = activation_layer(family, bits, signed=False)
    x = 3 * torch.randn(2, 4, 5, 5)
    y, scale = layer(x), layer.act_quant.scale()
    integers = (y / scale).round()
    assert scale > 0
    assert torch.allclose(y, integers * scale)
    assert set(integers.unique().tolist()) <= set(range(2**bits))
    assert layer.act_quant.zero_point() == 0
    assert torch.equal(layer(y), y)


@pytest.mark.parametrize(("family", "bits"), SIGNED)
def test_signed_activations_lie_on_their_grid_and_keep_zero(family: str, bits: int) -> None:
    layer = activation_layer(family, bits, signed=True)
    y, scale, zero = layer(3 * torch.randn(2, 4, 5, 5)), layer.act_quant.scale(), layer.act_quant.zero_point()
    integers = (y / scale + zero).round()
    assert torch.allclose(y, (integers - zero) * scale)
    low = -(2 ** (bits - 1))
    assert low <= integers.min()
    assert integers.max() <= -low - 1
    assert low <= zero <= -low - 1
    assert layer(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_state_copies_and_safetensors_keep_everything(family: str, tmp_path: Path) -> None:
    bits = weight_bits(family, 3)

    def layers() -> nn.Sequential:
        parts = weight_layer(family, bits), activation_layer(family, 3, False), activation_layer(family, 3, True)
        return nn.Sequential(*parts)

    first, second, x = layers(), layers(), torch.randn(2, 3, 8, 8)
    ours = [id(parameter) for parameter in second.parameters()]
    save_file({name: tensor.contiguous() for name, tensor in first.state_dict().items()}, tmp_path / "a.safetensors")
    second.load_state_dict(load_file(tmp_path / "a.safetensors"))
    assert torch.equal(first(x), second(x))
    assert [id(parameter) for parameter in second.parameters()] == ours
    assert torch.equal(copy.deepcopy(first)(x), first(x))
    assert {id(p) for p in scales(first)} == {id(p) for p in first.parameters()} - {
        id(first[0].weight),
        id(first[0].bias),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_exported_file_equals_its_emulator(family: str, per_channel: bool) -> None:
    bits = weight_bits(family, 2)
    module = insert(with_statistics(Bottleneck), Scheme(bits, 3, family=family, per_channel=per_channel))
    calibrate(module, [images()])
    for _ in range(2):
        module.train()(images()).square().mean().backward()
    emitted = emit(module.eval(), (3, 16, 16))
    assert not emitted.float_layers
    x = images().numpy().astype(np.float32)
    found = predict(emitted.model, x)
    assert np.array_equal(found, emulate(emitted.model, x))
    with torch.no_grad():
        expected = module(images())
    assert np.abs(found - expected.numpy()).max() < 0.2 * expected.abs().max()


def test_what_has_no_grid_is_refused_when_the_scheme_is_made(refused: Refused) -> None:
    for family in FAMILIES:
        for bits in BITS:
            if not weights_have(family, bits):
                one = FAMILIES[family].only_bits is None
                with refused(SchemeError, "scheme.one-bit-weights" if one else "scheme.wrong-weight-bits"):
                    Scheme(bits, 4, family=family)
    mixed = Scheme(1, 2, weight_family="binary", activation_family="pact")
    cores = dict(quantizers(insert(with_statistics(Bottleneck), mixed)))
    assert isinstance(cores["stem.3.weight"], BinaryQuant)
    assert isinstance(cores["stem.2"], ClippedQuant)
    with refused(SchemeError, "scheme.unknown-family"):
        Scheme(4, 4, weight_family="lqs")


def gradients(core: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient of x; those of parameters lie in ``grad``."""
    x = x.detach().requires_grad_()
    y = core(x)[0]
    y.backward(g)
    return y.detach(), x.grad


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(40, 25, dtype=torch.float64), torch.randn(40, 25, dtype=torch.float64)


def test_pact_moves_alpha_by_what_it_clips() -> None:
    x, g = data()
    core = ClippedQuant(3, "paper").double()
    core.fit(x[:1])
    assert core.alpha.item() == 10
    core.alpha.data.fill_(1.3)
    _, passed = gradients(core, x, g)
    assert torch.equal(passed, g * ((x > 0) & (x < 1.3)))
    assert core.alpha.grad.item() == pytest.approx(g[x >= 1.3].sum().item())


def test_dorefa_is_the_papers_formula() -> None:
    x, g = data()
    core = TanhQuant(3, "paper", (40, 1)).double()
    core.fit(x)
    y, passed = gradients(core, x, g)
    w = x.clone().requires_grad_()
    u = w.tanh() / (2 * w.tanh().abs().amax(1, keepdim=True)) + 0.5
    assert torch.allclose(y, 2 * (u * 7).round() / 7 - 1)
    ((2 * u - 1) * g).sum().backward()
    assert torch.allclose(passed, w.grad)
    activations = RangeQuant(2, "paper")
    activations.fit(x)
    assert torch.allclose(activations(x)[0], (x.clamp(0, 1) * 3).round() / 3)
    kept = TanhQuant(6, "mse", (40, 1)).double()
    kept.fit(x)
    assert (kept(x)[0] - x).norm() < 0.5 * x.norm()


def test_lsq_plus_is_lsq_around_a_learned_offset() -> None:
    """Against the paper's table of gradients, with the offset that was really used; N and the levels scale them."""
    x, g = data()
    core = ShiftedQuant(3, "mse").double()
    core.fit(x + 1)
    assert core.zero() != 0
    y, passed = gradients(core, x, g)
    s, beta = core.scale(), (core.low - core.zero()) * core.scale()
    v = (x - beta) / s
    inside = (v > 0) & (v < 7)
    assert torch.allclose(y, v.round().clamp(0, 7) * s + beta)
    assert torch.equal(passed, g * inside)
    scaling = (25 * 7) ** -0.5
    to_step = torch.where(inside, v.round() - v, v.round().clamp(0, 7))
    assert core.step.grad.item() == pytest.approx((g * to_step).sum().item() * scaling)
    assert core.offset.grad.item() == pytest.approx(g[~inside].sum().item() * scaling)


def test_calibration_of_an_offset_follows_the_data() -> None:
    values = torch.rand(1, 5000) * 3 - 0.5
    for method in ("mse", "minmax", "percentile", "lsq", "paper"):
        core = ShiftedQuant(4, method)
        core.fit(values)
        assert (core(values)[0] - values).abs().mean() < 0.08
    core.fit(torch.zeros(1, 5))
    assert core.scale() > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_powers_of_two(compiled: bool) -> None:
    x, g = data()
    core = PowerOfTwo(4, True, "mse").double()
    core.fit(x.reshape(1, -1))
    core.step.data.mul_(1.2)
    core.compiled = compiled
    y, _ = gradients(core, x, g)
    scale = core.scale()
    assert scale.log2() == scale.log2().round()
    v = x / scale
    inside = (v > -8) & (v < 7)
    to_scale = torch.where(inside, v.round() - v, v.round().clamp(-8, 7))
    assert torch.allclose(y, v.round().clamp(-8, 7) * scale)
    expected = (g * to_scale).sum() * scale / core.step * (25 * 7) ** -0.5
    assert core.step.grad.item() == pytest.approx(expected.item())


def test_ternary_and_binary_scales_are_the_papers() -> None:
    x, g = data()
    size = x.abs()
    ternary = TernaryQuant(2, "mse", (40, 1))
    ternary.fit(x)
    y, passed = gradients(ternary, x, g)
    alive = size > 0.7 * size.mean(1, keepdim=True)
    alpha = (size * alive).sum(1) / alive.sum(1)
    assert torch.allclose(y, x.sign() * alive * alpha[:, None])
    assert torch.equal(passed, g)
    binary = BinaryQuant(1, "mse", (40, 1))
    binary.fit(x)
    y, passed = gradients(binary, x, g)
    alpha = size.mean(1, keepdim=True)
    assert torch.allclose(y, x.sign() * alpha)
    assert torch.allclose(passed, g * (1 / 25 + alpha * (size <= 1)))


@pytest.mark.parametrize("odd", [False, True])
def test_ewgs_scales_each_gradient_by_its_rounding_error(odd: bool) -> None:
    x, g = data()
    core = EwgsWeight(2, "paper", (40, 1)).double() if odd else EwgsQuant(2, True, "mse").double()
    core.fit(x if odd else x.reshape(1, -1))
    y, passed = gradients(core, x, g)
    span = (core.high - core.low) * core.scale()
    inside = (x > core.low * core.scale()) & (x < core.high * core.scale())
    expected = g * inside * (1 + DELTA * g.sign() * (x - y) / span)
    assert torch.allclose(passed, expected)
    assert not torch.equal(passed, g * inside)
    if odd:
        assert torch.allclose(core.scale() * 3, 3 * x.std(1, correction=0, keepdim=True))


def test_compiled_cores_equal_eager_ones() -> None:
    module = insert(with_statistics(Bottleneck), Scheme(4, 4))
    calibrate(module, [images()])
    other, x = copy.deepcopy(module), images()
    compile_cores(other)
    for network in (module, other):
        torch.manual_seed(0)  # there is a dropout
        network.train()(x.to(memory_format=torch.channels_last)).square().mean().backward()
    assert torch.equal(module.eval()(x), other.eval()(x))
    for (name, one), two in zip(module.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-7), name
