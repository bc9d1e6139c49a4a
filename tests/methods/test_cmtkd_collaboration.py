"""CMT-KD's options that make teachers collaborate: labels of their own, an importance that moves, a phase of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qkd.assembly.ensemble import Ensemble
from qkd.data import Batch
from qkd.distill.losses import attention_distance, kl_divergence
from qkd.distill.plan import IMPORTANCE, Plan, networks_needed
from qkd.distill.taps import SHARED, Tap
from qkd.distill.terms import weighted_sum
from qkd.engine.device import Machine
from qkd.engine.optimizer import optimizer_for, set_rate
from qkd.engine.teacher_cache import cacheable_taps
from qkd.errors import PlanError
from qkd.methods.cmtkd import cmtkd
from qkd.pipeline.train import train_recipe
from qkd.recipe.models import Train
from qkd.storage.run import Run
from tests.support.ensembles import FACTS, assembled, batch, learners_of, names_of, quantized, staged
from tests.support.refusals import Refused
from tests.support.tiny_runs import losses, recipe_in

TEACHERS = ("t0", "t1", "t2")


def company(count: int = 3, **options: Any) -> tuple[Ensemble, Plan]:
    networks = {"student": staged(0)} | {f"t{i}": staged(i + 1) for i in range(count)}
    return assembled(cmtkd, networks, **options)


def backward(parts: Ensemble, plan: Plan, *, phase: int = 0) -> tuple[Tensor, dict[Tap, Tensor]]:
    (step,) = plan.phases[phase].steps
    parts.zero_grad(set_to_none=True)
    parts.set_learners(step.learners)
    outputs = parts(batch().images, sorted(networks_needed(plan, step)))
    total = weighted_sum({term.name: term(outputs, batch()) for term in step.terms}, step.terms, 0.0)
    total.backward()
    return total.detach(), outputs


def gradient(parts: Ensemble, part: str) -> Tensor:
    return torch.cat([p.grad.flatten() for p in parts.networks[part].parameters() if p.grad is not None])


def norms(**options: Any) -> list[float]:
    parts, plan = company(**options)
    backward(parts, plan)
    return [float(gradient(parts, teacher).norm()) for teacher in TEACHERS]


def test_a_small_alpha_starves_the_teachers_unless_theirs_is_given() -> None:
    full, starved = norms(alpha=1.0), norms(alpha=0.1)
    fed = norms(alpha=0.1, alpha_teachers=1.0)
    for a, b, c in zip(full, starved, fed, strict=True):
        assert b < a / 3 < c < 3 * a


def test_each_teacher_gets_what_it_would_learn_alone() -> None:
    parts, plan = company(teach="each", exchange=False, mutual="none", importance="uniform")
    backward(parts, plan)
    for teacher in TEACHERS:
        found = gradient(parts, teacher).clone()
        network = parts.networks[teacher].train()
        network.zero_grad(set_to_none=True)
        F.cross_entropy(network(batch().images), batch().labels).backward()
        torch.testing.assert_close(found, gradient(parts, teacher))
    together, plan = company(exchange=False, mutual="none", importance="uniform")
    backward(together, plan)
    assert gradient(together, "t0").norm() < gradient(parts, "t0").norm() / 1.5


def test_each_is_a_cross_entropy_and_a_divergence_for_every_teacher() -> None:
    parts, plan = company(teach="each", temperature=3.0, alpha=0.2, alpha_teachers=0.7, beta=0.3, feature="none")
    total, outputs = backward(parts, plan)
    student, own = outputs[Tap("student")], [outputs[Tap(teacher)] for teacher in TEACHERS]
    mean, right = sum(own) / 3, (torch.arange(6), batch().labels)
    target = torch.minimum(mean - mean[right][:, None], student - student[right][:, None])
    expected = 0.2 * F.cross_entropy(student, batch().labels) + 0.3 * kl_divergence(student, target, temperature=3.0)
    for z in own:
        expected += 0.7 * F.cross_entropy(z, batch().labels) + 0.3 * kl_divergence(z, target, temperature=3.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("combined", ["weighted", "head"])
@pytest.mark.parametrize("teachers", ["learn", "frozen"])
def test_a_combined_teacher_with_parameters_keeps_its_labels(combined: str, teachers: str) -> None:
    parts, plan = company(teach="each", combined=combined, teachers=teachers)
    name = "combined" if combined == "head" else "shared"
    labels = {f"label/{part}" for part in (*(TEACHERS if teachers == "learn" else ()), name, "student")}
    assert {t for t in names_of(plan.phases[0].steps[0]) if t.startswith("label")} == labels
    backward(parts, plan)
    for parameter in [*parts.exchange.importance.values(), *parts.heads.parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def after(steps: int, **options: Any) -> dict[str, float]:
    """The importance behind a short training in which the third teacher's first features are noise."""
    parts, plan = company(alpha=1.0, mutual="none", feature="none", **options)
    layer = parts.networks["t2"].network.get_submodule("layer1.0.relu2")
    noise = torch.Generator().manual_seed(0)
    layer.register_forward_hook(lambda _m, _i, out: torch.randn(out.shape, generator=noise).abs() + 0 * out)
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(32, *FACTS.shape, generator=generator)
    data = Batch(images, torch.arange(32) % FACTS.classes, torch.arange(32))
    (step,) = plan.phases[0].steps
    optimizer = optimizer_for(step, parts, plan, Train(epochs=1))
    parts.set_learners(step.learners)
    for _ in range(steps):
        set_rate(optimizer, 0.02)
        optimizer.zero_grad()
        outputs = parts(data.images, sorted(networks_needed(plan, step)))
        weighted_sum({t.name: t(outputs, data) for t in step.terms}, step.terms, 0.0).backward()
        optimizer.step()
    return parts.exchange.metrics(1.0)


@pytest.mark.parametrize("per", ["layer", "channel", "sample"])
def test_a_useless_teacher_loses_its_weight(per: str) -> None:
    found = after(60, importance_optimizer="adam", importance_per=per)
    assert found["importance/layer1/t2"] < 0.27
    assert sum(found[f"importance/layer1/{t}"] for t in TEACHERS) == pytest.approx(1.0)


def test_at_a_tenth_of_the_rate_it_hardly_does() -> None:
    """The paper's rate, made for a hundred times the steps of a short run."""
    assert after(60)["importance/layer1/t2"] == pytest.approx(1 / 3, abs=0.03)


def test_importance_rates_are_shares_of_the_rate_or_rates() -> None:
    _, shared = company()
    assert shared.rate_of(IMPORTANCE) == 0.1 and not shared.own_rates
    _, own = company(importance_optimizer="adam")
    assert own.own_rates == {IMPORTANCE: 0.01} and not own.rates
    assert company(importance_optimizer="adam", importance_rate=0.3)[1].own_rates == {IMPORTANCE: 0.3}


def test_the_lattice_compares_with_the_fused_features_on_the_students_grid() -> None:
    networks = {"student": quantized(0, 2), "t0": quantized(1, 4), "t1": quantized(2, 8)}
    parts, plan = assembled(cmtkd, networks, feature="lattice", gamma=3.0, alpha=0.0, mutual="none")
    total, outputs = backward(parts, plan)
    expected = 0.0
    for stage in ("layer1", "layer2"):
        rounded = parts.networks["student"].rounded(stage, outputs[Tap(SHARED, stage)])
        assert not torch.equal(rounded, outputs[Tap(SHARED, stage)]) and len(rounded.unique()) <= 4
        expected += 3.0 * F.mse_loss(outputs[Tap("student", stage)], rounded).item()
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_the_lattice_needs_one_shape(refused: Refused) -> None:
    networks = {"student": staged(0), "t0": staged(1, width=8)}
    with refused(PlanError, "match.lattice-of-other-shape"):
        assembled(cmtkd, networks, feature="lattice")


def test_the_sum_of_attention_is_the_mean_times_the_positions() -> None:
    student, teacher = torch.randn(2, 3, 5, 4), torch.randn(2, 6, 5, 4)
    mean, total = (attention_distance(student, teacher, reduction=r) for r in ("mean", "sum"))  # type: ignore[arg-type]
    assert total.item() == pytest.approx(20 * mean.item(), rel=1e-5) and 0 < total < 2
    weight = {r: company(reduction=r)[1].phases[0].steps[0].terms[-1].weight_at(0.0) for r in ("mean", "sum", "norm")}
    assert weight == {"mean": 100.0, "sum": 0.1, "norm": 100.0}


def test_teachers_grow_together_before_the_student_joins() -> None:
    parts, plan = company(prepare=0.3, teach="each", prepare_mutual=0.5, temperature=2.0)
    before, together = plan.phases
    assert (before.name, before.share, together.name, together.share) == ("teachers", 0.3, "train", 0.7)
    assert networks_needed(plan, before.steps[0]) == set(TEACHERS)
    assert {*TEACHERS, "exchange"} == before.parts
    total, outputs = backward(parts, plan)
    logits = [outputs[Tap(teacher)] for teacher in TEACHERS]
    target = torch.stack([z - z[torch.arange(6), batch().labels][:, None] for z in logits]).amin(0)
    expected = sum(F.cross_entropy(z, batch().labels) + 0.5 * kl_divergence(z, target, temperature=2.0) for z in logits)
    assert isinstance(expected, Tensor) and total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts.exchange.importance["layer1"].grad is not None


def test_prepared_teachers_rest_with_their_exchange_if_frozen() -> None:
    parts, plan = company(prepare=0.5, teachers="frozen")
    assert {str(learner) for learner in plan.phases[0].steps[0].learners} == {*TEACHERS, "exchange.importance"}
    assert plan.phases[1].parts == {"student"} and "student" in learners_of(plan)
    assert {str(tap) for tap in cacheable_taps(plan, plan.phases[1])} == {
        "shared.layer1",
        "shared.layer2",
        "shared.logits",
    }
    assert cacheable_taps(plan, plan.phases[0]) == set()
    backward(parts, plan, phase=1)
    assert all(p.grad is None for teacher in TEACHERS for p in parts.networks[teacher].parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"combined": "weighted", "importance": "uniform"},
        {"prepare": 0.5, "teachers": "frozen", "feature_gradient": "both"},
    ],
    ids=str,
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], refused: Refused) -> None:
    with refused(PlanError, "method.option-without-effect"):
        company(**options)


def test_one_teacher_has_nobody_to_learn_from_alone(refused: Refused) -> None:
    with refused(PlanError, "method.option-without-effect"):
        company(1, prepare=0.5, prepare_mutual=1.0)


@pytest.mark.parametrize("combined", ["mean", "weighted", "head"])
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("teachers", ["learn", "frozen"])
def test_every_way_of_preparing_teaches_every_learner(combined: str, exchange: bool, teachers: str) -> None:
    """The rehearsal refuses learners without a gradient."""
    networks = {"student": staged(0), "t0": staged(1), "t1": staged(2, width=8)}
    _, plan = assembled(
        cmtkd, networks, prepare=0.5, combined=combined, exchange=exchange, teachers=teachers, teach="each"
    )
    assert [phase.name for phase in plan.phases] == ["teachers", "train"]


def test_prepared_teachers_are_asked_once_and_the_losses_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From scratch, and their importance moves while they grow."""
    method = {
        "name": "cmtkd",
        "prepare": 0.5,
        "teachers": "frozen",
        "importance_optimizer": "adam",
        "importance_rate": 0.05,
    }
    scratch = {"build": "resnet8", "width": 4, "start_from": "scratch"}
    teachers = {"four": {**scratch, "quantize": "w4a4"}, "eight": {**scratch, "quantize": "w8a8"}}
    recipe = recipe_in(tmp_path, method=method, teachers=teachers, train={"epochs": 4, "rate": 0.05})
    once, ever = Run.create(tmp_path / "once"), Run.create(tmp_path / "ever")
    train_recipe(recipe, once, Machine("cpu", threads=1))
    monkeypatch.setattr("qkd.engine.teacher_cache.LIMIT", 0)
    train_recipe(recipe, ever, Machine("cpu", threads=1))
    for found, expected in zip(losses(once)[1:], losses(ever)[1:], strict=True):
        assert found == pytest.approx(expected, rel=1e-3)
    lines = losses(once)[1:]
    assert "train/loss/label/student" not in lines[0] and "train/loss/label/student" in lines[-1]
    assert lines[1]["importance/layer1/four"] != pytest.approx(0.5, abs=0.005)
    assert lines[1]["importance/layer1/four"] == lines[-1]["importance/layer1/four"]
