"""DGKD and TAKD: the chain, equation 7, and what chance drops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkd.distill.plan import Plan
from qkd.distill.term_dropout import Bernoulli, DropExactly
from qkd.distill.terms import draw_kept
from qkd.errors import PlanError
from qkd.methods.dgkd import dgkd, takd
from qkd.methods.kd import kd
from tests.support.ensembles import learners_of
from tests.support.formulas import batch, company, cross_entropy, divergence, double, run
from tests.support.refusals import Refused

CHAIN = ["teacher", "first", "second"]


def guides(plan: Plan) -> dict[str, list[str]]:
    return {
        phase.name: [t.name.partition("<")[2] for t in phase.steps[0].terms if t.name.startswith("imitate")]
        for phase in plan.phases
    }


def test_every_larger_network_guides_every_smaller_one() -> None:
    _, plan = company(dgkd, CHAIN)
    assert guides(plan) == {"first": ["teacher"], "second": ["teacher", "first"], "student": CHAIN}
    assert [learners_of(phase.steps[0]) for phase in plan.phases] == [{"first"}, {"second"}, {"student"}]


def test_takd_has_the_nearest_guide_alone() -> None:
    _, plan = company(takd, CHAIN, student_share=3.0)
    assert guides(plan) == {"first": ["teacher"], "second": ["first"], "student": ["second"]}
    assert [phase.share for phase in plan.phases] == [1.0, 1.0, 3.0]


def test_the_head_of_the_chain_can_be_trained_first() -> None:
    _, plan = company(dgkd, CHAIN, teacher="learn")
    assert [phase.name for phase in plan.phases] == [*CHAIN, "student"]
    assert learners_of(plan.phases[0].steps[0]) == {"teacher"}


@pytest.mark.parametrize(("per_guide", "labels"), [(True, 3), (False, 1)])
def test_loss_is_equation_seven(per_guide: bool, labels: int) -> None:
    options = {"soft": 0.7, "temperature": 2.0, "stochastic": "none", "labels_per_guide": per_guide}
    parts, plan = company(dgkd, CHAIN, **options)
    total, outputs = run(parts, plan, plan.phases[-1].steps[0])
    seen = double(outputs)
    student = seen["student.logits"]
    expected = labels * 0.3 * cross_entropy(student, batch().labels)
    expected += 0.7 * sum(divergence(seen[f"{guide}.logits"], student, 2.0) for guide in CHAIN)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def loss_of(method: Any, teachers: list[str], **options: Any) -> float:
    parts, plan = company(method, teachers, **options)
    return run(parts, plan, plan.phases[-1].steps[0])[0].item()


def test_without_assistants_it_is_plain_distillation() -> None:
    mine = loss_of(dgkd, ["teacher"], soft=0.9, temperature=4.0)
    assert mine == pytest.approx(loss_of(kd, ["teacher"], soft=0.9, temperature=4.0))
    assert mine == pytest.approx(loss_of(takd, ["teacher"], soft=0.9, temperature=4.0))


def test_without_soft_targets_or_guides_the_labels_remain() -> None:
    labels = loss_of(dgkd, CHAIN, soft=0.0)
    parts, plan = company(dgkd, CHAIN)
    _, outputs = run(parts, plan, plan.phases[-1].steps[0])
    expected = 3 * cross_entropy(double(outputs)["student.logits"], batch().labels)
    assert labels == pytest.approx(expected.item(), rel=1e-5)
    assert loss_of(dgkd, CHAIN, soft=0.5, stochastic="drop", drop=3) == pytest.approx(labels / 2)


def test_exactly_one_guide_is_dropped_in_each_batch_and_each_is_kept_equally_often() -> None:
    _, plan = company(dgkd, CHAIN, stochastic="drop")
    terms = plan.phases[-1].steps[0].terms
    draws = [draw_kept(terms) for _ in range(3000)]
    assert all(sum(draw.values()) == 2 and len(draw) == 3 for draw in draws)
    for name in draws[0]:
        assert sum(draw[name] for draw in draws) / 3000 == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize(("options", "kept"), [({}, 0.75), ({"keep": 0.4}, 0.4), ({"stochastic": "drop"}, 0.5)])
def test_each_of_two_guides_is_kept_with_the_papers_probability(options: dict[str, Any], kept: float) -> None:
    _, plan = company(dgkd, ["teacher", "assistant"], **options)
    draws = torch.tensor([list(draw_kept(plan.phases[-1].steps[0].terms).values()) for _ in range(3000)])
    assert draws.shape == (3000, 2) and draws.mean(0).tolist() == pytest.approx([kept] * 2, abs=0.03)


def test_bernoulli_drops_each_by_itself() -> None:
    _, plan = company(dgkd, CHAIN)
    draws = torch.tensor([list(draw_kept(plan.phases[-1].steps[0].terms).values()) for _ in range(3000)])
    assert draws.mean(0).tolist() == pytest.approx([0.75] * 3, abs=0.03)
    assert draws.prod(1).mean().item() == pytest.approx(0.75**3, abs=0.03)


def test_only_the_student_is_taught_by_chance_unless_told_otherwise() -> None:
    _, plan = company(dgkd, CHAIN)
    assert [bool(draw_kept(phase.steps[0].terms)) for phase in plan.phases] == [False, False, True]
    _, plan = company(dgkd, CHAIN, stochastic_for="everyone")
    assert [bool(draw_kept(phase.steps[0].terms)) for phase in plan.phases] == [False, True, True]


def test_a_dropped_guide_gives_no_gradient() -> None:
    parts, plan = company(dgkd, CHAIN, soft=1.0, stochastic="drop", drop=3)
    total, _ = run(parts, plan, plan.phases[-1].steps[0])
    total.backward()
    assert all(not p.grad.any() for p in parts.networks["student"].parameters() if p.grad is not None)


def test_chance_is_part_of_the_random_state() -> None:
    for chance in (Bernoulli(0.5), DropExactly(2)):
        state = torch.get_rng_state()
        first = [chance.draw(5) for _ in range(8)]
        torch.set_rng_state(state)
        assert first == [chance.draw(5) for _ in range(8)]


def test_more_guides_than_there_are_cannot_be_dropped(refused: Refused) -> None:
    with refused(PlanError, "method.drops-too-many"):
        company(dgkd, CHAIN, stochastic="drop", drop=4)
    with refused(PlanError, "method.too-few-teachers"):
        company(dgkd, [])
