"""Gradient shares: the norms that a pass for each learner gives, from one pass for each term."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkd.distill.plan import networks_needed
from qkd.engine.gradient_shares import gradient_shares
from tests.support.ensembles import batch, company


def test_shares_are_those_of_every_learner_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, plan = company("cmtkd", "four", "eight", feature_gradient="both")
    step, data = plan.phases[0].steps[0], batch()
    active = sorted(networks_needed(plan, step))
    passes, grad = [], torch.autograd.grad

    def counted(*arguments: Any, **more: Any) -> Any:
        passes.append(arguments)
        return grad(*arguments, **more)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    found = gradient_shares(parts, lambda: parts(data.images, active, 0.0), step, data, 0.0)
    assert len(passes) == len(step.terms)
    outputs = parts(data.images, active, 0.0)
    for learner in step.learners:
        own = [p for module in parts.modules_of(learner) for p in module.parameters()]
        norms = {}
        for term in step.terms:
            loss = term(outputs, data) * term.weight_at(0.0)
            gradients = [g for g in grad(loss, own, retain_graph=True, allow_unused=True) if g is not None]
            norms[term.name] = (
                float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt()) if gradients else 0.0
            )
        for name, norm in norms.items():
            assert found.get(f"gradient/{learner}/{name}", 0.0) == pytest.approx(norm / sum(norms.values()), abs=2e-4)
