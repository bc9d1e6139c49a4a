"""Importance: its formulas against loops, and the sum's gradient against autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qkd.distill.exchange import Fuse
from qkd.distill.importance import Granularity, attentive_weights, importance_parameter, weighted_sum, weights_from
from qkd.distill.taps import SHARED, Tap


def maps(count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 3, 4, generator=generator, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels_last"])
def test_the_sum_and_its_gradients_are_those_of_plain_operations(layout: torch.memory_format) -> None:
    tensors = [x.to(memory_format=layout).requires_grad_() for x in maps()]
    weights = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    found = weighted_sum(tensors, weights)
    plain = tensors[0] * weights[0] + tensors[1] * weights[1] + tensors[2] * weights[2]
    assert torch.equal(found, plain)
    push = maps(1)[0].square().to(memory_format=layout)
    ours, theirs = (torch.autograd.grad(total, [weights, *tensors], push) for total in (found, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_sum_can_be_differentiated_twice() -> None:
    inputs = [torch.rand(3, dtype=torch.float64), *(x[:, :2, :1, :2] for x in maps(dtype=torch.float64))]
    leaves = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda w, *t: weighted_sum(t, w), leaves)


def test_the_weights_of_a_sample_are_dot_products_with_the_mean_member() -> None:
    tensors, matrix = maps(), torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    found = attentive_weights(tensors, matrix)
    for sample in range(2):
        pooled = [[float(t[sample, c].sum()) / 12 for c in range(5)] for t in tensors]
        query = [sum(h[c] for h in pooled) / 3 for c in range(5)]
        scores = [
            sum(query[a] * float(matrix[a, b]) * h[b] for a in range(5) for b in range(5)) / math.sqrt(5)
            for h in pooled
        ]
        shares = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        assert found[sample].tolist() == pytest.approx(shares, rel=1e-4)


@pytest.mark.parametrize("per", ["layer", "channel", "sample"])
def test_weights_begin_uniform_sum_to_one_and_weigh_what_they_are_of(per: Granularity) -> None:
    tensors, parameter = maps(), importance_parameter(per, 3, 5)
    torch.testing.assert_close(weighted_sum(tensors, weights_from(parameter, per, tensors), per), sum(tensors) / 3)
    with torch.no_grad():
        parameter.normal_(generator=torch.Generator().manual_seed(2))
    weights = weights_from(parameter, per, tensors)
    assert weights.shape == {"layer": (3,), "channel": (3, 5), "sample": (2, 3)}[per]
    torch.testing.assert_close(
        weights.sum(1 if per == "sample" else 0), torch.ones(weights.sum(1 if per == "sample" else 0).shape)
    )
    found = weighted_sum(tensors, weights, per)
    for b in range(2):
        for c in range(5):
            own = [
                weights[i] if per == "layer" else weights[i, c] if per == "channel" else weights[b, i] for i in range(3)
            ]
            torch.testing.assert_close(found[b, c], sum(w * t[b, c] for w, t in zip(own, tensors, strict=True)))


@pytest.mark.parametrize("per", ["channel", "sample"])
def test_fused_logits_and_metrics_have_the_granularity_too(per: Granularity) -> None:
    shapes = {Tap(m, s): shape for m in "abc" for s, shape in (("s", (5, 3, 4)), ("logits", (4,)))}
    fuse = Fuse(["a", "b", "c"], ["s"], per=per, weigh_logits=True, shapes=shapes)
    with torch.no_grad():
        for parameter in fuse.importance.values():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    flow = dict(zip("abc", maps(), strict=True))
    shared = fuse("s", flow, 0.0, {})[SHARED]
    torch.testing.assert_close(shared, weighted_sum(list(flow.values()), fuse.weights("s", list(flow.values())), per))
    logits = fuse("logits", {name: x.flatten(2).mean(2)[:, :4] for name, x in flow.items()}, 0.0, {})
    assert list(logits) == [SHARED] and logits[SHARED].shape == (2, 4)
    for stage in ("s", "logits"):
        assert sum(v for k, v in fuse.metrics(0.0).items() if f"/{stage}/" in k) == pytest.approx(1.0)
    weights = fuse.weights("s", list(flow.values()))
    mean = weights.mean(1) if per == "channel" else weights.mean(0)
    assert [fuse.metrics(0.0)[f"importance/s/{m}"] for m in "abc"] == pytest.approx(mean.tolist())
