"""Batch norm and the rounding behind it as one kernel: the numbers of the two, and each for itself wherever it must be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkd.distill.stages import cut
from qkd.quantizers import Scheme, c_kernels, calibrate, compile_cores, disabled, insert, reestimate_batch_norm
from qkd.quantizers.round_to_grid import SMALLEST, round_to_grid
from tests.support.tiny_wirings import Residual, images, with_statistics

needs_compiler = pytest.mark.skipif(c_kernels.library() is None, reason="there is no C compiler")
STEP, LOW, HIGH, FACTOR = 0.25, -4, 3, 0.37


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


def in_one(norm: nn.BatchNorm2d, x: Tensor, g: Tensor, step: Tensor) -> tuple[Tensor, ...]:
    """Output, gradients of x, weight, bias and step, running mean and variance."""
    running = norm.running_mean.clone(), norm.running_var.clone()
    weight, bias = norm.weight.detach(), norm.bias.detach()
    settings = {"momentum": norm.momentum, "eps": norm.eps, "low": LOW, "high": HIGH, "smallest": SMALLEST}
    y, saved = c_kernels.norm_round(x, weight, bias, running, step, **settings)
    found = c_kernels.differentiate_norm_round(g, x, saved, weight, bias, step, LOW, HIGH, FACTOR, SMALLEST)
    return (y, *found, *running)


def in_two(norm: nn.BatchNorm2d, x: Tensor, g: Tensor, step: Tensor) -> tuple[Tensor, ...]:
    """The same by batch norm and then rounding, in double precision; last, how far each number is from a change of code."""
    norm, x, step = copy.deepcopy(norm).double(), x.double().requires_grad_(), step.double().requires_grad_()
    normal = norm(x)
    y, _ = round_to_grid(normal, step, LOW, HIGH, FACTOR)
    y.backward(g.double())
    ratio = (normal / step).detach()
    near = torch.minimum((ratio - ratio.floor() - 0.5).abs(), torch.minimum((ratio - LOW).abs(), (ratio - HIGH).abs()))
    gradients = (x.grad, norm.weight.grad, norm.bias.grad, step.grad)
    return (y.detach(), *gradients, norm.running_mean, norm.running_var, near)


@needs_compiler
@pytest.mark.parametrize("step", [STEP, -STEP])
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 1), (3, 10, 7, 5), (4, 16, 9, 9), (2, 24, 6, 6), (2, 200, 5, 3), (1, 3, 90, 90)]
)
def test_one_kernel_gives_what_batch_norm_and_rounding_give(shape: tuple[int, ...], step: float) -> None:
    norm, x = batch_norm(shape[1]), last(3 + 2 * torch.randn(shape))
    g = last(torch.randn(shape))
    *_, near = in_two(norm, x, g, torch.tensor(step))
    sure = near > 1e-5  # elsewhere the last bit of float32 decides
    assert sure.double().mean() > 0.999
    (expected, *others), (found, *ours) = (way(norm, x, g * sure, torch.tensor(step))[:7] for way in (in_two, in_one))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.double()[sure], expected[sure])
    assert (found.double() - expected).abs().max() <= STEP
    for one, two in zip(ours, others, strict=True):
        assert torch.allclose(one.double(), two, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_of_bfloat16_tensors_only_what_is_written_is_rounded() -> None:
    norm, x, g = batch_norm(24), last(torch.randn(4, 24, 9, 9)).bfloat16(), last(torch.randn(4, 24, 9, 9)).bfloat16()
    y, to_x, *ours = in_one(norm, x, g, torch.tensor(STEP))
    expected, gradient, *others = in_one(norm, x.float(), g.float(), torch.tensor(STEP))
    assert torch.equal(y, expected.bfloat16()) and torch.equal(to_x, gradient.bfloat16())
    assert all(torch.equal(one, two) for one, two in zip(ours, others, strict=True))


@needs_compiler
def test_a_large_mean_costs_no_digits() -> None:
    norm, x = batch_norm(8), last(1000 + torch.randn(16, 8, 20, 20))
    y, *_, mean, variance = in_one(norm, x, torch.ones_like(x), torch.tensor(STEP))
    assert torch.allclose(mean.double(), 0.1 * x.double().mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(variance.double(), 0.9 + 0.1 * x.double().var((0, 2, 3)), rtol=1e-5)
    assert y.isfinite().all()


@needs_compiler
def test_threads_change_no_bit() -> None:
    norm, x, g = batch_norm(24), last(torch.randn(8, 24, 40, 40)), last(torch.randn(8, 24, 40, 40))
    alone = in_one(norm, x, g, torch.tensor(STEP))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = in_one(norm, x, g, torch.tensor(STEP))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))


@needs_compiler
def test_numbers_that_are_none_stay_so() -> None:
    x = last(torch.randn(2, 3, 4, 4))
    x[0, 1, 2, 2] = float("nan")
    y, to_x, *_ = in_one(batch_norm(3), x, torch.ones_like(x), torch.tensor(STEP))
    assert y[:, 1].isnan().all() and to_x[:, 1].isnan().all()
    assert y[:, [0, 2]].isfinite().all()
    x, broken = last(torch.randn(2, 3, 4, 4)), torch.tensor(float("nan"))
    y, to_x, *_, to_step, _, _ = in_one(batch_norm(3), x, torch.ones_like(x), broken)
    assert y.isnan().all() and to_step.isnan()


@pytest.fixture
def network() -> Any:
    """A residual network, calibrated, channels last, in training."""
    module = insert(with_statistics(Residual), Scheme(4, 4))
    calibrate(module, [images()])
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.1
    return module.to(memory_format=torch.channels_last).train()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by one whenever a batch norm and a rounding were one."""
    made: list[int] = []
    kernel = c_kernels.norm_round

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return kernel(*arguments, **options)

    monkeypatch.setattr(c_kernels, "norm_round", counted)
    return made


def fused(network: nn.Module) -> list[Any]:
    """The batch norms that are computed together with the quantizer behind them."""
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and getattr(m, "fused", None) is not None]


def step_of(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and every gradient and buffer behind one step."""
    module.zero_grad()
    output = module(x)
    output.square().sum().backward()
    kept = {name: p.grad for name, p in module.named_parameters()} | dict(module.named_buffers())
    return output.detach(), {name: tensor.clone() for name, tensor in kept.items() if tensor is not None}


@needs_compiler
def test_a_network_learns_the_same_with_joined_norms(network: Any, calls: list[int]) -> None:
    x, other = last(images()), copy.deepcopy(network)
    compile_cores(network)
    joined, found = step_of(network, x)
    assert len(calls) == len(fused(network)) > 1
    plain, expected = step_of(other, x)
    assert torch.allclose(joined, plain, rtol=1e-4, atol=1e-4)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].float(), tensor.float(), rtol=1e-3, atol=1e-3), name


@needs_compiler
def test_under_autocast_everything_stays_bfloat16_and_joined(network: Any, calls: list[int]) -> None:
    x = last(images())
    compile_cores(network)
    expected, _ = step_of(network, x)
    del calls[:]
    with torch.autocast("cpu", torch.bfloat16):
        found, gradients = step_of(network, x)
    assert len(calls) == len(fused(network))
    assert torch.allclose(found.float(), expected, atol=0.05 * float(expected.abs().max()))
    assert all(tensor.isfinite().all() for tensor in gradients.values())


@needs_compiler
def test_each_for_itself_where_it_must_be(network: Any, calls: list[int]) -> None:
    x = last(images())
    compile_cores(network)
    with torch.no_grad():
        network.eval()(x)
        reestimate_batch_norm(network, [x])
        calibrate(network, [x])
        with disabled(network):
            network.train()(x)
    norm = fused(network)[0]
    norm(torch.randn(4, norm.num_features, 6, 6))  # not channels last
    norm(last(torch.randn(4, norm.num_features, 6, 6)).half())
    assert not calls
    handles = [norm.register_forward_hook(lambda *_: None) for norm in fused(network)]
    network(x)
    assert not calls
    for handle in handles:
        handle.remove()
    network(x)
    assert calls
    compile_cores(network, False)
    assert not fused(network)


@needs_compiler
def test_a_quantizer_rounds_whatever_was_not_made_for_it(network: Any) -> None:
    compile_cores(network)
    norm = fused(network)[0]
    reader = norm.fused.reader
    y = norm(last(torch.randn(4, norm.num_features, 6, 6)))
    assert reader(y) is y
    other = y + 0.01
    assert torch.equal(reader(other), reader.act_quant.core.value(other))


@needs_compiler
def test_copies_are_pairs_of_their_own(network: Any, calls: list[int]) -> None:
    compile_cores(network)
    network(last(images()))
    twin = copy.deepcopy(network)
    readers = {m for m in twin.modules()}
    assert all(norm.fused.reader in readers for norm in fused(twin))
    assert twin.state_dict().keys() == network.state_dict().keys()
    del calls[:]
    twin(last(images()))
    assert calls


@needs_compiler
def test_a_batch_norm_that_ends_a_stage_is_heard_as_it_is(network: Any, calls: list[int]) -> None:
    joined = cut(copy.deepcopy(network), ["layer1.bn1"])
    apart = cut(network, ["layer1.bn1"])
    compile_cores(joined)
    heard, expected = (staged.advance("layer1.bn1", (last(images()),))[0] for staged in (joined, apart))
    assert heard.min() < 0 and torch.equal(heard, expected)
    joined(last(images()))
    assert calls  # the others are still one


@needs_compiler
def test_kernels_leave_alone_what_is_not_all_on_the_cpu(network: Any, calls: list[int]) -> None:
    compile_cores(network)
    with pytest.raises(RuntimeError, match="device"):
        network.to("meta")(last(images()))
    assert not calls
