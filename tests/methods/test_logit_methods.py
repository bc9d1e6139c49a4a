"""The relatives that share logits: each loss written out a second time, options, identities, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.assembly.build import measure_shapes
from qkd.assembly.inputs import load_data, spec_of
from qkd.data import Batch
from qkd.distill.epoch_statistics import Difficulty
from qkd.distill.plan import Learner, Setup, networks_needed
from qkd.distill.taps import Tap
from qkd.engine.device import Machine
from qkd.errors import PlanError
from qkd.export import emit, emulate, predict
from qkd.methods import METHODS
from qkd.pipeline.train import train_recipe
from qkd.quantizers import calibrate
from qkd.recipe import NetworkEntry
from qkd.storage.run import Run
from tests.support.ensembles import (
    FACTS,
    FAKE,
    LABELS,
    STAGES,
    batch,
    ce,
    company,
    first,
    kl,
    learners_of,
    names_of,
    near,
    outcome,
    staged,
)
from tests.support.refusals import Refused


@pytest.mark.parametrize("count", [1, 2])
def test_dml_is_its_equation(count: int) -> None:
    parts, plan = company("dml", *("a", "b")[:count], temperature=2.0, weight=0.7)
    loss, z, _ = outcome(parts, plan, first(plan))
    expected = sum(ce(own) for own in z.values())
    expected += 0.7 / count * sum(kl(z[j], z[i], 2.0) for i in z for j in z if i != j)
    assert loss == near(expected)


def test_dml_in_turn_updates_one_peer_after_the_other() -> None:
    _, plan = company("dml", "a", "b", update="in_turn")
    assert [learners_of(step) for step in plan.phases[0].steps] == [{"student"}, {"a"}, {"b"}]
    assert names_of(plan.phases[0].steps[1]) == {"label/a", "imitate/a<student", "imitate/a<b"}


def test_without_weight_peers_only_see_labels() -> None:
    for method in ("dml", "kdcl"):
        _, plan = company(method, "a", weight=0.0)
        assert names_of(first(plan)) == {"label/student", "label/a"}


@pytest.mark.parametrize("target", ["naive", "linear", "min_logit", "mean"])
def test_kdcl_is_its_equation(target: str) -> None:
    parts, plan = company("kdcl", "a", target=target, temperature=2.0, weight=0.5)
    loss, z, _ = outcome(parts, plan, first(plan))
    both = torch.stack(list(z.values()))
    if target == "mean":
        soft = both.mean(0)
    elif target == "min_logit":
        soft = (both - both.gather(2, LABELS.expand(2, 6)[..., None])).amin(0)
    elif target == "naive":
        better = [int(F.cross_entropy(both[:, i], LABELS[i].expand(2), reduction="none").argmin()) for i in range(6)]
        soft = both[better, torch.arange(6)]
    else:
        tried = [(ce(s * both[0] + (1 - s) * both[1]).item(), s) for s in torch.linspace(0, 1, 10001).tolist()]
        soft = min(tried)[1] * both[0] + (1 - min(tried)[1]) * both[1]
    assert loss == pytest.approx(float(sum(ce(x) + 0.5 * kl(soft, x, 2.0) for x in both)), rel=1e-4)


def test_kdcl_general_weighs_by_the_errors_of_epoch_statistics() -> None:
    parts, plan = company("kdcl", "a", "b", target="general", temperature=2.0)
    (statistics,) = parts.statistics.values()
    assert statistics.weights.tolist() == pytest.approx([1 / 3] * 3)
    generator = torch.Generator().manual_seed(3)
    seen = [[torch.randn(8, 4, generator=generator) * (1 + i) for i in range(3)] for _ in range(2)]
    labels = torch.arange(8) % 4
    for _ in range(2):  # what was gathered before does not count
        statistics.reset()
        for tensors in seen:
            statistics.update(tensors, Batch(tensors[0], labels, torch.arange(8)))
        statistics.compute()
    errors = [torch.cat([t[i] for t in seen]).double().softmax(1) - F.one_hot(labels.repeat(2), 4) for i in range(3)]
    c = torch.tensor([[(errors[i] * errors[j]).mean().item() for j in range(3)] for i in range(3)], dtype=torch.float64)
    c += 0.01 * c.diagonal().mean() * torch.eye(3)
    inverse = torch.linalg.inv(c)
    expected = inverse.sum(1) / inverse.sum()
    torch.testing.assert_close(statistics.weights.double(), expected, rtol=1e-4, atol=1e-5)
    loss, z, _ = outcome(parts, plan, first(plan))
    soft = sum(weight * x for weight, x in zip(expected, z.values(), strict=True))
    assert loss == pytest.approx(float(sum(ce(x) + kl(soft, x, 2.0) for x in z.values())), rel=1e-4)
    kept = {name for name in parts.state_dict() if name.startswith("statistics.")}
    assert kept == {"statistics.error_covariance.weights"}


def test_the_loop_measures_statistics_on_the_validation_split_before_each_epoch(tmp_path: Path) -> None:
    recipe = recipes.load(
        "digits_kdcl_w2a2",
        ["method.target=general", "train.epochs=2", "pretrain.epochs=1", FAKE, "student.width=4"]
        + [f"teachers.{name}={{build: resnet8, width: {width}}}" for name, width in (("four", 4), ("float", 8))],
    )
    run = Run.create(tmp_path / "run")
    train_recipe(recipe, run, Machine("cpu", threads=1))
    kept = run.checkpoints.load("last")
    assert kept is not None
    weights = kept["parts"]["statistics.error_covariance.weights"]
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5) and weights.unique().numel() > 1


def test_sqakd_reads_no_label() -> None:
    parts, plan = company("sqakd", "float", temperature=4.0, alpha=3.0)
    loss, z, outputs = outcome(parts, plan, first(plan))
    assert loss == near(3 * kl(z["float"], z["student"], 4.0))
    other = Batch(batch().images, LABELS.flip(0), batch().ids)
    assert [t(outputs, other).item() for t in first(plan).terms] == [
        t(outputs, batch()).item() for t in first(plan).terms
    ]
    assert learners_of(first(plan)) == {"student"}


def test_sqakd_with_labels_and_features() -> None:
    parts, plan = company("sqakd", "float", gamma=0.2, feature="hint", beta=0.3)
    loss, z, outputs = outcome(parts, plan, first(plan))
    hints = sum((outputs[Tap("student", s)] - outputs[Tap("float", s)]).square().mean() for s in STAGES)
    assert loss == near(0.2 * ce(z["student"]) + kl(z["float"], z["student"], 4.0) + 0.3 * hints.detach())


def test_sqakd_on_the_lattice_puts_both_on_the_students_grid() -> None:
    recipe = recipes.load(
        "digits_sqakd_w2a2",
        ["method.feature=lattice", "match=[layer1, layer2]", "student.width=4", "teachers.float.width=4", FAKE],
    )
    data = load_data(recipe)
    assembly = assemble(recipe, spec_of(data))
    images = next(iter(data.batches("train", 16))).images
    calibrate(assembly.ensemble.networks["student"].network, [images])
    step = first(assembly.plan)
    assembly.ensemble.set_learners(step.learners)
    outputs = assembly.ensemble(images, sorted(networks_needed(assembly.plan, step)))
    for stage in STAGES:
        grid = outputs[Tap("student", stage)].unique()
        rounded = outputs[Tap(f"float_{stage}_on_grid")].unique()
        assert 1 < len(rounded) <= 4 and all(any(torch.isclose(v, g) for g in grid) for v in rounded)
    assert any("on_grid" in name for name in names_of(step))


@pytest.mark.parametrize("name", ["digits_squat_w2a2", "cifar10_squat_w2a2"])
def test_squat_compares_codes_of_one_place_as_shares_of_the_interval(name: str) -> None:
    recipe = recipes.load(name, ["student.width=4", "teachers.float.width=4", FAKE])
    data = load_data(recipe)
    assembly = assemble(recipe, spec_of(data), start=scattered)
    images = next(iter(data.batches("train", 16))).images
    student = assembly.ensemble.networks["student"]
    calibrate(student.network, [images])
    step, (stage,) = first(assembly.plan), assembly.setup.stages
    assert [term.weight for term in step.terms] == [1, 1, 1] and "label/student" in names_of(step)
    assembly.ensemble.set_learners(step.learners)
    outputs = assembly.ensemble(images, sorted(networks_needed(assembly.plan, step)))
    core = student.network.get_submodule(stage).act_quant.core  # type: ignore[union-attr]
    upper = 3 * core.scale().item()  # four levels from zero up
    own, theirs = (outputs[Tap(part, stage)].detach().double() for part in ("student", "float"))
    codes = [torch.round(3 * (x / upper).clamp(0, 1)) for x in (own, theirs)]
    assert all(len(each.unique()) == 4 for each in codes) and not torch.equal(*codes)
    expected = ((codes[0] - codes[1]) / 3).square().mean()
    found = next(term for term in step.terms if term.kind == "hint")(outputs, batch())
    assert found.item() == near(expected)
    found.backward()
    assert student.network.get_submodule(stage.replace("relu1", "conv1")).weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def scattered(part: str, entry: NetworkEntry, network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(len(part))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))


def test_three_phases_are_their_equations() -> None:
    parts, plan = company("three_phase", "t", temperature=3.0, weight=0.6)
    assert [(phase.name, phase.share) for phase in plan.phases] == [
        ("self-studying", 30.0),
        ("co-studying", 100.0),
        ("tutoring", 70.0),
    ]
    steps = [phase.steps[0] for phase in plan.phases]
    assert [learners_of(step) for step in steps] == [{"student"}, {"student", "t"}, {"student"}]
    loss, z, _ = outcome(parts, plan, steps[0])
    assert loss == near(ce(z["student"])) and "t" not in z
    loss, z, _ = outcome(parts, plan, steps[1])
    s, t = z["student"], z["t"]
    assert loss == near(ce(s) + ce(t) + 0.6 * (kl(t, s, 3.0) + kl(s, t, 3.0)))
    loss, z, _ = outcome(parts, plan, steps[2])
    assert loss == near(ce(z["student"]) + 0.6 * kl(z["t"], z["student"], 3.0))


def test_phases_without_a_share_are_left_out(refused: Refused) -> None:
    _, plan = company("three_phase", "t", self_studying=0.0, tutoring=0.0, answer=False, teacher_rate=0.1)
    assert [phase.name for phase in plan.phases] == ["co-studying"] and plan.rates == {Learner("t"): 0.1}
    assert "imitate/t<student" not in names_of(first(plan))
    with refused(PlanError, "method.no-phase-left"):
        company("three_phase", "t", self_studying=0.0, co_studying=0.0, tutoring=0.0)
    schedules = [company("three_phase", "t", schedule=each)[1].one_schedule for each in ("one", "per_phase")]
    assert schedules == [{"student"}, set()]


@pytest.mark.parametrize("scheme", ["a", "b", "c"])
def test_apprentice_is_its_equation(scheme: str) -> None:
    parts, plan = company("apprentice", "t", scheme=scheme, alpha=1.0, beta=0.5, gamma=0.25)
    loss, z, _ = outcome(parts, plan, first(plan))
    s, t = z["student"], z["t"]
    cross = -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()
    assert loss == near((scheme == "a") * ce(t) + 0.5 * ce(s) + 0.25 * cross)
    assert learners_of(first(plan)) == ({"student", "t"} if scheme == "a" else {"student"})


@pytest.mark.parametrize(
    ("scheme", "starts"),
    [
        ("a", {"student": "scratch", "t": "float"}),
        ("b", {"student": "float", "t": "float"}),
        ("c", {"student": "scratch", "t": "float"}),
    ],
)
def test_apprentice_schemes_are_held_to_where_networks_start(
    scheme: str, starts: dict[str, str], refused: Refused
) -> None:
    networks = {"student": staged(0), "t": staged(1)}
    with refused(PlanError, "method.wrong-start"):
        METHODS["apprentice"](Setup("student", ("t",), (), 4, measure_shapes(networks, FACTS), starts), scheme=scheme)


def test_bdkd_is_its_equation_and_moves_both() -> None:
    parts, plan = company("bdkd", "t", temperature=2.0, emphasis=3.0, weight=0.5, regularise=0.25)
    loss, z, _ = outcome(parts, plan, first(plan))
    s, t = z["student"], z["t"]
    p, q = (s / 2).softmax(1), (t / 2).softmax(1)
    forward, reverse = (q * (q / p).log()).sum(1), (p * (p / q).log()).sum(1)
    unsure = -(q * q.log()).sum(1) > -(p * p.log()).sum(1)
    balanced = 4 * torch.where(unsure, 3 * forward + reverse, forward + 3 * reverse).mean()
    assert loss == near(ce(s) + ce(t) + 0.5 * balanced + 0.25 * kl(s, t, 2.0))
    _, plan = company("bdkd", "t", teachers="frozen")
    assert learners_of(first(plan)) == {"student"} and "label/t" not in names_of(first(plan))


def test_peers_are_their_equation() -> None:
    parts, plan = company("peers", "t", "a", "b", temperature=2.0, taught=0.5, shared=0.25)
    loss, z, _ = outcome(parts, plan, first(plan))
    students = [z["student"], z["a"], z["b"]]
    expected = ce(z["t"]) + sum(ce(x) + 0.5 * kl(z["t"], x, 2.0) for x in students)
    expected += 0.25 / 2 * sum(kl(y, x, 2.0) for x in students for y in students if x is not y)
    assert loss == near(expected)


def test_peers_frozen_teacher_and_ablations() -> None:
    _, plan = company("peers", "t", "a", teacher="frozen", shared=0.0)
    assert learners_of(first(plan)) == {"student", "a"} and not any(
        "student<a" in name for name in names_of(first(plan))
    )
    _, plan = company("peers", "t", "a", taught=0.0)
    assert not any(name.endswith("<t") for name in names_of(first(plan)))


def test_the_ensemble_of_peers_is_the_mean_of_the_students() -> None:
    parts, plan = company("peers", "t", "a", product="ensemble")
    product = parts.product(plan).eval()
    parts.eval()
    outputs = parts(batch().images, tuple(parts.networks))
    torch.testing.assert_close(product(batch().images), (outputs[Tap("student")] + outputs[Tap("a")]) / 2)


def test_the_ensemble_of_peers_leaves_as_one_integer_file() -> None:
    bits = {"teacher": "w8a8", "three": "w3a3", "four": "w4a4"}
    tiny = [f"teachers.{name}={{build: resnet8, width: 4, quantize: {scheme}}}" for name, scheme in bits.items()]
    recipe = recipes.load("digits_peers_w2a2", ["method.product=ensemble", FAKE, "student.width=4", *tiny])
    data = load_data(recipe)
    assembly = assemble(recipe, spec_of(data))
    images = next(iter(data.batches("train", 16))).images
    for network in assembly.ensemble.networks.values():
        calibrate(network.network, [images])
    product = assembly.product()
    calibrate(product, [images], under="heads.")
    emitted = emit(product.eval(), data.shape)
    array = images.contiguous().numpy()
    assert emitted.float_layers == () and np.array_equal(predict(emitted.model, array), emulate(emitted.model, array))


@pytest.mark.parametrize("judge", ["smallest", "largest", "student"])
def test_ceskd_gives_each_image_of_a_batch_its_expert(judge: str) -> None:
    parts, plan = company("ceskd", "a", "b", "c", temperature=2.0, soft=0.8, judge=judge, ranking="batch")
    loss, z, _ = outcome(parts, plan, first(plan))
    wrong = -z[{"smallest": "a", "largest": "c", "student": "student"}[judge]].log_softmax(1)[torch.arange(6), LABELS]
    place = {int(image): rank for rank, image in enumerate(wrong.argsort())}
    soft = torch.stack([z["abc"[place[i] // 2]][i] for i in range(6)])
    assert loss == near(0.2 * ce(z["student"]) + 0.8 * kl(soft, z["student"], 2.0))
    assert learners_of(first(plan)) == {"student"}


@pytest.mark.parametrize("judge", ["smallest", "student"])
def test_ceskd_ranks_all_training_images(judge: str) -> None:
    parts, plan = company("ceskd", "a", "b", "c", temperature=2.0, soft=0.8, judge=judge)
    (statistics,) = parts.statistics.values()
    assert statistics.split == "train" and statistics.once is (judge != "student")
    assert statistics.reads == (Tap({"smallest": "a", "student": "student"}[judge]),)
    everything = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(30) % 4
    statistics.reset()
    for ids in torch.arange(30).split(8):
        statistics.update([everything[ids]], Batch(everything[ids], labels[ids], ids))
    statistics.compute()
    wrong = -everything.double().log_softmax(1)[torch.arange(30), labels]
    place = {int(image): rank for rank, image in enumerate(wrong.argsort())}
    loss, z, _ = outcome(parts, plan, first(plan))  # a batch of the images 0..5
    soft = torch.stack([z["abc"[place[i] // 10]][i] for i in range(6)])
    assert loss == near(0.2 * ce(z["student"]) + 0.8 * kl(soft, z["student"], 2.0))
    again, _ = company("ceskd", "a", "b", "c", judge=judge)
    again.load_state_dict(parts.state_dict())
    assert torch.equal(again.statistics["difficulty"].result(), statistics.result())


def test_ceskd_asks_a_judge_that_does_not_learn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"smallest": 0, "student": 0}
    compute_really = Difficulty.compute
    for judge in asked:

        def compute(self: Difficulty, judge: str = judge) -> None:
            asked[judge] += 1
            compute_really(self)

        with monkeypatch.context() as patch:
            patch.setattr(Difficulty, "compute", compute)
            recipe = recipes.load(
                "digits_ceskd_w2a2",
                [f"method.judge={judge}", "train.epochs=3", "pretrain.epochs=1", FAKE, "student.width=4"]
                + [f"teachers.{name}={{build: resnet8, width: 4}}" for name in ("small", "middle", "large")],
            )
            run = Run.create(tmp_path / judge)
            train_recipe(recipe, run, Machine("cpu", threads=1))
        kept = run.checkpoints.load("last")
        assert kept is not None
        assert kept["parts"]["statistics.difficulty._extra_state"].bincount().tolist() == [22, 21, 21]
    assert asked == {"smallest": 1, "student": 3}


def test_ceskd_with_experts_in_the_wrong_order() -> None:
    _, plan = company("ceskd", "a", "b", hardest="smallest")
    assert first(plan).terms[1].reads[1:3] == (Tap("b"), Tap("a"))


def test_plain_kd_is_as_it_always_was() -> None:
    parts, plan = company("kd", "t")
    loss, z, _ = outcome(parts, plan, first(plan))
    assert loss == near(0.1 * ce(z["student"]) + 0.9 * kl(z["t"], z["student"], 4.0)) and plan.heads == ()


@pytest.mark.parametrize("weight", ["confident", "entropy"])
def test_kd_weighs_its_teachers_image_by_image(weight: str) -> None:
    options = {"teachers_weight": weight, "temperature": 2.0, "feature": "hint", "feature_weight": 3.0}
    parts, plan = company("kd", "a", "b", "c", widths={"c": 8}, **options)
    loss, z, outputs = outcome(parts, plan, first(plan))
    p = {name: z[name].softmax(1) for name in "abc"}
    wrong = torch.stack([F.cross_entropy(z[name], LABELS, reduction="none") for name in "abc"])
    entropy = torch.stack([-(each * each.log()).sum(1) for each in p.values()])
    share = (1 - (wrong.softmax(0) if weight == "confident" else entropy / entropy.sum(0))) / 2
    mixture = sum(w[:, None] * (z[name] / 2).softmax(1) for w, name in zip(share, "abc", strict=True))
    expected = 0.1 * ce(z["student"]) + 0.9 * kl(2 * mixture.log(), z["student"], 2.0)  # type: ignore[union-attr]
    for w, name in zip(share, "abc", strict=True):
        for stage in STAGES:
            own = Tap("student", stage) if name != "c" else Tap(f"adapt_student_{stage}_to_c")
            apart = (outputs[own] - outputs[Tap(name, stage)]).detach().double().square().flatten(1).mean(1)
            expected += 3.0 * (3 * w * apart).mean()
    assert loss == near(expected)


def test_the_soft_loss_of_kd_may_fall_over_the_run() -> None:
    parts, plan = company("kd", "t", soft={"from": 0.8, "to": 0.2, "until": 0.5})
    for progress, soft in ((0.0, 0.8), (0.25, 0.5), (0.5, 0.2), (1.0, 0.2)):
        loss, z, _ = outcome(parts, plan, first(plan), progress)
        assert loss == near((1 - soft) * ce(z["student"]) + soft * kl(z["t"], z["student"], 4.0))


MISSING = [
    *(
        (name, (), STAGES, {}, "method.too-few-teachers")
        for name in ("kd", "dml", "kdcl", "sqakd", "three_phase", "apprentice", "bdkd", "dcm", "iakd", "pkt", "dpk")
    ),
    *((name, ("a",), STAGES, {}, "method.too-few-teachers") for name in ("peers", "ceskd")),
    *((name, ("a", "b"), STAGES, {}, "method.too-many-teachers") for name in ("sqakd", "apprentice", "iakd", "dpk")),
    ("pkt", ("a", "b", "c"), STAGES, {}, "method.too-many-teachers"),
    *((name, ("a",), (), {}, "method.needs-matched-layers") for name in ("dcm", "iakd", "pkt", "dpk")),
    ("sqakd", ("a",), (), {"feature": "hint"}, "method.needs-matched-layers"),
    ("kd", ("a",), (), {"feature": "hint"}, "method.needs-matched-layers"),
    ("kd", ("a",), STAGES, {"teachers_weight": "confident"}, "method.nothing-to-weigh"),
    ("kd", ("a", "b"), STAGES, {"teachers_weight": "entropy", "logits": "none"}, "method.nothing-to-weigh"),
]


@pytest.mark.parametrize(("method", "teachers", "stages", "options", "key"), MISSING)
def test_what_is_missing_is_named(
    method: str,
    teachers: tuple[str, ...],
    stages: tuple[str, ...],
    options: dict[str, Any],
    key: str,
    refused: Refused,
) -> None:
    with refused(PlanError, key):
        METHODS[method](Setup("student", teachers, stages, 4, {}), **options)
