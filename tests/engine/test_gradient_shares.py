"""The norm of a part's gradient is that of the step that training takes, and looking at it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkd.assembly.assemble import assemble
from qkd.distill.plan import EXCHANGE, networks_needed
from qkd.distill.terms import weighted_sum
from qkd.engine.gradient_shares import gradient_shares
from qkd.quantizers import calibrate
from qkd.tasks.batch import Batch
from qkd.tasks.spec import DataSpec
from tests.support.ensembles import batch as images_of_two
from tests.support.ensembles import company
from tests.support.tiny_runs import recipe_in


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_norms_are_those_of_one_backward_pass(tmp_path, scale: float) -> None:  # type: ignore[no-untyped-def]
    recipe = recipe_in(tmp_path, method={"name": "cmtkd", "alpha": 0.1})
    assembly = assemble(recipe, DataSpec((3, 16, 16), 4))
    ensemble, step = assembly.ensemble, assembly.plan.phases[0].steps[0]
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for network in ensemble.networks.values():
        calibrate(network.network, [images])
    batch, active = Batch(images, torch.arange(8) % 4, torch.arange(8)), sorted(networks_needed(assembly.plan, step))
    state = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}

    found = gradient_shares(ensemble, lambda: ensemble(images, active, 0.5), step, batch, 0.5, scale)
    assert all(torch.equal(tensor, state[name]) for name, tensor in ensemble.state_dict().items())

    outputs = ensemble(images, active, 0.5)
    weighted_sum({term.name: term(outputs, batch) for term in step.terms}, step.terms, 0.5).backward()
    for part in ("student", "four", "eight", EXCHANGE):
        gradients = [p.grad for p in ensemble.part(part).parameters() if p.grad is not None]
        expected = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        assert found[f"gradient_norm/{part}"] == pytest.approx(expected, rel=1e-4), part
    assert found["gradient_norm/four"] < 0.3 * found["gradient_norm/student"]
    shares = [value for name, value in found.items() if name.startswith("gradient/student/")]
    assert sum(shares) == pytest.approx(1.0, abs=1e-3)
    assert "gradient/four/label/student" not in found


def test_shares_are_those_of_every_learner_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, plan = company("cmtkd", "four", "eight", feature_gradient="both")
    step, data = plan.phases[0].steps[0], images_of_two()
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
