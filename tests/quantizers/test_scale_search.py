"""The calibration methods: positive scales, and the best one where that is the claim."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qkd.quantizers.scale_search import METHODS, search_scales


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signed", [False, True])
def test_calibration_methods_give_positive_scales(method: str, signed: bool) -> None:
    values = torch.randn(1, 5000) * torch.tensor([[1.0], [1e-4], [0.0], [1e4]])
    values = values if signed else values.relu()
    found = search_scales(values, -8 if signed else 0, 7 if signed else 15, method)
    assert (found > 0).all()
    assert found[2] == found[[0, 1, 3]].median()
    assert torch.allclose(found[1] * 1e4, found[0], rtol=1e-3)
    assert search_scales(torch.zeros(2, 5), 0, 15, method).tolist() == pytest.approx([1 / 15] * 2)


@pytest.mark.parametrize("count", [500, 20_000])
def test_mse_finds_the_best_scale(count: int) -> None:
    values = torch.randn(1, count)

    def error(scale: Tensor) -> float:
        return ((values / scale).round().clamp(-7, 7) * scale - values).square().mean().item()

    found = search_scales(values, -7, 7, "mse")
    best = min(error(scale) for scale in torch.linspace(0.05, 1, 400))
    assert error(found) <= 1.02 * best
