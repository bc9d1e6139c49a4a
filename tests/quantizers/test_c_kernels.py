"""The kernels in C give what tensor operations give, to the bit but for the order of a sum."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import qkd.quantizers.round_to_grid as rounding
from qkd.quantizers import Scheme, c_kernels, calibrate, compile_cores, insert
from qkd.quantizers.round_to_grid import SMALLEST, positive_scale
from tests.support.tiny_wirings import Residual, images, with_statistics

needs_compiler = pytest.mark.skipif(c_kernels.library() is None, reason="there is no C compiler")


@pytest.fixture
def forgetting() -> Iterator[None]:
    c_kernels.library.cache_clear()
    yield
    c_kernels.library.cache_clear()


def both_ways(x: Tensor, step: Tensor, low: float, high: float, g: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Output, gradient of x, gradient of the step: natively, and by tensor operations."""
    results = []
    for compiled in (True, False):
        values, steps = x.detach().requires_grad_(), step.detach().requires_grad_()
        y, _ = rounding.round_to_grid(values, steps, low, high, 0.37, compiled=compiled)
        y.backward(g)
        results.append((y.detach(), values.grad, steps.grad))
    return results


@needs_compiler
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 31, 33), (9, 16, 3, 3), (1, 1)])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-4, 3), (-1.5, 1.5)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_kernels_equal_tensor_operations(
    shape: tuple[int, ...], rows: bool, low: float, high: float, kind: torch.dtype
) -> None:
    x, g = 2 * torch.randn(shape).to(kind), torch.randn(shape).to(kind)
    step = 0.1 + torch.rand(len(x), *[1] * (len(shape) - 1)) if rows else torch.tensor(-0.3)
    assert c_kernels.can_round(x, step, positive_scale(step))
    (y, to_x, to_step), (y2, to_x2, to_step2) = both_ways(x, step, low, high, g)
    assert y.dtype is to_x.dtype is kind
    assert torch.equal(y, y2)
    assert torch.equal(to_x, to_x2)
    assert torch.allclose(to_step, to_step2, rtol=1e-4, atol=1e-5)
    assert to_step.shape == step.shape


@needs_compiler
def test_threads_and_layout_change_no_bit() -> None:
    x, g, step = torch.randn(4, 16, 40, 40), torch.randn(4, 16, 40, 40), torch.tensor(0.2)
    alone = both_ways(x, step, 0, 15, g)[0]
    last = both_ways(x.to(memory_format=torch.channels_last), step, 0, 15, g)[0]
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(one, two) for one, two in zip(alone[:2], last[:2], strict=True))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = both_ways(x, step, 0, 15, g)[0]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))


@needs_compiler
def test_the_levels_of_a_bfloat16_tensor_are_the_nearest_bfloat16_numbers() -> None:
    x, step = torch.linspace(-80, 80, 4001).bfloat16(), torch.tensor(0.2731)
    y = c_kernels.round_rows(x, step, -128, 127)
    assert torch.equal(y, (c_kernels.round_rows(x.float(), step, -128, 127)).bfloat16())


@needs_compiler
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_numbers_that_are_none_stay_so_and_a_step_of_zero_divides_nothing_by_zero(kind: torch.dtype) -> None:
    x = torch.tensor([float("nan"), 1.0, float("inf"), -float("inf")], dtype=kind)
    y = c_kernels.round_rows(x, torch.tensor(0.5), -2, 1)
    assert y[0].isnan()
    assert y[1:].tolist() == [0.5, 0.5, -1.0]
    step = torch.zeros(())
    _, to_step = c_kernels.differentiate_rows(
        torch.ones(4), torch.ones(4), positive_scale(step), step, 0, 3, 1.0, SMALLEST
    )
    assert to_step.isfinite()


def test_what_kernels_cannot_do_is_left_to_tensor_operations() -> None:
    step = torch.tensor(0.5)
    for x in (torch.randn(5, dtype=torch.float64), torch.randn(5).half(), torch.randn(5, device="meta")):
        assert not c_kernels.can_round(x, step, step)
    per_column = torch.rand(1, 5)
    assert not c_kernels.can_round(torch.randn(3, 5), per_column, per_column)
    elsewhere = torch.tensor(0.1, device="meta")
    assert not c_kernels.can_round(torch.randn(3), elsewhere, elsewhere)


def test_without_a_compiler_training_goes_on(forgetting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert c_kernels.library() is None
    module = insert(with_statistics(Residual), Scheme(4, 4))
    calibrate(module, [images()])
    eager = module.eval()(images())
    compile_cores(module)
    assert torch.equal(module(images()), eager)
    module.train()(images()).sum().backward()


def test_a_compiler_that_fails_is_none(forgetting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_kernels, "COMPILERS", ("false",))
    assert c_kernels.library() is None
