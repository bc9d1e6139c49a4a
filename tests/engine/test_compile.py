"""A whole stage compiled by torch's own compiler, as a long run would: one graph, made once, that computes what eager does."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from qkd.distill.stages import Staged, cut
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, compile_cores, insert, quantizers
from qkd.quantizers.inspection import activations

ULP = torch.finfo(torch.float32).eps
SUMMED = 64
"""Fused loops add in another order. Batch norm's sums and those of a step's gradient have some thousands of terms, whose
errors of half an ulp each grow with the root of their number: about 32 ulp, and twice that is allowed."""


def staged(family: Any) -> tuple[Staged, Tensor]:
    torch.manual_seed(0)
    more: dict[str, Any] = {"delta": "hessian"} if family == "ewgs" else {}
    network = insert(build("resnet8", classes=4, options={"width": 8}), Scheme(4, 4, family=family, **more))
    x = torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    calibrate(network, [x])
    return cut(network.train(), ["layer1", "layer2"]), x


def watch(network: Staged) -> dict[str, float]:
    """For the learned step of each quantizer of activations how large the terms of its gradient are, summed without signs.

    They cancel to a thousandth and less, so that an error is measured by them and not by what is left.
    """
    sizes: dict[str, float] = {}

    def look(layer: Any, x: Tensor, y: Tensor) -> None:
        core = layer.act_quant.core
        factor = core.gradient_scale(x) / core.scale().item()
        own = next(key for key, parameter in network.named_parameters() if parameter is core.step)
        y.register_hook(lambda g: sizes.update({own: 2 * factor * float((g * y.detach()).abs().sum())}))

    for _, layer in activations(network.network):
        layer.register_forward_hook(lambda layer, given, y: look(layer, given[0], y))
    return sizes


def step(network: Staged, stage: Any, flow: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step. -> the stage's output, gradients by name"""
    network.zero_grad()
    given = [tensor.detach().clone().requires_grad_() for tensor in flow]
    result = stage(*given)[0]
    result.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.05)
    return result.detach(), {**gradients, "input": given[0].grad}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # said by the compiler about its own look
@pytest.mark.parametrize(("family", "cores"), [("lsq", False), ("lsq", True), ("ewgs", False)])
def test_a_stage_compiled_to_machine_code_is_the_stage(family: str, cores: bool) -> None:
    """``cores``: it was given kernels of its own before, and once ran with them; the compiler sees layers all the same."""
    torch._dynamo.reset()
    counters.clear()
    compiled, x = staged(family)
    eager = copy.deepcopy(compiled)
    if cores:
        kept = copy.deepcopy(compiled.state_dict())
        compile_cores(compiled)
        compiled(x)
        compiled.load_state_dict(kept)
    flow = tuple(tensor.detach() for tensor in eager.advance("layer1", (x,)))
    sizes = watch(eager)
    fast = torch.compile(compiled.stage("layer2"), backend="inductor", dynamic=False, fullgraph=True)
    slow = eager.stage("layer2")
    made_so_far = []
    for number in range(4):
        (y, ours), (expected, theirs) = step(compiled, fast, flow), step(eager, slow, flow)
        made_so_far.append((counters["stats"]["unique_graphs"], counters["inductor"]["fxgraph_cache_miss"]))
        if number == 0:
            top = dict(quantizers(eager.network))["layer2.0.relu2"].scale().item()  # type: ignore[operator]
            _same_levels(y, expected, top)
            _same_gradients(ours, theirs, sizes)
    assert not counters["graph_break"]
    assert not counters["recompiles"]
    assert made_so_far == [made_so_far[0]] * 4
    assert made_so_far[0][0] == 1
    assert not torch.equal(y, flow[0])


def _same_levels(y: Tensor, expected: Tensor, step: float) -> None:
    """Outputs lie on the same levels, but for a number that some ulp carried over a tie."""
    apart = (y - expected).abs()
    assert apart.max() <= 1.01 * step
    assert (apart > SUMMED * ULP * expected.abs().max()).float().mean() <= 0.001


def _same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], sizes: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    assert len(sizes.keys() & theirs.keys()) == 4
    for name, gradient in theirs.items():
        size = sizes.get(name, float(gradient.norm()))
        assert float((ours[name] - gradient).norm()) <= SUMMED * ULP * size, name
