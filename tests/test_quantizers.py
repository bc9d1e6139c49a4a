"""The quantizers' contract: values on the grid, the papers' gradients, Brevitas' interface, whatever family and bits."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import qkd.quantizers.rounding as rounding
from qkd.errors import SchemeError
from qkd.quantizers import FAMILIES, Scheme, scheme
from qkd.quantizers.hwgq import ACTIVATION_STEPS, WEIGHT_STEPS, HalfWave, MidRise
from qkd.quantizers.injectors import LsqSigned, LsqUnsigned, LsqWeight
from qkd.quantizers.quiet import qnn
from qkd.quantizers.search import METHODS, steps

SEVERAL = (2, 3, 4, 8)
WEIGHTS = [(family, bits) for family in FAMILIES for bits in range(1, 9) if (family, bits) != ("lsq", 1)]
ACTIVATIONS = [(family, bits, False) for family in FAMILIES for bits in range(1, 9)]
ACTIVATIONS += [(family, bits, True) for family in FAMILIES for bits in range(2, 9)]


def weight_layer(family: str, bits: int, per_channel: bool = True) -> nn.Module:
    layer = qnn.QuantConv2d(
        3, 5, 3, weight_quant=FAMILIES[family].weight, weight_bit_width=bits, weight_per_channel=per_channel
    )
    layer.weight_quant.tensor_quant.fit(layer.weight.flatten(1))
    return layer


def activation_layer(family: str, bits: int, signed: bool) -> nn.Module:
    kind = FAMILIES[family].signed if signed else FAMILIES[family].unsigned
    layer = (qnn.QuantIdentity if signed else qnn.QuantReLU)(act_quant=kind, bit_width=bits)
    layer.act_quant.core.fit(torch.randn(1, 1000) if signed else torch.randn(1, 1000).relu())
    return layer


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


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("family", "bits"), WEIGHTS)
def test_weights_lie_on_their_grid(family: str, bits: int, per_channel: bool) -> None:
    layer = weight_layer(family, bits, per_channel)
    for mode in (True, False):
        layer.train(mode)
        quantized = layer.quant_weight()
        codes = quantized.value / quantized.scale
        assert quantized.scale.shape == ((5, 1, 1, 1) if per_channel else ())
        assert (quantized.scale > 0).all()
        assert torch.allclose(codes, codes.round(), atol=1e-5)
        assert torch.equal(quantized.int(float_datatype=True), codes.round())
        top = 2**bits - 1 if family == "hwgq" and bits < 8 else 2 ** (bits - 1) - 1
        assert codes.round().abs().max() <= top
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
        codes = (y / scale).round()
        assert scale.shape == ()
        assert scale > 0
        assert torch.equal(y, codes * scale)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        assert codes.min() == low
        assert codes.max() == high
        assert (proxy.bit_width(), proxy.zero_point()) == (bits, 0)
        assert (proxy.is_signed, proxy.is_narrow_range) == (signed, False)
        assert torch.equal(layer(y), y)


@pytest.mark.parametrize("bits", SEVERAL)
@pytest.mark.parametrize("kind", ["weight", "weight per tensor", "unsigned", "signed"])
def test_gradient_is_the_papers(kind: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", 7)
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    if kind.startswith("weight"):
        layer = qnn.QuantConv2d(
            2, 3, (2, 3), weight_quant=LsqWeight, weight_bit_width=bits, weight_per_channel=kind == "weight"
        )
        core = layer.double().weight_quant.tensor_quant
        count = x[0].numel() if kind == "weight" else x.numel()
    else:
        core = qnn.QuantIdentity(act_quant=LsqSigned if kind == "signed" else LsqUnsigned, bit_width=bits).act_quant.core
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
    core = qnn.QuantReLU(act_quant=LsqUnsigned, bit_width=2).act_quant.core
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


@pytest.mark.parametrize(("family", "bits"), [("lsq", 2), ("lsq", 8), ("hwgq", 1), ("hwgq", 3)])
def test_traced_by_the_compiler_equals_eager(family: str, bits: int) -> None:
    """Dynamo and the differentiable expression, without the code generator, which takes its time."""
    net = nn.Sequential(weight_layer(family, bits), nn.BatchNorm2d(5), activation_layer(family, bits, signed=False))
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 8, 8)
    y, again = net(x), compiled(x)
    assert torch.equal(y, again)
    for output in (y, again):
        output.square().mean().backward()
    for (name, one), other in zip(net.named_parameters(), twin.parameters(), strict=True):
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


def test_the_state_says_whether_a_quantizer_is_calibrated() -> None:
    fresh = qnn.QuantReLU(act_quant=LsqUnsigned, bit_width=4)
    with pytest.raises(SchemeError, match="never calibrated"):
        fresh(torch.randn(3))
    done = activation_layer("lsq", 4, signed=False)
    assert any(name.endswith("calibrated") for name in done.state_dict())
    fresh.load_state_dict(done.state_dict())
    fresh(torch.randn(3))
    done.load_state_dict(qnn.QuantReLU(act_quant=LsqUnsigned, bit_width=4).state_dict())
    with pytest.raises(SchemeError):
        done(torch.randn(3))


def test_a_disabled_relu_is_still_a_relu() -> None:
    layer, x = activation_layer("lsq", 2, signed=False), torch.randn(10)
    layer.act_quant.disable_quant = True
    assert torch.equal(layer(x), x.relu())
    assert layer.act_quant.scale() is None


def test_hwgq_steps_minimise_the_expected_error_on_a_gaussian() -> None:
    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2)
    density /= density.sum()

    def half_wave(step: float, bits: int) -> float:
        q = (x / step).round().clamp(1, 2**bits - 1) * step  # the paper's: no level at zero for positive inputs
        return ((q - x).square() * density)[x > 0].sum().item()

    def mid_rise(step: float, bits: int) -> float:
        q = ((x / step).floor() + 0.5).clamp(0.5 - 2 ** (bits - 1), 2 ** (bits - 1) - 0.5) * step
        return ((q - x).square() * density).sum().item()

    for table, error in ((ACTIVATION_STEPS, half_wave), (WEIGHT_STEPS, mid_rise)):
        for bits, step in table.items():
            assert error(step, bits) < min(error(step * 0.98, bits), error(step * 1.02, bits))


@pytest.mark.parametrize("bits", range(1, 8))
def test_hwgq_weights_are_odd_codes_with_an_untouched_gradient(bits: int) -> None:
    layer = weight_layer("hwgq", bits)
    core = layer.weight_quant.tensor_quant
    assert isinstance(core, MidRise)
    codes = layer.quant_weight().int(float_datatype=True)
    assert (codes.abs() % 2 == 1).all()
    assert torch.equal(codes.sign(), layer.weight.sign())
    g = torch.randn_like(layer.weight)
    core(layer.weight)[0].backward(g)
    assert torch.equal(layer.weight.grad, g)
    flat = layer.weight.detach().flatten(1)
    expected = flat.abs().mean(1) if bits == 1 else flat.std(1, correction=0) * WEIGHT_STEPS[bits] / 2
    assert torch.allclose(layer.quant_weight().scale.flatten(), expected)


def test_hwgq_activations_measure_sigma_and_pass_the_gradient_of_a_clipped_relu() -> None:
    core = HalfWave(2, "mse")
    core.fit(3 * torch.randn(1, 100_000).relu())
    assert core.sigma.item() == pytest.approx(3, rel=0.02)
    x = torch.linspace(-10, 10, 201, requires_grad=True)
    core(x)[0].sum().backward()
    top = 3 * core.scale().item()
    assert torch.equal(x.grad, ((x > 0) & (x < top)).float())
    assert not list(core.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signed", [False, True])
def test_calibration_methods_give_positive_steps(method: str, signed: bool) -> None:
    values = torch.randn(4, 5000) * torch.tensor([[1.0], [1e-4], [0.0], [1e4]])
    values = values if signed else values.relu()
    found = steps(values, -8 if signed else 0, 7 if signed else 15, method)
    assert (found > 0).all()
    assert found[2] == found[[0, 1, 3]].median()
    assert torch.allclose(found[1] * 1e4, found[0], rtol=0.1)
    assert steps(torch.zeros(2, 5), 0, 15, method).tolist() == pytest.approx([1 / 15] * 2)


@pytest.mark.parametrize("count", [500, 20_000])
def test_mse_finds_the_best_step(count: int) -> None:
    values = torch.randn(1, count)

    def error(step: Tensor) -> float:
        return ((values / step).round().clamp(-7, 7) * step - values).square().mean().item()

    found = steps(values, -7, 7, "mse")
    best = min(error(step) for step in torch.linspace(0.05, 1, 400))
    assert error(found) <= 1.02 * best


def test_schemes_read_what_they_print() -> None:
    for weights in range(2, 9):
        for activations in range(1, 9):
            made = Scheme(weights, activations)
            assert Scheme.parse(str(made)) == made
    assert str(Scheme.parse("W4A8", family="hwgq")) == "w4a8"
    assert scheme(weights=4, activations=8) == Scheme.parse("w4a8")
    assert Scheme(1, 2, family="hwgq").weights == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Scheme.parse("w4b8"), "did you mean 'w4a8'"),
        (lambda: Scheme.parse("w9a8"), "1 to 8 bits"),
        (lambda: Scheme(0, 8), "weights: 0"),
        (lambda: Scheme(4, 8, first=9), "first: 9"),
        (lambda: Scheme(4, True), "activations: True"),
        (lambda: Scheme(1, 2), "1-bit weights"),
        (lambda: Scheme(4, 8, family="hwqg"), "did you mean 'hwgq'"),
        (lambda: Scheme(4, 8, calibration="mes"), "did you mean 'mse'"),
        (lambda: Scheme(4, 8, overrides={"fc": "w1a8"}), "overrides: fc"),
        (lambda: Scheme(4, 8, overrides={"fc": "eight"}), "'eight'"),
    ],
)
def test_wrong_schemes_are_refused(wrong: object, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        wrong()  # type: ignore[operator]
