"""FFCL in our reading and FFL: their formulas, the ramp, the virtual teacher, and the fused product."""

from __future__ import annotations

import math

import pytest
import torch

from qkd.distill.losses import correlation_distance, hint_distance
from qkd.distill.schedules import Ramp
from qkd.distill.targets import virtual_logits
from qkd.methods.ffcl import ffcl, ffl
from tests.support.ensembles import learners_of
from tests.support.formulas import STAGES, attention, batch, company, cross_entropy, divergence, double, network, run


def ramp(epoch: float) -> float:
    return math.exp(-5 * (1 - min(epoch / 80, 1)) ** 2)


def test_the_ramp_is_that_of_the_paper() -> None:
    weight = Ramp(1.0, 80 / 300)
    epochs = {0: 0.007, 20: 0.06, 40: 0.287, 60: 0.732, 80: 1.0, 200: 1.0}
    assert {epoch: round(weight(epoch / 300), 3) for epoch in epochs} == epochs
    assert Ramp(2.0, 0.0)(0.0) == 2.0


def test_the_virtual_teacher_is_sure_of_the_true_class() -> None:
    p = virtual_logits(torch.tensor([2, 0]), 5, 0.9).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(2))
    assert p[0, 2].item() == pytest.approx(0.9)
    assert p[1, 1:].tolist() == pytest.approx([0.025] * 4)
    assert torch.isfinite(virtual_logits(torch.tensor([0]), 5, 1.0)).all()


@pytest.mark.parametrize("epoch", [0, 40, 300])
def test_ffl_is_the_published_formula(epoch: int) -> None:
    parts, plan = company(ffl, ["partner"], ramp=80 / 300)
    total, outputs = run(parts, plan, plan.phases[0].steps[0], progress=epoch / 300)
    seen, labels = double(outputs), batch().labels
    one, two, fused = (seen[f"{part}.logits"] for part in ("student", "partner", "fused"))
    expected = sum(cross_entropy(z, labels) for z in (one, two, fused))
    soft = divergence(fused, one, 3.0) + divergence(fused, two, 3.0) + divergence((one + two) / 2, fused, 3.0)
    assert total.item() == pytest.approx((expected + ramp(epoch) * soft).item(), rel=1e-5)


def standardised(maps: torch.Tensor) -> torch.Tensor:
    """Every channel less its mean over batch and positions, divided by its standard deviation."""
    flat = maps.transpose(0, 1).flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return flat.view(maps.shape[1], maps.shape[0], *maps.shape[2:]).transpose(0, 1)


@pytest.mark.parametrize("feature_loss", ["correlation", "hint", "attention"])
def test_ffcl_is_our_formula(feature_loss: str) -> None:
    options = {"response": 0.5, "fused": 0.6, "feature": 0.7, "positive": 0.2, "confidence": 0.9, "ramp": 0.0}
    parts, plan = company(ffcl, ["partner"], feature_loss=feature_loss, **options)
    total, outputs = run(parts, plan, plan.phases[0].steps[0])
    seen, labels = double(outputs), batch().labels
    one, two, fused = (seen[f"{part}.logits"] for part in ("student", "partner", "fused"))
    virtual = torch.full((6, 4), 0.1 / 3, dtype=torch.float64).scatter(1, labels[:, None], 0.9).log()
    expected = sum(cross_entropy(z, labels) for z in (one, two, fused)) + divergence((one + two) / 2, fused, 3.0)
    expected += 0.5 * (divergence(two, one, 3.0) + divergence(one, two, 3.0))
    for part in ("student", "partner"):
        expected += 0.6 * divergence(fused, seen[f"{part}.logits"], 3.0)
        expected += 0.2 * divergence(virtual, seen[f"{part}.logits"], 20.0)
        own, shared = seen[f"{part}.{STAGES[-1]}"], seen["fusion.logits"]
        seen_as = {"correlation": standardised, "hint": torch.clone, "attention": attention}[feature_loss]
        same = seen_as(own), seen_as(shared)
        expected += 0.7 * ((same[0] - same[1]) ** 2).mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_by_default_no_scale_is_drawn_to_that_of_the_fused_map() -> None:
    """A hint pulls a map that is the fused one, but for its scale, towards its length; correlation asks nothing of it."""
    fused = torch.rand(8, 3, 4, 4)
    own = (3 * fused + 1).requires_grad_()
    assert correlation_distance(own, fused).item() < 1e-4 < hint_distance(own, fused).item()
    correlation_distance(own, torch.rand(8, 3, 4, 4)).backward()
    assert own.grad is not None
    inward = [(own.grad * own.detach()).sum((0, 2, 3)), own.grad.sum((0, 2, 3))]
    for along in inward:  # neither to another length nor to another mean
        torch.testing.assert_close(along, torch.zeros(3), atol=1e-5, rtol=0)
    unrelated = correlation_distance(torch.randn(400, 3, 4, 4), torch.randn(400, 3, 4, 4))
    assert unrelated.item() == pytest.approx(2, abs=0.1)
    _, plan = company(ffcl, ["partner"])
    assert "correlation/student.layer3<fusion.logits" in {term.name for term in plan.phases[0].steps[0].terms}


def test_targets_are_constant() -> None:
    """The fused classifier moves by its own two terms alone, whatever the networks learn from it."""
    grads = []
    for fused in (0.0, 5.0):
        parts, plan = company(ffcl, ["partner"], fused=fused, feature=fused, ramp=0.0)
        run(parts, plan, plan.phases[0].steps[0])[0].backward()
        grads.append(parts.heads["fused"].body[-1].weight.grad)
    torch.testing.assert_close(*grads)


def test_each_part_can_be_left_out() -> None:
    _, plan = company(ffcl, ["partner"], response=0.0, fused=0.0, feature=0.0, positive=0.0)
    names = {term.name for term in plan.phases[0].steps[0].terms}
    assert names == {"label/student", "label/partner", "label/fused", "imitate/fused<mean"}


def test_partners_of_another_shape_are_adapted_to_the_fused_map() -> None:
    parts, plan = company(ffcl, {"partner": network(1, width=8)})
    adapters = [head for head in plan.heads if "adapter" in head.about]
    assert [head.about for head in adapters] == ["adapter, 1x1 convolution 32 -> 16"]
    assert adapters[0].name in learners_of(plan)
    assert parts.product(plan) is parts.networks["student"].network


@pytest.mark.parametrize("method", [ffl, ffcl])
def test_the_fused_classifier_can_be_the_product(method: object) -> None:
    parts, plan = company(method, ["partner"], product="fused")  # type: ignore[arg-type]
    parts.eval()
    with torch.no_grad():
        outputs = parts(batch().images, ("student", "partner"))
        torch.testing.assert_close(parts.product(plan)(batch().images), double(outputs)["fused.logits"].float())
    assert [head.name for head in plan.deployed()] == ["fusion", "fused"]
