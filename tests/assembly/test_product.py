"""The product of several heads: its bits, its grids, its shared weights, and the quantizers that no phase teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.assembly.product import _ends_unsigned, untrained_quantizers
from qkd.distill.heads import Head, mean_of_logits
from qkd.distill.plan import Phase, Plan, Step
from qkd.distill.taps import Tap
from qkd.distill.terms import label
from qkd.quantizers import Scheme, calibrate, insert, quantizers, reestimate_batch_norm
from qkd.tasks.spec import DataSpec
from tests.support.tiny_runs import recipe_in

TEACHERS = {
    "float": {"build": "resnet8", "width": 4},
    "eight": {"build": "resnet8", "width": 8, "quantize": "w8a8"},
}


def assembled(folder: Path, method: str = "simkd", **changes: Any) -> tuple[Assembly, list[torch.Tensor]]:
    recipe = recipe_in(folder, method={"name": method}, **{"teachers": TEACHERS, "match": ["layer3"], **changes})
    data = load_data(recipe)
    assembly = assemble(recipe, spec_of(data))
    images = [batch.images for batch in data.batches("train", 16)]
    for part, network in assembly.ensemble.networks.items():
        if recipe.networks[part].quantize is not None:
            calibrate(network.network, images)
    return assembly, images


def bits(assembly: Assembly) -> dict[str, int]:
    return {name: core.bits for name, core in quantizers(assembly.product())}


def test_the_mean_of_logits_is_exact() -> None:
    head = mean_of_logits("mean", ["a", "b", "c"], 4)
    outputs = {Tap(part): torch.randn(5, 4) for part in "abc"}
    torch.testing.assert_close(head(outputs, {})[Tap("mean")], torch.stack(list(outputs.values())).mean(0))
    assert not head.trainable


def test_a_product_is_made_of_the_heads_that_lead_to_it() -> None:
    def head(name: str, *parts: str) -> Head:
        return Head(name, [Tap(part) for part in parts], nn.Identity())

    heads = (head("a", "student"), head("b", "teacher"), head("c", "a"), head("d", "a", "b"))
    phases = (Phase("train", (Step(["student", "a"], [label("a")]),)),)
    assert [each.name for each in Plan(phases, heads=heads, product="c").deployed()] == ["a", "c"]
    assert Plan(phases, heads=heads).deployed() == ()
    plan = Plan(phases, heads=heads, product="c")
    assert untrained_quantizers(plan, {head.name: head for head in heads}) == ("heads.c.",)


def test_a_projector_has_the_students_bits_and_a_classifier_those_of_a_last_layer(tmp_path: Path) -> None:
    assembly, _ = assembled(tmp_path)
    found = bits(assembly)
    assert {found[f"heads.as_float.body.body.{n}.weight"] for n in (0, 3, 6)} == {2}
    assert {
        found["heads.as_float.body.relu"],
        found["heads.as_float.body.body.2"],
        found["heads.as_float.body.body.5"],
    } == {2}
    assert found["heads.as_float.borrowed.fc.weight"] == found["networks.eight.network.fc.weight"] == 8
    assert found["heads.ensemble.body.body.0.weight"] == 8


def test_a_float_owner_keeps_float_and_shares_its_weights(tmp_path: Path) -> None:
    assembly, _ = assembled(tmp_path)
    owner, borrowed = assembly.ensemble.networks["float"].network, assembly.ensemble.heads["as_float"].borrowed
    assert not list(quantizers(owner))
    assert borrowed.fc.weight is owner.fc.weight
    assert borrowed.fc.bias is owner.fc.bias
    assert assembly.ensemble.heads["as_eight"].borrowed is None


def test_learning_a_head_leaves_the_borrowed_classifier_alone(tmp_path: Path) -> None:
    assembly, _ = assembled(tmp_path)
    assembly.ensemble.set_learners(assembly.plan.phases[0].steps[0].learners)
    moving = {name for name, p in assembly.ensemble.named_parameters() if p.requires_grad}
    assert not any("borrowed" in name or "networks.float" in name or "networks.eight" in name for name in moving)
    assert any(name.startswith("heads.as_float.body") for name in moving)


def test_quantizers_that_no_phase_teaches_follow_and_no_others(tmp_path: Path) -> None:
    assembly, images = assembled(tmp_path)
    product = assembly.product()
    calibrate(product, images, under="heads.")
    under = untrained_quantizers(assembly.plan, assembly.ensemble.heads)
    assert under == ("heads.as_float.borrowed.", "heads.ensemble.")
    before = {name: tensor.clone() for name, tensor in product.state_dict().items()}
    with torch.no_grad():
        for name in ("as_float", "as_eight"):
            assembly.ensemble.heads[name].body.get_submodule("body.7").weight.mul_(5.0)
    before |= {name: tensor.clone() for name, tensor in product.state_dict().items() if name.endswith("7.weight")}
    calibrate(product, images, under=under)
    moved = {name for name, tensor in product.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith(under) for name in moved)


def test_frozen_batch_norms_of_a_borrowed_classifier_stay(tmp_path: Path) -> None:
    assembly, images = assembled(tmp_path, match=["layer2"], teachers={"eight": {**TEACHERS["eight"], "width": 4}})
    product, parts = assembly.product(), assembly.ensemble
    calibrate(product, images, under="heads.")
    before = {name: buffer.clone() for name, buffer in parts.named_buffers()}
    reestimate_batch_norm(product, images, leave=parts.modules_outside(assembly.plan.learners))
    moved = {name for name, buffer in parts.named_buffers() if not torch.equal(buffer, before[name])}
    assert any(name.startswith("networks.student") for name in moved)
    assert any(name.startswith("heads.as_eight.body") for name in moved)
    assert not any(name.startswith("networks.eight") for name in moved)


def test_the_product_is_made_once_and_anew_after_a_move(tmp_path: Path) -> None:
    assembly, _ = assembled(tmp_path, student={"build": "resnet8", "width": 4})
    first = assembly.product()
    assert assembly.product() is first
    assembly.ensemble.to(memory_format=torch.channels_last)
    second = assembly.product()
    assert second is not first
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_tracing_the_product_leaves_everyones_mode(tmp_path: Path) -> None:
    assembly, _ = assembled(tmp_path)
    parts = assembly.ensemble
    parts.set_learners(assembly.plan.phases[0].steps[0].learners)
    modes = {name: module.training for name, module in parts.named_modules()}
    parts._products.clear()
    assembly.product()
    assert {name: module.training for name, module in parts.named_modules()} == modes


@pytest.mark.parametrize("product", ["student", "fused"])
def test_a_fused_product_holds_both_networks(tmp_path: Path, product: str) -> None:
    recipe = recipe_in(
        tmp_path,
        method={"name": "ffl", "product": product},
        teachers={"partner": {"build": "resnet8", "width": 4, "quantize": "w4a4"}},
        match=["layer3"],
    )
    names = set(assemble(recipe, DataSpec((3, 16, 16), 4)).product().state_dict())
    assert any("partner" in name for name in names) is (product == "fused")
    assert not any("partner.network.fc" in name for name in names)


class Sliced(nn.Module):
    """A stage whose result is moved by functions and methods behind the quantizer that it comes from."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation, self.fc = nn.Conv2d(3, 8, 3), activation, nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.max_pool2d(self.activation(self.conv(images))[:, :6].clone(), 2)
        return self.fc(torch.flatten(features, 2).mean(2))


@pytest.mark.parametrize(("activation", "unsigned"), [(nn.ReLU(), True), (nn.LeakyReLU(), False)])
def test_a_head_behind_moves_knows_the_sign_of_what_it_reads(activation: nn.Module, unsigned: bool) -> None:
    module = insert(Sliced(activation), Scheme(4, 4))
    flat = next(node for node in module.graph.nodes if node.target is torch.flatten)
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = (flat,)
    assert _ends_unsigned(module) is unsigned
