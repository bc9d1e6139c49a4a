"""CTKD: its formula, and nothing flows back into either teacher."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qkd.errors import PlanError
from qkd.methods.ctkd import ctkd
from tests.support.ensembles import learners_of
from tests.support.formulas import STAGES, attention, batch, company, cross_entropy, divergence, double, network, run
from tests.support.refusals import Refused


@pytest.mark.parametrize("logits", ["kl", "mse"])
def test_loss_is_the_formula(logits: str) -> None:
    options = {"logits": logits, "imitation_weight": 0.7, "temperature": 3.0, "attention": 40.0}
    parts, plan = company(ctkd, ["scratch", "expert"], **options)
    total, outputs = run(parts, plan, plan.phases[0].steps[0])
    seen, labels = double(outputs), batch().labels
    student, scratch = seen["student.logits"], seen["scratch.logits"]
    expected = cross_entropy(student, labels) + cross_entropy(scratch, labels)
    squared = ((student - scratch) ** 2).sum(1).mean()
    expected += 0.7 * (divergence(scratch, student, 3.0) if logits == "kl" else squared)
    for stage in STAGES:
        difference = attention(seen[f"student.{stage}"]) - attention(seen[f"expert.{stage}"])
        expected += 40.0 / 2 * (difference**2).mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_flows_back() -> None:
    parts, plan = company(ctkd, ["scratch", "expert"])
    total, outputs = run(parts, plan, plan.phases[0].steps[0])
    weight = parts.networks["scratch"].network.fc.weight
    logits = next(tensor for tap, tensor in outputs.items() if str(tap) == "scratch.logits")
    (labels_alone,) = torch.autograd.grad(F.cross_entropy(logits, batch().labels), weight, retain_graph=True)
    (all_terms,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close(all_terms, labels_alone)
    assert not any(p.requires_grad for p in parts.networks["expert"].parameters())
    assert parts.networks["scratch"].network.training
    assert not parts.networks["expert"].network.training


def test_each_teacher_can_be_left_out() -> None:
    _, plan = company(ctkd, ["expert"], logits="none")
    assert learners_of(plan) == {"student"}
    _, plan = company(ctkd, ["scratch"], attention=0.0)
    assert {term.name for term in plan.phases[0].steps[0].terms} == {
        "label/student",
        "label/scratch",
        "imitate/student<scratch",
    }


def test_the_roles_can_have_other_names(refused: Refused) -> None:
    _, plan = company(ctkd, ["new", "old"], scratch="new", expert="old")
    assert learners_of(plan) == {"student", "new"}
    with refused(PlanError, "method.no-such-teacher"):
        company(ctkd, ["new", "old"], expert="old")


def test_a_wider_expert_needs_no_adapter() -> None:
    _, plan = company(ctkd, {"scratch": network(1), "expert": network(2, width=8)})
    assert plan.heads == ()
