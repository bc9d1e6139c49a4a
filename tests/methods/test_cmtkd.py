"""CMT-KD: the exchange really reaches the other teachers; the importance learns in every mode that says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qkd.assembly.build import measure_shapes
from qkd.assembly.ensemble import Ensemble
from qkd.assembly.rehearsal import rehearse
from qkd.distill.exchange import Fuse, NoExchange
from qkd.distill.losses import attention_distance, kl_divergence
from qkd.distill.plan import ADAPTERS, IMPORTANCE, Method, Plan, Setup, networks_needed
from qkd.distill.stages import cut
from qkd.distill.taps import SHARED, Tap
from qkd.errors import PlanError
from qkd.methods.cmtkd import cmtkd
from qkd.methods.iakd import iakd
from qkd.networks import NETWORKS
from tests.support.ensembles import FACTS, STAGES, assembled, batch, learners_of, quantized, staged
from tests.support.refusals import Refused


def company(count: int = 3, **options: Any) -> tuple[Ensemble, Plan]:
    networks = {"student": staged(0)} | {f"t{i}": staged(i + 1) for i in range(count)}
    return assembled(cmtkd, networks, **options)


def logits_of(parts: Ensemble, part: str, images: Tensor) -> Tensor:
    parts.eval()
    with torch.no_grad():
        return parts(images, tuple(parts.networks))[Tap(part)]


@pytest.mark.parametrize("exchange", [True, False])
def test_teacher_a_is_heard_by_teacher_b_only_through_the_exchange(exchange: bool) -> None:
    parts, _ = company(exchange=exchange)
    images = batch().images
    before = {part: logits_of(parts, part, images) for part in parts.networks}
    with torch.no_grad():
        next(iter(parts.networks["t0"].modules_of("layer1"))).weight.add_(1.0)
    after = {part: logits_of(parts, part, images) for part in parts.networks}
    assert not torch.equal(before["t0"], after["t0"])
    for other in ("t1", "t2"):
        assert torch.equal(before[other], after[other]) is not exchange
    assert torch.equal(before["student"], after["student"])  # the student only listens


def test_one_teacher_is_identity() -> None:
    parts, _ = company(count=1)
    images = batch().images
    alone = parts.networks["t0"](images)
    parts.eval()
    outputs = parts(images, ("student", "t0"))
    torch.testing.assert_close(outputs[Tap("t0")], parts.networks["t0"](images), rtol=0, atol=0)
    assert torch.equal(outputs[Tap(SHARED, "layer1")], outputs[Tap("t0", "layer1")])
    assert torch.equal(outputs[Tap(SHARED)], outputs[Tap("t0")])
    assert alone.shape == (6, 4)


def test_equal_importance_is_the_mean_and_all_teachers_go_on_from_it() -> None:
    fuse = Fuse(["a", "b", "c"], ["s"])
    flow = {name: torch.randn(2, 3, 4, 4) for name in "abc"}
    out = fuse("s", flow, 0.0, {})
    torch.testing.assert_close(out[SHARED], torch.stack(list(flow.values())).mean(0))
    assert out["a"] is out["b"] is out["c"] is out[SHARED]
    assert fuse("elsewhere", flow, 0.0, {}) == {} and fuse("s", {"a": flow["a"]}, 0.0, {}) == {}


@pytest.mark.parametrize(("method", "member"), [(cmtkd, "t0"), (cmtkd, "t1"), (iakd, "student")])
def test_what_a_quantized_member_goes_on_from_lies_on_its_own_grid(method: Method, member: str) -> None:
    bits = {"student": 2, "t0": 4} | ({"t1": 3} if method is cmtkd else {})
    networks = {name: quantized(seed, bits[name]) for seed, name in enumerate(bits)}
    parts, plan = assembled(method, networks, **({"schedule": "uniform", "keep": 0.0} if method is iakd else {}))
    read: list[Tensor] = []
    parts.networks[member].network.get_submodule("layer2.0.conv1").register_forward_pre_hook(
        lambda _layer, inputs: read.append(inputs[0].detach())
    )
    parts.set_learners(plan.phases[0].steps[0].learners)
    outputs = parts(batch().images, tuple(networks))
    own = outputs[Tap(member, "layer1")]
    assert not torch.equal(read[0], own)  # it is not what the member itself made
    assert len(read[0].unique()) <= 2 ** bits[member]
    torch.testing.assert_close(parts.networks[member].rounded("layer1", read[0]), read[0])


def test_importance_sums_to_one_whatever_was_learned() -> None:
    fuse = Fuse(["a", "b", "c"], ["s"])
    with torch.no_grad():
        fuse.importance["s"].copy_(torch.tensor([4.0, -3.0, 0.5]))
    weights = fuse.weights("s")
    assert weights.sum().item() == pytest.approx(1.0) and (weights > 0).all()
    assert sum(fuse.metrics(0.0).values()) == pytest.approx(1.0)
    flow = {name: torch.full((1, 1), value) for name, value in zip("abc", (1.0, 2.0, 3.0), strict=True)}
    fused = fuse("s", flow, 0.0, {})
    assert fused[SHARED].item() == pytest.approx((weights * torch.tensor([1.0, 2.0, 3.0])).sum().item())


LEARNED = [
    {},
    {"teachers": "frozen"},
    {"feature_gradient": "both"},
    {"feature": "none"},
    {"exchange": False, "feature_gradient": "both"},
    {"combined": "weighted"},
    {"combined": "head"},
    {"mutual": "none"},
    {"mutual": "student"},
    {"target": "combined"},
    {"feature": "hint", "reduction": "sum"},
    {"detach_target": False},
]


@pytest.mark.parametrize("options", LEARNED, ids=str)
def test_importance_gets_gradient_in_every_mode_that_learns_it(options: dict[str, Any]) -> None:
    parts, plan = company(**options)
    step = plan.phases[0].steps[0]
    assert IMPORTANCE in step.learners
    parts.set_learners(step.learners)
    outputs = parts(batch().images, sorted(networks_needed(plan, step)))
    sum(term.weight_at(0.0) * term(outputs, batch()) for term in step.terms).backward()
    for name, importance in parts.exchange.importance.items():
        assert importance.grad is not None and importance.grad.abs().sum() > 0, name


def test_frozen_teachers_do_not_learn_and_uniform_importance_is_no_parameter() -> None:
    parts, plan = company(teachers="frozen", importance="uniform")
    assert learners_of(plan) == {"student"}
    assert not list(plan.exchange.parameters())
    parts.set_learners(plan.phases[0].steps[0].learners)
    assert not any(p.requires_grad for p in parts.networks["t0"].parameters())
    assert not parts.networks["t0"].network.training and parts.networks["student"].network.training


def test_importance_that_nothing_teaches_is_refused(refused: Refused) -> None:
    with refused(PlanError, "plan.learner-without-a-term"):
        company(teachers="frozen", feature="none")


def test_the_combined_target_is_what_the_teachers_say_and_for_the_student_alone() -> None:
    parts, plan = company(target="combined", feature="none", alpha=0.0, beta=0.3, temperature=3.0)
    step, data = plan.phases[0].steps[0], batch()
    parts.set_learners(step.learners)
    outputs = parts(data.images, sorted(networks_needed(plan, step)))
    total = sum(term.weight_at(0.0) * term(outputs, data) for term in step.terms)
    teacher = sum(outputs[Tap(f"t{i}")] for i in range(3)) / 3
    expected = 0.3 * kl_divergence(outputs[Tap("student")], teacher, temperature=3.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    total.backward()
    assert next(parts.networks["student"].parameters()).grad is not None
    assert all(p.grad is None or not p.grad.any() for p in parts.networks["t0"].parameters())


def test_loss_is_equation_ten() -> None:
    """An independent straight-line re-implementation, term by term."""
    parts, plan = company(temperature=3.0, alpha=0.7, beta=0.3, gamma=50.0)
    step, data = plan.phases[0].steps[0], batch()
    parts.set_learners(step.learners)
    outputs = parts(data.images, sorted(networks_needed(plan, step)))
    total = sum(term.weight_at(0.0) * term(outputs, data) for term in step.terms)
    student = outputs[Tap("student")]
    teacher = sum(outputs[Tap(f"t{i}")] for i in range(3)) / 3
    right = torch.arange(6), data.labels
    target = torch.minimum(teacher - teacher[right][:, None], student - student[right][:, None])
    expected = 0.7 * (F.cross_entropy(student, data.labels) + F.cross_entropy(teacher, data.labels))
    expected += 0.3 * sum(kl_divergence(z, target, temperature=3.0) for z in (student, teacher))
    for stage in STAGES:
        expected += 50.0 * attention_distance(outputs[Tap("student", stage)], outputs[Tap(SHARED, stage)])
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_features_move_the_student_alone_unless_told_otherwise() -> None:
    for gradient, moved in (("student", False), ("both", True)):
        parts, plan = company(feature_gradient=gradient)
        parts.set_learners(plan.phases[0].steps[0].learners)
        outputs = parts(batch().images, tuple(parts.networks))
        term = next(t for t in plan.phases[0].steps[0].terms if t.name.startswith("attention"))
        term(outputs, batch()).backward()
        assert any(p.grad is not None for p in parts.networks["t0"].parameters()) is moved
        assert any(p.grad is not None for p in parts.networks["student"].parameters())


def test_hints_between_different_widths_learn_a_regressor_that_stays_out_of_the_product() -> None:
    networks = {"student": staged(0, width=4), "t0": staged(1, width=8), "t1": staged(2, width=8)}
    shapes = measure_shapes(networks, FACTS)
    plan = cmtkd(Setup("student", ("t0", "t1"), STAGES, 4, shapes), feature="hint")
    parts = Ensemble(networks, plan)
    rehearse(parts, plan, shapes, FACTS)
    assert [head.name for head in plan.heads] == ["adapt_student_layer1_to_shared", "adapt_student_layer2_to_shared"]
    assert set(parts.product(plan).state_dict()) == set(networks["student"].network.state_dict())


@pytest.mark.parametrize(
    "options", [{}, {"exchange": False}, {"importance": "uniform"}, {"teachers": "frozen"}], ids=str
)
def test_teachers_of_different_shapes_are_fused_behind_adapters_that_learn(options: dict[str, Any]) -> None:
    networks = {"student": staged(0), "t0": staged(1, width=8), "t1": staged(2, width=4), "t2": staged(3, width=8)}
    shapes = measure_shapes(networks, FACTS)
    plan = cmtkd(Setup("student", ("t0", "t1", "t2"), STAGES, 4, shapes), **options)
    parts, step = Ensemble(networks, plan), plan.phases[0].steps[0]
    rehearse(parts, plan, shapes, FACTS)
    assert list(plan.exchange.adapters) == ["t1/layer1", "t1/layer2"]
    assert plan.rate_of(ADAPTERS) == 1.0 and plan.rate_of(IMPORTANCE) == 0.1
    parts.set_learners(step.learners)
    outputs = parts(batch().images, sorted(networks_needed(plan, step)))
    assert outputs[Tap(SHARED, "layer1")].shape == outputs[Tap("t0", "layer1")].shape
    sum(term.weight_at(0.0) * term(outputs, batch()) for term in step.terms).backward()
    unmoved = [n for n, p in parts.exchange.adapters.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    last_home = ["t1/layer2.home.weight", "t1/layer2.home.bias"]  # nothing behind it teaches, where teachers are frozen
    assert unmoved == (last_home if options == {"teachers": "frozen"} else [])


def test_tensors_that_are_no_maps_are_not_adapted_but_refused(refused: Refused) -> None:
    networks = {name: cut(NETWORKS["resnet8"](classes=4, width=w), ["flatten"]) for name, w in (("t0", 8), ("t1", 4))}
    networks |= {"student": cut(NETWORKS["resnet8"](classes=4, width=4), ["flatten"])}
    shapes = measure_shapes(networks, FACTS)
    plan = cmtkd(Setup("student", ("t0", "t1"), ("flatten",), 4, shapes), feature="none")
    with refused(PlanError, "match.shapes-cannot-be-adapted"):
        rehearse(Ensemble(networks, plan), plan, shapes, FACTS)


def test_needs_teachers_and_matched_layers(refused: Refused) -> None:
    networks = {"student": staged(0), "t0": staged(1)}
    shapes = measure_shapes(networks, FACTS)
    with refused(PlanError, "method.too-few-teachers"):
        cmtkd(Setup("student", (), STAGES, 4, shapes))
    with refused(PlanError, "method.needs-matched-layers"):
        cmtkd(Setup("student", ("t0",), (), 4, shapes))


def test_no_exchange_changes_nothing() -> None:
    assert NoExchange()("layer1", {"a": torch.ones(1)}, 0.0, {}) == {}
