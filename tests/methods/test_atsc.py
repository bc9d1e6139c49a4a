"""ATSC and SimKD: the borrowed classifier, the anchor, the second step, and the product they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qkd.distill.plan import Setup
from qkd.distill.taps import Tap
from qkd.errors import PlanError
from qkd.methods.atsc import atsc, simkd
from tests.support.formulas import FACTS, batch, company, cross_entropy, double, network, run
from tests.support.refusals import Refused
from tests.support.tiny_runs import Stop, losses, recipe_in, run_of

RECIPE = {
    "method": {"name": "atsc"},
    "match": ["layer3"],
    "teachers": {
        "float": {"build": "resnet8", "width": 4},
        "eight": {"build": "resnet8", "width": 8, "quantize": "w8a8"},
    },
    "train": {"epochs": 3, "rate": 0.02},
}


def test_first_step_is_the_formula_and_its_anchor_begins_at_zero() -> None:
    parts, plan = company(atsc, ["a", "b"], feature=0.5, anchor=2.0)
    before = {name: p.detach().double().clone() for name, p in parts.networks["a"].network.named_parameters()}
    total, outputs = run(parts, plan, plan.phases[0].steps[0])
    seen = double(outputs)
    apart = [((seen[f"as_{t}.projected"] - seen[f"{t}.layer3"]) ** 2).mean() for t in ("a", "b")]
    assert seen["a.anchor"].item() == seen["b.anchor"].item() == 0.0
    assert total.item() == pytest.approx((0.5 * sum(apart)).item(), rel=1e-5)
    with torch.no_grad():
        for parameter in parts.networks["a"].parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    total, outputs = run(parts, plan, plan.phases[0].steps[0])
    after = {name: p.detach().double() for name, p in parts.networks["a"].network.named_parameters()}
    moved = sum(((after[n] - before[n]) ** 2).sum() for n in before if before[n].dim() > 1 and "fc" not in n)
    seen = double(outputs)
    assert seen["a.anchor"].item() == pytest.approx(moved.item(), rel=1e-4)
    apart = [((seen[f"as_{t}.projected"] - seen[f"{t}.layer3"]) ** 2).mean() for t in ("a", "b")]
    assert total.item() == pytest.approx((0.5 * sum(apart) + 2.0 * moved).item(), rel=1e-4)


def test_the_anchor_can_hold_the_classifier_too() -> None:
    distances = {}
    for anchored in ("backbone", "all"):
        parts, plan = company(atsc, ["a"], anchored=anchored)
        with torch.no_grad():
            parts.networks["a"].network.fc.weight.add_(0.1)
            parts.networks["a"].network.fc.bias.add_(1.0)
        _, outputs = run(parts, plan, plan.phases[0].steps[0])
        distances[anchored] = double(outputs)["a.anchor"].item()
    assert distances == {"backbone": 0.0, "all": pytest.approx(0.01 * 16 * FACTS.classes, rel=1e-4)}


def test_a_phase_begins_with_a_snapshot_of_its_own() -> None:
    parts, plan = company(atsc, ["a"])
    with torch.no_grad():
        parts.networks["a"].network.layer1.get_submodule("0.conv1").weight.add_(0.1)
    assert double(run(parts, plan, plan.phases[0].steps[0])[1])["a.anchor"].item() > 0
    parts.snapshot_regularizers()
    assert double(run(parts, plan, plan.phases[0].steps[0])[1])["a.anchor"].item() == 0


def test_the_features_move_the_teacher_of_atsc_but_not_that_of_simkd() -> None:
    for method, moved in ((atsc, True), (simkd, False)):
        parts, plan = company(method, ["a"])
        run(parts, plan, plan.phases[0].steps[0])[0].backward()
        assert (parts.networks["a"].network.layer1.get_submodule("0.conv1").weight.grad is not None) is moved
        assert parts.networks["a"].network.fc.weight.grad is None
        assert parts.networks["a"].network.training is moved


def test_the_second_step_trains_the_classifier_alone_on_the_labels() -> None:
    parts, plan = company(atsc, ["a", "b"])
    total, outputs = run(parts, plan, plan.phases[0].steps[1])
    seen = double(outputs)
    expected = sum(cross_entropy(seen[f"{t}.logits"], batch().labels) for t in ("a", "b"))
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    total.backward()
    moving = {name for name, p in parts.named_parameters() if p.grad is not None}
    assert moving == {f"networks.{t}.network.fc.{which}" for t in ("a", "b") for which in ("weight", "bias")}
    assert len(company(atsc, ["a"], keep_classifier=False)[1].phases[0].steps) == 1


def test_behind_an_identity_the_teacher_speaks() -> None:
    parts, _ = company(simkd, {"a": network(0)})  # the student's twin
    parts.heads["as_a"].body = nn.Identity()
    parts.eval()
    outputs = parts(batch().images, ("student", "a"))
    assert torch.equal(outputs[Tap("as_a")], outputs[Tap("a")])


@pytest.mark.parametrize("method", [atsc, simkd])
def test_the_product_is_the_mean_over_the_teachers(method: object) -> None:
    parts, plan = company(method, ["a", "b"])  # type: ignore[arg-type]
    parts.eval()
    with torch.no_grad():
        outputs = parts(batch().images, ("student", "a", "b"))
        product = parts.product(plan)
        together = (outputs[Tap("as_a")] + outputs[Tap("as_b")]) / 2
        torch.testing.assert_close(product(batch().images), together)
    kept = set(product.state_dict())
    assert not any("student.network.fc" in name or "a.network.layer" in name for name in kept)
    assert {"networks.a.network.fc.weight", "networks.b.network.fc.bias"} <= kept


def test_maps_of_two_sizes_are_pooled_to_the_smaller() -> None:
    setup = Setup(
        "student", ("a",), ("layer3",), 4, {Tap("student", "layer3"): (16, 8, 8), Tap("a", "layer3"): (32, 4, 4)}
    )
    heads = simkd(setup).heads
    assert [head.about for head in heads] == ["adapter, pooled to 4x4", "projector into the features of a"]
    assert heads[1].reads == (Tap(heads[0].name),)


def test_needs_teachers_and_matched_layers(refused: Refused) -> None:
    with refused(PlanError, "method.too-few-teachers"):
        atsc(Setup("student", (), ("layer3",), 4, {}))
    with refused(PlanError, "method.needs-matched-layers"):
        simkd(Setup("student", ("a",), (), 4, {}))


def test_a_classifier_that_reads_more_than_one_tensor_cannot_be_borrowed(tmp_path: Path, refused: Refused) -> None:
    from qkd.assembly.assemble import assemble
    from qkd.assembly.inputs import load_data, spec_of

    recipe = recipe_in(tmp_path, **RECIPE | {"match": ["layer3.0.conv1"]})
    with refused(PlanError, "match.not-borrowable"):
        assemble(recipe, spec_of(load_data(recipe)))


def test_resumed_in_the_middle_it_is_held_by_the_same_snapshot(tmp_path: Path) -> None:
    from qkd.engine.device import Machine
    from qkd.engine.events import EpochEnded, Event
    from qkd.pipeline.train import train_recipe
    from qkd.storage.run import Run

    recipe = recipe_in(tmp_path, **RECIPE)
    whole, _ = run_of(tmp_path, recipe, "whole")

    def break_off(event: Event) -> None:
        if isinstance(event, EpochEnded) and (event.metrics["phase"], event.metrics["epoch"]) == ("train", 2):
            raise Stop

    broken = Run.create(tmp_path / "broken")
    with pytest.raises(Stop):
        train_recipe(recipe, broken, Machine("cpu", threads=1), listen=break_off)
    train_recipe(recipe, broken, Machine("cpu", threads=1), resume=True)
    assert losses(broken) == losses(whole)
    assert all(line["train/loss/anchor/eight"] > 0 for line in losses(whole) if "train/loss/anchor/eight" in line)
    one, two = whole.load_product(), broken.load_product()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
