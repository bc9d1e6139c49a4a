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
from qkd.distill.plan import Learner, Phase, Plan, Step, epochs_per_phase, networks_needed
from qkd.distill.stages import Staged, cut
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, attend, hint, imitate, label
from qkd.errors import NetworkError, PlanError
from qkd.networks import NETWORKS
from qkd.tasks.spec import DataSpec
from tests.support.refusals import Refused

FACTS = DataSpec((3, 16, 16), 4)


def staged(width: int = 4, classes: int = 4) -> Staged:
    return cut(NETWORKS["resnet8"](classes=classes, width=width), ["layer1", "layer2"])


def plan_of(*terms: object, learners: tuple[str | Learner, ...] = ("student",), **more: object) -> Plan:
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


def test_a_typo_in_a_part_is_refused_with_a_suggestion(refused: Refused) -> None:
    with refused(PlanError, "plan.term-reads-no-part"):
        checked(plan_of(imitate("student", one(Tap("techer")), temperature=4.0)), teacher=staged())


def test_terms_of_one_name_are_refused(refused: Refused) -> None:
    with refused(PlanError, "plan.terms-of-one-name"):
        checked(plan_of(label("student"), label("student") * 0.5))


@pytest.mark.parametrize(
    ("phases", "key"),
    [
        ((), "plan.no-phases"),
        ((Phase("first", ()),), "plan.empty-phase"),
        ((Phase("first", (Step(["student"], []),)),), "plan.empty-phase"),
        ((Phase("first", (Step([], [label("student")]),)),), "plan.empty-phase"),
        ((Phase("first", (Step(["student"], [label("student")]),), 0.0),), "plan.share-not-positive"),
    ],
)
def test_a_plan_without_anything_to_do_is_refused(phases: tuple[Phase, ...], key: str, refused: Refused) -> None:
    with refused(PlanError, key):
        checked(Plan(phases))


@pytest.mark.parametrize(
    "loss", [lambda logits, batch: logits.mean(0), lambda logits, batch: 0.5], ids=["a tensor", "a number"]
)
def test_a_loss_that_is_not_one_number_is_refused(loss: Callable[..., Any], refused: Refused) -> None:
    with refused(PlanError, "plan.loss-not-a-number"):
        checked(plan_of(Term("mine", "student", (Tap("student"),), loss)))


def test_a_learner_that_is_nobody_is_refused(refused: Refused) -> None:
    with refused(PlanError, "plan.no-such-learner"):
        checked(plan_of(label("student"), learners=("stdent",)))


@pytest.mark.parametrize(
    ("learner", "key"),
    [
        ("student.layer1", "plan.no-such-learner"),  # a piece is a Learner, and the message says which
        (Learner("student", "layr1"), "plan.no-such-piece"),
    ],
    ids=["a text with a dot", "a typo"],
)
def test_a_piece_that_is_not_there_is_refused(learner: str | Learner, key: str, refused: Refused) -> None:
    with refused(PlanError, key):
        checked(plan_of(label("student"), learners=(learner,)))


def test_a_stage_that_is_not_recorded_is_refused(refused: Refused) -> None:
    with refused(PlanError, "plan.term-reads-nothing"):
        checked(plan_of(attend(Tap("student", "layer1"), Tap("a", "layer9"))), a=staged())


def test_shapes_that_do_not_fit_are_refused_with_the_term(refused: Refused) -> None:
    with refused(PlanError, "loss.hint-shapes"):
        checked(plan_of(hint(Tap("student", "layer1"), Tap("a", "layer1"))), a=staged(width=8))


def test_a_learner_that_nothing_teaches_is_refused(refused: Refused) -> None:
    with refused(PlanError, "plan.learner-without-a-term"):
        checked(plan_of(label("student"), learners=("student", "a")), a=staged())


def test_a_product_that_is_nothing_is_refused(refused: Refused) -> None:
    with refused(PlanError, "plan.no-such-product"):
        checked(plan_of(label("student"), product="pupil"))


def test_wrong_number_of_outputs_is_refused(refused: Refused) -> None:
    with refused(NetworkError, "network.other-classes"):
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
    plan = plan_of(label("student"), learners=(Learner("student", "logits"),))
    parts = checked(plan)
    parts.set_learners(plan.phases[0].steps[0].learners)
    moving = {name for name, p in parts.named_parameters() if p.requires_grad}
    assert moving == {name for name, _ in parts.named_parameters() if ".layer3." in name or ".fc." in name}
