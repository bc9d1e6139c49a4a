"""A view of a network has no parameters of its own, learns nothing, and sees those of its owner as they are now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qkd.assembly.assemble import Assembly, assemble
from qkd.distill.plan import networks_needed
from qkd.distill.terms import weighted_sum
from qkd.errors import PlanError
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, insert, quantizers
from qkd.recipe import Recipe
from qkd.report.describe import describe
from qkd.tasks.spec import DataSpec
from tests.support.ensembles import batch
from tests.support.refusals import Refused
from tests.support.tiny_runs import TINY, recipe_in

FACTS = DataSpec((3, 16, 16), 4)
FINER = {"of": "student", "activations": 8}
MEAN = {"of": "student", "average": 0.9}


def assembled(folder: Path, method: str = "kd", *, recipe: Recipe | None = None, **teachers: Any) -> Assembly:
    recipe = recipe or recipe_in(folder, method={"name": method}, teachers=teachers, match=["layer1"])
    assembly = assemble(recipe, FACTS)
    for network in assembly.ensemble.owners.values():
        calibrate(network.network, [batch().images])
    return assembly


def backward(assembly: Assembly) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One step without the optimizer. -> the student's gradients, the logits of every network"""
    [step], ensemble = assembly.plan.phases[0].steps, assembly.ensemble
    ensemble.set_learners(step.learners)
    ensemble.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    outputs = ensemble(batch().images, sorted(networks_needed(assembly.plan, step)))
    weighted_sum({term.name: term(outputs, batch()) for term in step.terms}, step.terms, 0.0).backward()
    student = ensemble.networks["student"]
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    return gradients, {tap.part: tensor for tap, tensor in outputs.items() if tap.stage == "logits"}


def test_a_view_of_bits_is_in_no_state_dict_and_among_no_parameters(tmp_path: Path) -> None:
    with_view = assembled(tmp_path, finer=FINER).ensemble
    alone = assembled(tmp_path, "qat").ensemble
    assert with_view.state_dict().keys() == alone.state_dict().keys()
    assert len(list(with_view.parameters())) == len(list(alone.parameters()))
    assert list(with_view.networks) == ["student", "finer"]
    assert list(with_view.owners) == ["student"]


def test_a_view_of_bits_computes_what_a_network_of_those_bits_would(tmp_path: Path) -> None:
    ensemble = assembled(tmp_path, finer=FINER).ensemble
    student = ensemble.networks["student"].network
    float_state = {n: t for n, t in student.state_dict().items() if "quant" not in n}
    plain = build("resnet8", classes=4, channels=3, options={"width": 4})
    plain.load_state_dict(float_state)
    other = insert(plain, Scheme.parse("w2a8"))
    calibrate(other, [batch().images])
    own = dict(quantizers(student))
    for name, core in quantizers(other):
        ratio = (own[name].high - own[name].low) / (core.high - core.low)
        core.step.data = own[name].step.data * ratio
    with torch.no_grad():
        seen = ensemble.eval()(batch().images, ["student", "finer"])
        expected = other.eval()(batch().images)
    logits = {tap.part: tensor for tap, tensor in seen.items() if tap.stage == "logits"}
    assert torch.allclose(logits["finer"], expected, atol=1e-5)
    assert not torch.allclose(logits["student"], expected, atol=1e-2)


@pytest.mark.parametrize("view", [{**FINER, "share": 0.5}, MEAN], ids=["bits", "average"])
def test_no_gradient_comes_through_a_view(tmp_path: Path, view: dict[str, Any]) -> None:
    assembly = assembled(tmp_path, method="kd", view=view)
    assembly.ensemble.start_averages()
    found, logits = backward(assembly)
    assert not logits["view"].requires_grad
    again = assembled(tmp_path, method="kd", view=view)
    again.ensemble.load_state_dict(assembly.ensemble.state_dict())
    constant = logits["view"].detach()
    [step] = again.plan.phases[0].steps
    again.ensemble.set_learners(step.learners)
    student = again.ensemble.networks["student"]
    own = student(batch().images)
    p, q = (z.div(4).softmax(1) for z in (own, constant))
    loss = 0.1 * torch.nn.functional.cross_entropy(own, batch().labels)
    loss = loss + 0.9 * 16 * (q * (q.log() - p.log())).sum() / len(own)
    loss.backward()
    for name, parameter in student.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-6), name


def test_running_statistics_are_moved_by_their_owner_alone(tmp_path: Path) -> None:
    seen, alone = assembled(tmp_path, method="kd", finer=FINER, mean=MEAN), assembled(tmp_path, method="qat")
    seen.ensemble.start_averages()
    for assembly in (seen, alone):
        backward(assembly)
    expected = alone.ensemble.networks["student"].state_dict()
    found = seen.ensemble.networks["student"].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any("average" in name for name in found)


def test_an_average_is_its_formula_and_begins_as_its_owner(tmp_path: Path) -> None:
    ensemble = assembled(tmp_path, mean=MEAN).ensemble
    weight = ensemble.networks["student"].network.conv1.weight
    ensemble.start_averages()
    expected = weight.detach().double().clone()
    for number in range(1, 41):
        weight.data += 0.1 * torch.randn(weight.shape)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weight.detach().double()
        ensemble.update_averages(number)
    kept = ensemble.state_dict()["averages.mean.conv1.weight"]
    assert torch.allclose(kept.double(), expected, atol=1e-6)
    student = ensemble.networks["student"].network
    with torch.no_grad():
        seen = ensemble.eval()(batch().images, ["mean"])
        student.load_state_dict({**student.state_dict(), **dict(ensemble.averages["mean"].state_dict())})
        assert torch.equal(next(t for tap, t in seen.items() if tap.stage == "logits"), student(batch().images))


@pytest.mark.parametrize("view", [FINER, MEAN], ids=["bits", "average"])
def test_views_follow_their_owner_to_another_type(tmp_path: Path, view: dict[str, Any]) -> None:
    ensemble = assembled(tmp_path, view=view).ensemble
    ensemble.start_averages()
    ensemble.double()
    outputs = ensemble.eval()(batch().images.double(), ["student", "view"])
    assert {tensor.dtype for tensor in outputs.values()} == {torch.float64}


MISUSES = [
    ("bdkd", {"finer": FINER}, "plan.view-learns"),
    ("dgkd", {"four": TINY["teachers"]["four"], "mean": MEAN}, "plan.view-learns"),
    ("iakd", {"mean": MEAN}, "plan.gradient-through-view"),
    ("simkd", {"mean": MEAN}, "plan.view-in-product"),
    ("speq", {"four": TINY["teachers"]["four"]}, "method.needs-view-of-student"),
    ("speq", {"mean": MEAN}, "method.needs-view-of-student"),
]


@pytest.mark.parametrize(
    ("method", "teachers", "key"), MISUSES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_a_view_cannot_do_is_refused(
    tmp_path: Path, refused: Refused, method: str, teachers: dict[str, Any], key: str
) -> None:
    with refused(PlanError, key):
        assembled(tmp_path, method, **teachers)


def test_a_view_cannot_be_part_of_the_product(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "own.py").write_text(
        "from qkd.distill.heads import mean_of_logits\n"
        "from qkd.distill.plan import Phase, Plan, Step\n"
        "from qkd.distill.terms import label\n\n\n"
        "def both(setup):\n"
        "    head = mean_of_logits('both', setup.all_networks, setup.classes)\n"
        "    return Plan((Phase('train', (Step(['student'], [label('student')]),)),), heads=(head,), product='both')\n"
    )
    method = {"name": f"{tmp_path / 'own.py'}:both"}
    with refused(PlanError, "plan.view-in-product"):
        assembled(tmp_path, recipe=recipe_in(tmp_path, method=method, teachers={"mean": MEAN}, match=[]))


def test_peers_that_are_views_teach_and_do_not_learn(tmp_path: Path) -> None:
    teachers = {"four": TINY["teachers"]["four"], "mean": MEAN}
    for method in ("dml", "kdcl", "cmtkd"):
        plan = assembled(tmp_path, method, **teachers).plan
        assert {"student", "four"} <= {each.part for each in plan.learners}
        assert "mean" not in {each.part for each in plan.learners}
        assert any(
            tap.part == "mean" for step in plan.phases[0].steps for term in step.terms for tap in term.reads
        ) or ("mean" in plan.exchange.members)


def test_a_description_says_what_a_view_is(tmp_path: Path) -> None:
    recipe = recipe_in(
        tmp_path, method={"name": "kd"}, teachers={"finer": {**FINER, "share": 0.5}, "mean": MEAN}, match=[]
    )
    lines = describe(recipe, assembled(tmp_path, recipe=recipe)).splitlines()
    assert next(line for line in lines if line.startswith("  finer")).endswith(
        "view of student, the same weights, activations at 8 bits with probability 0.5; no parameters of its own, no gradient"
    )
    assert next(line for line in lines if line.startswith("  mean")).endswith(
        "view of student, average 0.9; no parameters of its own, no gradient"
    )
    assert not any(line.startswith("  frozen") for line in lines)
