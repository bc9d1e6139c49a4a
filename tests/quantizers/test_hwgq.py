"""Half-wave Gaussian quantization: its constants, its integers and its gradients."""

from __future__ import annotations

import pytest
import torch

from qkd.quantizers.hwgq import ACTIVATION_STEPS, WEIGHT_STEPS, HalfWave, MidRise
from tests.support.tiny_wirings import weight_layer


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
def test_hwgq_weights_are_odd_integers_with_an_untouched_gradient(bits: int) -> None:
    layer = weight_layer("hwgq", bits)
    core = layer.weight_quant.tensor_quant
    assert isinstance(core, MidRise)
    integers = layer.quant_weight().int(float_datatype=True)
    assert (integers.abs() % 2 == 1).all()
    assert torch.equal(integers.sign(), layer.weight.sign())
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
