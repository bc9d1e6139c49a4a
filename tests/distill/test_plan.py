"""Plans: which networks run, how epochs are shared, and every mistake of wiring refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qkd.assembly.build import measure_shapes
from qkd.assembly.ensemble import Ensemble
from qkd.assembly.rehearsal import rehearse
from qkd.distill.heads import Head
from qkd.distill.plan import Phase, Plan, Step, epochs_per_phase, networks_needed
from qkd.distill.stages import Staged, cut
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, attend, hint, imitate, label
from qkd.errors import NetworkError, PlanError
from qkd.networks import NETWORKS
from qkd.tasks.spec import DataSpec

FACTS = DataSpec((3, 16, 16), 4)


def staged(width: int = 4, classes: int = 4) -> Staged:
    return cut(NETWORKS["resnet8"](classes=classes, width=width), ["layer1", "layer2"])


def plan_of(*terms: object, learners: tuple[str, ...] = ("student",), **more: object) -> Plan:
    return Plan((Phase("train", (Step(learners, terms),)),), **more)  # type: ignore[arg-type]


def checked(plan: Plan, **networks: Staged) -> Ensemble:
    networks = {"student": staged(), **networks}
    parts = Ensemble(networks, plan)
    rehearse(parts, plan, measure_shapes(networks, FACTS), FACTS)
    return parts


def test_only_what_terms_read_runs() -> None:
    plan = plan_of(label("student"))
    assert networks_needed(plan, plan.phases[0].steps[0]) == {"student"}
    plan = plan_of(label("student"), attend(Tap("student", "layer1"), Tap("a", "layer1")))
    assert networks_needed(plan, plan.phases[0].steps[0]) == {"student", "a"}
    head = Head("joined", [Tap("student", "layer2"), Tap("b", "layer2")], nn.Conv2d(8, 4, 1))
    plan = plan_of(label("joined"), heads=(head,))
    assert networks_needed(plan, plan.phases[0].steps[0]) == {"student", "b"}


@pytest.mark.parametrize(
    ("shares", "epochs", "expected"),
    [((1,), 7, (7,)), ((1, 1), 5, (2, 3)), ((30, 100, 70), 20, (3, 10, 7)), ((1, 1, 1), 2, (1, 1, 1))],
)
def test_epochs_are_shared_out(shares: tuple[float, ...], epochs: int, expected: tuple[int, ...]) -> None:
    plan = Plan(tuple(Phase(str(i), (), share) for i, share in enumerate(shares)))
    assert epochs_per_phase(plan, epochs) == expected


def test_a_typo_in_a_part_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PlanError, match=r"phase train, term imitate/student<techer: .*\(did you mean 'teacher'\?\)"):
        checked(plan_of(imitate("student", one(Tap("techer")), temperature=4.0)), teacher=staged())


def test_terms_of_one_name_are_refused() -> None:
    with pytest.raises(PlanError, match="phase train: two terms of one step are named label/student"):
        checked(plan_of(label("student"), label("student") * 0.5))


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ((), "the plan has no phases"),
        ((Phase("first", ()),), "phase first: needs a step"),
        ((Phase("first", (Step(["student"], []),)),), "phase first: needs a step, and each step learners and terms"),
        ((Phase("first", (Step([], [label("student")]),)),), "phase first: needs a step, and each step learners"),
        ((Phase("first", (Step(["student"], [label("student")]),), 0.0),), "phase first: its share .* is 0.0"),
    ],
)
def test_a_plan_without_anything_to_do_is_refused(phases: tuple[Phase, ...], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        checked(Plan(phases))


@pytest.mark.parametrize(
    ("loss", "found"), [(lambda logits, batch: logits.mean(0), "a tensor of 4"), (lambda logits, batch: 0.5, "float")]
)
def test_a_loss_that_is_not_one_number_is_refused(loss: Callable[..., Any], found: str) -> None:
    with pytest.raises(PlanError, match=f"phase train, term mine: its loss is {found}, not one number"):
        checked(plan_of(Term("mine", (Tap("student"),), loss)))


def test_a_learner_that_is_nobody_is_refused() -> None:
    with pytest.raises(PlanError, match="no part 'stdent' to learn"):
        checked(plan_of(label("student"), learners=("stdent",)))


def test_a_stage_that_is_not_recorded_is_refused() -> None:
    with pytest.raises(PlanError, match=r"nothing is recorded at a\.layer9"):
        checked(plan_of(attend(Tap("student", "layer1"), Tap("a", "layer9"))), a=staged())


def test_shapes_that_do_not_fit_are_refused_with_the_term() -> None:
    with pytest.raises(PlanError, match=r"term hint/student.layer1<a.layer1: .*4x16x16 and 8x16x16"):
        checked(plan_of(hint(Tap("student", "layer1"), Tap("a", "layer1"))), a=staged(width=8))


def test_a_learner_that_nothing_teaches_is_refused() -> None:
    with pytest.raises(PlanError, match="no term teaches a"):
        checked(plan_of(label("student"), learners=("student", "a")), a=staged())


def test_a_product_that_is_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="the product 'pupil' is neither a network nor a head"):
        checked(plan_of(label("student"), product="pupil"))


def test_wrong_number_of_outputs_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"student: its output has shape \(batch, 7\)"):
        measure_shapes({"student": staged(classes=7)}, FACTS)


def test_the_rehearsal_leaves_no_trace() -> None:
    student = staged()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    parts = checked(plan_of(label("student")), student=student)
    after = parts.networks["student"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in parts.parameters())


def test_a_borrowed_classifier_is_a_product_of_its_own() -> None:
    head = Head("deployed", [Tap("student", "layer2")], nn.Conv2d(8, 16, 1), via=Tap("expert"))
    plan = plan_of(label("deployed"), learners=("student", "deployed"), heads=(head,), product="deployed")
    parts = checked(plan, expert=staged(width=8))
    parts.eval()
    images = torch.randn(2, *FACTS.shape)
    outputs = parts(images, ("student", "expert"))
    torch.testing.assert_close(parts.product(plan)(images), outputs[Tap("deployed")])
    assert outputs[Tap("deployed", "projected")].shape[1] == 16


def test_one_stage_can_learn_alone() -> None:
    plan = plan_of(label("student"), learners=("student.logits",))
    parts = checked(plan)
    parts.learn(plan.phases[0].steps[0].learners)
    moving = {name for name, p in parts.named_parameters() if p.requires_grad}
    assert moving == {name for name, _ in parts.named_parameters() if ".layer3." in name or ".fc." in name}
