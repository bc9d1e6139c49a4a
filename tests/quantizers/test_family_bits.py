"""Every family at every number of bits: gradients against finite differences, state, and files equal to their emulator.

What quantizers round to is in test_families. Rounding itself has no derivative: what is differentiated here, numerically and in
float64, is each paper's formula with what rounding adds held fixed.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qkd.export import emit, emulate, predict
from qkd.quantizers import FAMILIES, Scheme, calibrate, insert
from qkd.quantizers.dorefa import RangeQuant, TanhQuant
from qkd.quantizers.ewgs import DELTA, ElementwiseScaling, EwgsWeight
from qkd.quantizers.fake_quant import FakeQuant
from qkd.quantizers.hwgq import HalfWave, MidRise
from qkd.quantizers.learned_scale import LearnedScale
from qkd.quantizers.lsq import LsqQuant
from qkd.quantizers.lsq_plus import ShiftedQuant
from qkd.quantizers.pact import ClippedQuant
from qkd.quantizers.pot import PowerOfTwo
from qkd.quantizers.ternary import BinaryQuant, TernaryQuant
from tests.support.families import BITS, WEIGHTS, weight_bits, weights_have
from tests.support.tiny_wirings import activation_layer, images, weight_layer, with_statistics

Formula = Callable[..., Tensor]
"""Of x and the core's parameters, in their order, to y; smooth but for its kinks."""
KINDS = [
    *((family, bits, kind) for family, bits in WEIGHTS for kind in ("per channel", "per layer")),
    *((family, bits, "unsigned") for family in FAMILIES for bits in BITS),
    *((family, bits, "signed") for family in FAMILIES for bits in BITS if bits > 1),
]
SMALL = 1e-8
"""Far enough for float64, and so near that hardly any number passes a kink of its formula on the way."""


def layer_of(family: str, bits: int, kind: str) -> nn.Module:
    torch.manual_seed(bits)
    if kind.startswith("per"):
        return weight_layer(family, bits, per_channel=kind == "per channel")
    return activation_layer(family, bits, signed=kind == "signed")


def core_of(layer: nn.Module) -> FakeQuant:
    return next(part for part in layer.modules() if isinstance(part, FakeQuant)).double()


def numbers(layer: nn.Module, core: FakeQuant) -> Tensor:
    """What the core rounds: its weights, or a tensor that reaches past both ends of its grid."""
    if hasattr(layer, "weight"):
        wide = 2.5 if core.bits < 8 else 1.0
        return layer.weight.detach().double() * wide
    ends = torch.cat([core.scale().reshape(1) * core.low, core.scale().reshape(1) * core.high]).detach()
    low, high = (float(end) for end in ends - core.zero().detach() * core.scale().detach())
    return torch.empty(6, 40, dtype=torch.float64).uniform_(low - (high - low) / 3, high + (high - low) / 3)


def kept(value: Tensor, smooth: Tensor) -> Tensor:
    """What rounding adds: held fixed."""
    return (value - smooth).detach()


def lsq(core: Any, x: Tensor) -> Formula:
    used = core.scale().detach() * (2 if core.odd else 1)
    ratio = used / core.step.detach()  # 1 or -1, and for powers of two what the exponent's rounding adds
    low, high, shift = (part / 2 for part in (core.low, core.high, 1)) if core.odd else (core.low, core.high, 0)
    clamped = (x / used).clamp(low, high)
    added = kept(((x / used - shift).round() + shift).clamp(low, high), clamped)
    return lambda v, step: ((v / (step * ratio)).clamp(low, high) + added) * (step * ratio)


def shifted(core: Any, x: Tensor) -> Formula:
    count, step = core.high - core.low, core.scale().detach()
    used = (core.low - core.zero().detach()) * step
    integers = ((x - used) / step).clamp(0, count)
    added, moved = kept(integers.round(), integers), (used - core.offset).detach()
    return lambda v, s, beta: (((v - beta - moved) / s).clamp(0, count) + added) * s + beta + moved


def clipped(core: Any, x: Tensor) -> Formula:
    added = kept(core(x)[0], x.clamp(0, float(core.alpha.detach())))
    return lambda v, alpha: torch.minimum(v.clamp_min(0), alpha) + added


def ranged(core: Any, x: Tensor) -> Formula:
    top = float(core.scale() * core.high)
    return lambda v: v.clamp(0, top) + kept(core(x)[0], x.clamp(0, top))


def through(core: Any, x: Tensor) -> Formula:
    return lambda v: v + kept(core(x)[0], x)


def tanh(core: Any, x: Tensor) -> Formula:
    if core.bits == 1:
        return through(core, x)
    axes = tuple(range(1, x.ndim)) if core.shape else tuple(range(x.ndim))

    def smooth(v: Tensor) -> Tensor:
        return core.gain * v.tanh() / v.tanh().abs().amax(axes, keepdim=bool(core.shape))

    added = kept(core(x)[0], smooth(x))
    return lambda v: smooth(v) + added


FORMULAS: dict[type, Callable[[Any, Tensor], Formula]] = {
    LsqQuant: lsq,
    PowerOfTwo: lsq,
    ShiftedQuant: shifted,
    ClippedQuant: clipped,
    RangeQuant: ranged,
    HalfWave: ranged,
    TanhQuant: tanh,
    MidRise: through,
    TernaryQuant: through,
}


def found(core: FakeQuant, x: Tensor, g: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaf = x.clone().requires_grad_()
    core.zero_grad()
    core(leaf)[0].backward(g)
    assert leaf.grad is not None
    return leaf.grad, [parameter.grad for parameter in core.parameters() if parameter.grad is not None]


def scaling(core: FakeQuant, x: Tensor) -> float:
    """What LSQ multiplies gradients of its own parameters with."""
    if isinstance(core, ShiftedQuant):
        return 1 / math.sqrt(x.numel() // len(x) * (core.high - core.low))
    return core.gradient_scale(x) if isinstance(core, LearnedScale) else 1.0


@pytest.mark.parametrize(("family", "bits", "kind"), KINDS)
def test_gradients_are_those_of_the_formula(family: str, bits: int, kind: str) -> None:
    layer = layer_of(family, bits, kind)
    core = core_of(layer)
    x = numbers(layer, core)
    g, towards = torch.randn_like(x), torch.randn_like(x)
    passed, learned = found(core, x, g)
    if isinstance(core, ElementwiseScaling):
        return ewgs(core, x, g, passed, learned[0])
    if isinstance(core, BinaryQuant):
        alpha = x.abs().mean((1, 2, 3) if core.shape else (0, 1, 2, 3), keepdim=True)
        expected = g * (alpha.numel() / x.numel() + alpha * (x.abs() <= 1))
        return torch.testing.assert_close(passed, expected)
    formula = FORMULAS[type(core)](core, x)
    parameters = [parameter.detach() for parameter in core.parameters()]
    torch.testing.assert_close(formula(x, *parameters), core(x)[0].detach(), rtol=1e-9, atol=1e-9)

    def slope(moved: Callable[[float], Tensor]) -> float:
        return float((g * (moved(SMALL) - moved(-SMALL))).sum() / (2 * SMALL))

    along = slope(lambda d: formula(x + d * towards, *parameters))
    assert float((passed * towards).sum()) == pytest.approx(along, rel=1e-4, abs=1e-4)
    assert len(learned) == len(parameters)
    for index, (parameter, gradient) in enumerate(zip(parameters, learned, strict=True)):
        side = torch.randn_like(parameter)
        along = slope(
            lambda d, i=index, s=side: formula(x, *(p + d * s if i == j else p for j, p in enumerate(parameters)))
        )
        assert float((gradient * side).sum()) == pytest.approx(along * scaling(core, x), rel=1e-4, abs=1e-4)
    return None


def ewgs(core: ElementwiseScaling, x: Tensor, g: Tensor, passed: Tensor, learned: Tensor) -> None:
    """The paper's factor on the gradient is no derivative of anything: written out."""
    step, y = core.scale().detach(), core(x)[0].detach()
    inside = (x > core.low * step) & (x < core.high * step)
    shares = (x - y) / ((core.high - core.low) * step)
    torch.testing.assert_close(passed, g * inside * (1 + DELTA * g.sign() * shares))
    to_step = (g * y / step - passed * x / step).sum_to_size(step.shape) * core.gradient_scale(x)
    torch.testing.assert_close(learned, to_step * core.step.detach().sign())
    assert isinstance(core, EwgsWeight) is core.odd


@pytest.mark.parametrize(("family", "bits", "kind"), KINDS)
def test_copies_and_files_of_state_are_the_same_quantizer(family: str, bits: int, kind: str, tmp_path: Path) -> None:
    layer, other = layer_of(family, bits, kind), layer_of(family, bits, kind)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.3)
    save_file(
        {name: tensor.contiguous() for name, tensor in layer.state_dict().items()}, tmp_path / "state.safetensors"
    )
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(layer(x), other(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    fresh = layer_of(family, bits, kind)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), layer(x))


class Steps(nn.Module):
    """A layer for every number of bits: first those that read a ReLU, then those that read both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._layer(3)
        self.after_relu = nn.ModuleList(self._layer(4) for _ in BITS)
        self.after_norm = nn.ModuleList(self._layer(4) for _ in list(BITS)[1:])
        self.relu, self.last = nn.ReLU(), nn.Linear(4, 5)

    @staticmethod
    def _layer(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, 4, 3, 2 if inputs == 3 else 1, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.after_relu:
            x = layer(self.relu(x))
        for layer in self.after_norm:
            x = layer(x)
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_file_of_all_bits_equals_its_emulator(family: str, per_channel: bool) -> None:
    least = min(bits for bits in BITS if weights_have(family, bits) or bits > 1)
    overrides = {f"after_relu.{bits - 1}.0": f"w{max(bits, least)}a{bits}" for bits in BITS}
    overrides |= {f"after_norm.{bits - 2}.0": f"w{bits}a{bits}" for bits in BITS if bits > 1}
    scheme = Scheme(weight_bits(family, 4), 4, family=family, per_channel=per_channel, overrides=overrides)
    module = insert(with_statistics(Steps), scheme)
    calibrate(module, [images()])
    module.train()(images()).square().mean().backward()
    emitted = emit(module.eval(), (3, 16, 16))
    assert not emitted.float_layers
    trained = {
        name: layer.weight_quant.tensor_quant.bits for name, layer in module.named_modules() if name in overrides
    }
    assert set(trained.values()) == set(range(least, 9))
    assert weights_have(family, weight_bits(family, 4))
    x = images().numpy().astype(np.float32)
    assert np.array_equal(predict(emitted.model, x), emulate(emitted.model, x))
