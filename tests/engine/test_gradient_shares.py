"""The norm of a part's gradient is that of the step that training takes, and looking at it changes nothing."""

from __future__ import annotations

import pytest
import torch

from qkd.assembly.assemble import assemble
from qkd.distill.plan import EXCHANGE, networks_needed
from qkd.distill.terms import weighted_sum
from qkd.engine.gradient_shares import gradient_shares
from qkd.quantizers import calibrate
from qkd.tasks.batch import Batch
from qkd.tasks.spec import DataSpec
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
