"""The relatives that share features or swap layers: each loss written out a second time, options, identities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.assembly.ensemble import Ensemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.distill.exchange import Swap
from qkd.distill.plan import ADAPTERS
from qkd.distill.relational_losses import alignment, information_flow
from qkd.distill.stages import Staged, cut
from qkd.distill.taps import Outputs, Tap
from qkd.methods import METHODS
from qkd.methods.dpk import PatchMixer
from qkd.networks import NETWORKS
from qkd.quantizers import Scheme, calibrate, insert
from tests.support.ensembles import (
    FACTS,
    FAKE,
    STAGES,
    assembled,
    batch,
    ce,
    company,
    first,
    kl,
    learners_of,
    names_of,
    near,
    outcome,
    quantized,
    staged,
)


def test_dcm_pairs_every_classifier_with_every_other_networks() -> None:
    parts, plan = company("dcm", "t", weight=0.5)
    step = first(plan)
    assert sum(name.startswith("label/") for name in names_of(step)) == 6
    assert sum(name.startswith("imitate/") for name in names_of(step)) == 18
    loss, z, _ = outcome(parts, plan, step)
    own, theirs = ({n: x for n, x in z.items() if n.startswith(part)} for part in ("student", "t"))
    assert len(own) == 3 and set(own) | set(theirs) == set(z)
    dense = sum(kl(u, v, 1.0) + kl(v, u, 1.0) for u in own.values() for v in theirs.values())
    assert loss == near(sum(ce(x) for x in z.values()) + 0.5 * dense)
    assert plan.product == "student"


@pytest.mark.parametrize(("pairs", "count"), [("same_depth", 6), ("logits", 2)])
def test_dcm_ablations_let_fewer_classifiers_meet(pairs: str, count: int) -> None:
    _, plan = company("dcm", "t", pairs=pairs)
    assert sum(name.startswith("imitate/") for name in names_of(first(plan))) == count


def rounding(seed: int, bits: int = 2) -> Staged:
    """A quantized network of four channels."""
    torch.manual_seed(seed)
    module = insert(NETWORKS["resnet8"](classes=FACTS.classes, width=4), Scheme(weights=bits, activations=bits))
    calibrate(module, [batch().images])
    return cut(module, list(STAGES))


def swapped(keep: float, **widths: int) -> tuple[Ensemble, Outputs]:
    parts, plan = company("iakd", "t", schedule="uniform", keep=keep, widths=widths)
    parts.set_learners(first(plan).learners)
    parts.eval()
    return parts, parts(batch().images, ("student", "t"))


def test_iakd_that_keeps_everything_is_the_student() -> None:
    parts, outputs = swapped(1.0)
    torch.testing.assert_close(outputs[Tap("student")], parts.networks["student"](batch().images))


def test_iakd_that_swaps_everything_is_the_teacher_with_the_students_last_stage() -> None:
    parts, outputs = swapped(0.0)
    student, teacher = parts.networks["student"], parts.networks["t"]
    flow: Any = (batch().images,)
    for stage in STAGES:
        flow = teacher.advance(stage, flow)
    torch.testing.assert_close(outputs[Tap("student")], student.advance("logits", flow)[0])
    outputs[Tap("student")].sum().backward()
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("width", [4, 8])
def test_iakd_leaves_a_teacher_that_is_never_given_the_student_as_it_is(width: int) -> None:
    """Whatever grid the student has and whatever adapters lie between them."""
    networks = {"student": rounding(0), "t": staged(1, width)}
    parts, plan = assembled(METHODS["iakd"], networks, schedule="uniform", keep=0.0)
    read: dict[str, torch.Tensor] = {}
    for part, network in parts.networks.items():
        layer = network.network.get_submodule("layer2.0.conv1")
        layer.register_forward_pre_hook(lambda _, inputs, part=part: read.update({part: inputs[0].detach()}))
    parts.set_learners(first(plan).learners)
    outputs = parts(batch().images, ("student", "t"))
    assert len(read["student"].unique()) <= 4 < len(read["t"].unique())
    assert torch.equal(read["t"], outputs[Tap("t", "layer1")])
    assert torch.equal(outputs[Tap("t")], parts.networks["t"](batch().images))


def test_intervention_hands_on_in_one_direction_only() -> None:
    parts, plan = company("iakd", "t", schedule="uniform", keep=1.0, direction="to_student", widths={"t": 8})
    parts.set_learners(first(plan).learners)
    outputs = parts(batch().images, ("student", "t"))
    assert torch.equal(outputs[Tap("t")], parts.networks["t"](batch().images))
    adapter = plan.exchange.adapter(Tap("t", "layer1"))
    assert adapter is not None and not list(adapter.home.parameters())


def test_iakd_with_a_soft_loss_is_its_equation() -> None:
    parts, plan = company("iakd", "t", soft=0.6, temperature=2.0, direction="to_student")
    loss, z, _ = outcome(parts, plan, first(plan))
    assert loss == near(0.4 * ce(z["student"]) + 0.6 * kl(z["t"], z["student"], 2.0))
    _, plan = company("iakd", "t")
    assert names_of(first(plan)) == {"label/student"} and first(plan).terms[0].weight == 1


@pytest.mark.parametrize("name", ["digits_teacher_intervention_w2a2", "cifar10_teacher_intervention_w2a2"])
def test_teacher_intervention_ends_in_the_middle_of_the_run(name: str) -> None:
    recipe = recipes.load(name, [FAKE, "student.width=4", "teachers.float.width=4"])
    assert recipe.student.build == recipe.teachers["float"].build and recipe.teachers["float"].quantize is None
    plan = assemble(recipe, spec_of(load_data(recipe))).plan
    keep = [plan.exchange.metrics(progress)["keep"] for progress in (0.0, 0.25, 0.5, 1.0)]
    assert keep == [0.5, 0.75, 1.0, 1.0] and "imitate/student<float" in names_of(first(plan))


def test_iakd_sends_gradients_through_the_teacher_to_the_student() -> None:
    parts, plan = company("iakd", "t", schedule="uniform", keep=0.0)
    swap = parts.exchange
    assert isinstance(swap, Swap)
    chances = iter((1.0, 0.0))
    swap.keep = lambda progress: next(chances)  # the student's first stage is kept, the second is the teacher's
    parts.set_learners(first(plan).learners)
    parts(batch().images, ("student", "t"))[Tap("student")].sum().backward()
    grads = [m.weight.grad for m in parts.networks["student"].modules_of("layer1") if hasattr(m, "weight")]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def test_iakd_swaps_nothing_in_evaluation() -> None:
    parts, _ = swapped(0.0)
    with torch.no_grad():
        found = parts(batch().images, ("student", "t"))[Tap("student")]
        torch.testing.assert_close(found, parts.networks["student"](batch().images))


@pytest.mark.parametrize(
    ("schedule", "chances"), [("uniform", [0.5, 0.5, 0.5]), ("linear", [0.5, 0.75, 1.0]), ("review", [0.5, 0.5, 1.0])]
)
def test_iakd_draws_by_its_schedule(schedule: str, chances: list[float]) -> None:
    parts, plan = company("iakd", "t", schedule=schedule, keep=0.5)
    for progress, chance in zip((0.0, 0.5, 1.0), chances, strict=True):
        assert plan.exchange.metrics(progress) == {"keep": chance}
    flow = {"student": torch.ones(1), "t": torch.zeros(1)}
    drawn = [plan.exchange("layer1", flow, 1.0, parts.networks)["student"].item() for _ in range(100)]
    assert set(drawn) == ({0.0, 1.0} if schedule == "uniform" else {1.0})


def test_iakd_adapts_widths_with_convolutions_that_learn() -> None:
    parts, plan = company("iakd", "t", schedule="uniform", keep=0.0, widths={"t": 8})
    assert (
        learners_of(first(plan)) == {"student", str(ADAPTERS)} and plan.exchange.adapter(Tap("t", "layer1")) is not None
    )
    outcome(parts, plan, first(plan))
    assert not any(True for _ in company("iakd", "t")[1].exchange.parameters())


def test_pkt_is_its_equation() -> None:
    parts, plan = company("pkt", "t", last=2.0, hidden=50.0, decay=0.5, times=4.0, labels=0.5, strength=10.0)
    loss, z, outputs = outcome(parts, plan, first(plan), progress=0.5)
    flows = [information_flow(outputs[Tap("student", s)], outputs[Tap("t", s)]).item() for s in STAGES]
    assert loss == near(0.5 * ce(z["student"]) + 10 * (50 * 0.5**2 * flows[0] + 2 * flows[1]))


def test_pkt_prepares_the_auxiliary_teacher_first() -> None:
    _, plan = company("pkt", "t", "aux", preparation=0.25, widths={"t": 8})
    assert [(p.name, p.share, learners_of(p.steps[0])) for p in plan.phases] == [
        ("auxiliary", 0.25, {"aux"}),
        ("transfer", 1.0, {"student"}),
    ]
    assert names_of(first(plan)) == {"label/aux", "flow/aux.layer2<t.layer2"}
    assert names_of(plan.phases[1].steps[0]) >= {"flow/student.layer1<aux.layer1", "flow/student.layer2<aux.layer2"}


def test_dpk_is_its_equation_for_a_fixed_prior() -> None:
    parts, plan = company("dpk", "t", beta=2.0, prior=0.5, soft=0.5, widths={"t": 8})
    loss, z, outputs = outcome(parts, plan, first(plan))
    restored = sum((outputs[Tap(f"restore_{s}")] - outputs[Tap("t", s)]).square().mean() for s in STAGES)
    assert loss == near(ce(z["student"]) + 2 * restored.detach() + 0.5 * kl(z["t"], z["student"], 4.0))
    assert set(parts.product(plan).state_dict()) == set(parts.networks["student"].network.state_dict())


def test_the_closer_the_student_the_less_it_is_told() -> None:
    stitch = PatchMixer(3, 3, patch=2)
    teacher = torch.randn(16, 3, 8, 8)
    shares = [
        stitch.mask(teacher + noise * torch.randn_like(teacher), teacher).float().mean() for noise in (0.0, 1.0, 9.0)
    ]
    assert shares[0] < 0.01 < shares[1] < shares[2]
    other = torch.randn(16, 3, 8, 8)
    assert stitch.mask(other, teacher).float().mean().item() == pytest.approx(
        1 - alignment(other, teacher).item(), abs=0.1
    )
    patches = stitch.mask(other, teacher).float().unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.equal(patches.amin((-1, -2)), patches.amax((-1, -2)))


def test_a_stitch_of_all_teacher_or_all_student() -> None:
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 4, 4, requires_grad=True)
    told = PatchMixer(3, 5, patch=2, prior=1.0)
    torch.testing.assert_close(told(student, teacher), told.decode(teacher))
    alone = PatchMixer(3, 5, patch=2, prior=0.0)
    torch.testing.assert_close(alone(student, teacher), alone.decode(alone.align(student)))
    alone(student, teacher).sum().backward()
    assert student.grad is not None and teacher.grad is None


@pytest.mark.parametrize("feature", ["attention", "hint", "similarity", "relational", "contrastive"])
@pytest.mark.parametrize("logits", ["kl", "dkd", "none"])
def test_kd_with_classic_terms_between_different_widths(feature: str, logits: str) -> None:
    parts, plan = company("kd", "t", feature=feature, logits=logits, widths={"t": 8})
    step = first(plan)
    adapters = len(STAGES) if feature in ("hint", "contrastive") else 0
    assert len(plan.heads) == adapters and len(step.learners) == 1 + adapters
    assert sum(name.startswith(feature) for name in names_of(step)) == 2
    assert any(
        name.startswith({"kl": "imitate", "dkd": "decouple", "none": "label"}[logits]) for name in names_of(step)
    )
    weights = {term.name.partition("/")[0]: term.weight for term in step.terms}
    assert weights["label"] == (1.0 if logits == "none" else near(0.1))
    loss, _, _ = outcome(parts, plan, step)
    assert loss > 0


def test_kds_lattice_is_a_hint_behind_the_students_own_quantizer() -> None:
    networks = {"student": quantized(0, 2), "big": staged(1)}
    parts, plan = assembled(METHODS["kd"], networks, feature="lattice", logits="none", feature_weight=2.0)
    loss, logits, outputs = outcome(parts, plan, first(plan))
    expected = float(ce(logits["student"]))
    for stage in STAGES:
        rounded = parts.networks["student"].rounded(stage, outputs[Tap("big", stage)])
        assert len(rounded.unique()) <= 4
        expected += 2.0 * float((outputs[Tap("student", stage)] - rounded).square().mean().detach())
    assert loss == near(expected)


def test_kds_attention_has_the_reduction_that_was_asked_for() -> None:
    _, plan = company("kd", "big", feature="attention")
    weights = [term.weight_at(0.0) for term in first(plan).terms if term.kind == "attention"]
    assert weights == [1000.0, 1000.0]
    parts, plan = company("kd", "big", feature="attention", reduction="sum", logits="none", feature_weight=3.0)
    loss, logits, outputs = outcome(parts, plan, first(plan))
    expected = float(ce(logits["student"]))
    for stage in STAGES:
        maps = [outputs[Tap(part, stage)].double().square().sum(1).flatten(1) for part in ("student", "big")]
        one, other = (m / m.square().sum(1, keepdim=True).sqrt() for m in maps)
        expected += 3.0 * float((one - other).square().sum(1).mean().detach())
    assert loss == near(expected)
