"""Bit-exact networks: PyTorch's fake-quantized logits are onnxruntime's, to the last bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qkd.assembly.export_preview import require_exact_layers
from qkd.errors import SchemeError
from qkd.export import emit, emulate, predict
from qkd.quantizers import Scheme, calibrate, disabled, insert
from qkd.quantizers.exact import round_bias
from tests.support.refusals import Refused
from tests.support.tiny_products import Head, Residual, block, images, logits, with_trained_norms

SHAPE_16 = (3, 16, 16)
"""Of a size whose pools average 2^n pixels: a third or a seventh is rounded in float."""


def exact(bits: str, network: nn.Module | None = None, **options: Any) -> nn.Module:
    scheme = Scheme.parse(bits, family="pot", exact=True, calibration="minmax", **options)
    quantized = insert(with_trained_norms(network or Residual()), scheme)
    calibrate(quantized, [torch.from_numpy(images(16, SHAPE_16, seed=2))])
    return quantized.eval()


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w2a2"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_logit_is_the_same_in_pytorch_and_onnxruntime(bits: str, per_channel: bool) -> None:
    trained, given = exact(bits, per_channel=per_channel), images(64, SHAPE_16)
    expected = logits(trained, given)
    for storage in ("int8", "packed"):
        model = emit(trained, SHAPE_16, storage=storage).model
        assert np.array_equal(predict(model, given), expected) and np.array_equal(emulate(model, given), expected)
    assert len(np.unique(expected)) > 50


@pytest.mark.parametrize("chosen", ["narrow", "full"])
def test_so_it_is_on_the_other_grids_of_two_bits(chosen: str) -> None:
    trained, given = exact("w2a4", weight_levels=chosen), images(32, SHAPE_16)
    model = emit(trained, SHAPE_16, storage="packed").model
    assert np.array_equal(predict(model, given), logits(trained, given))


def test_also_after_training_without_the_batch_norms() -> None:
    network = exact("w2a2").train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    before = network.get_submodule("conv").bias.detach().clone()
    for seed in range(4):
        given = torch.from_numpy(images(16, SHAPE_16, seed=seed))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(given), torch.arange(16) % 5).backward()
        optimizer.step()
    assert not torch.equal(network.get_submodule("conv").bias, before)
    again = copy.deepcopy(network).eval()
    expected = logits(network.eval(), images(32, SHAPE_16))
    assert np.array_equal(predict(emit(network, SHAPE_16).model, images(32, SHAPE_16)), expected)
    assert np.array_equal(logits(again, images(32, SHAPE_16)), expected)


def test_without_it_they_differ() -> None:
    scheme = Scheme.parse("w4a4", family="pot", calibration="minmax")
    quantized = insert(with_trained_norms(Residual()), scheme)
    calibrate(quantized, [torch.from_numpy(images(16, SHAPE_16, seed=2))])
    given = images(16, SHAPE_16)
    assert not np.array_equal(logits(quantized.eval(), given), predict(emit(quantized, SHAPE_16).model, given))


def test_folding_changes_no_function() -> None:
    network = with_trained_norms(Residual())
    folded = insert(network, Scheme.parse("w4a4", family="pot", exact=True))
    given = torch.from_numpy(images(4))
    with torch.no_grad(), disabled(folded):
        assert torch.allclose(folded.eval()(given), network(given), atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_a_bias_is_whole_units_and_still_learns() -> None:
    bias = torch.tensor([0.3, -1.7], requires_grad=True)
    scales = torch.tensor([0.5, 0.25]).reshape(2, 1, 1, 1)
    for largest, raised in ((127, 1), (7, 8), (3, 16), (2, 16), (1, 32)):
        found = round_bias(bias, torch.tensor(0.125), scales, largest)
        units = found.detach() / (0.125 * scales.flatten() / raised)
        assert torch.equal(units, units.round()) and (found - bias).abs().max() <= 0.5 * 0.125 * 0.5 / raised
        (gradient,) = torch.autograd.grad(found.sum(), bias)
        assert torch.equal(gradient, torch.ones(2))


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body, self.head = nn.BatchNorm2d(3), block(3, 4), Head(4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(self.norm(inputs)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.conv, self.head = block(3, 4), nn.Conv2d(4, 4, 1), Head(4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.conv(torch.relu(self.conv(self.body(inputs)))))


def test_pools_that_would_round_are_named_before_training(refused: Refused) -> None:
    trained = exact("w4a4")
    require_exact_layers(trained, SHAPE_16)
    with refused(SchemeError, "scheme.not-exact"):
        require_exact_layers(trained, (3, 12, 12))


def test_what_cannot_be_exact_is_named(refused: Refused) -> None:
    with refused(SchemeError, "scheme.exact-without-powers-of-two"):
        Scheme(4, 4, exact=True)
    with refused(SchemeError, "scheme.not-true-or-false"):
        Scheme(4, 4, exact=1)  # type: ignore[arg-type]
    with refused(SchemeError, "exact.batch-norm-without-layer"):
        exact("w4a4", NormFirst())
    with refused(SchemeError, "exact.input-of-two-scales"):
        exact("w4a4", Twice())
