"""Optimizers: fused ones take the steps of plain ones, in whatever layout; groups carry what they should."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.assembly.build import measure_shapes
from qkd.assembly.ensemble import Ensemble
from qkd.assembly.rehearsal import rehearse
from qkd.data.fake import fake
from qkd.distill.plan import Learner, Phase, Plan, Step
from qkd.distill.terms import label
from qkd.engine.device import Machine
from qkd.engine.optimizer import Span, optimizer_for, set_rate, spans
from qkd.engine.step import Action, take_step
from qkd.engine.train import train
from qkd.engine.training_context import Training
from qkd.errors import PlanError
from qkd.recipe.models import Train
from qkd.tasks.spec import DataSpec
from tests.support.ensembles import FACTS, batch, company, staged
from tests.support.refusals import Refused


def built(*words: str) -> Any:
    recipe = recipes.load("digits_qat_w2a2", ["student.width=4", *words])
    return recipe, assemble(recipe, DataSpec((3, 16, 16), 4))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels_last"])
def test_fused_steps_are_those_of_plain_optimizers(kind: str, layout: torch.memory_format) -> None:
    recipe, assembly = built(f"train.optimizer={kind}")
    fused = assembly.ensemble.to(memory_format=layout)
    plain = copy.deepcopy(fused)
    [step] = assembly.plan.phases[0].steps
    pairs = [(fused, False), (plain, True)]
    optimizers = [optimizer_for(step, p, assembly.plan, recipe.train, scaled=scaled) for p, scaled in pairs]
    assert [optimizer.defaults["fused"] for optimizer in optimizers] == [True, None]
    for seed in range(3):
        for parts, optimizer in zip((fused, plain), optimizers, strict=True):
            torch.manual_seed(seed)
            for parameter in parts.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    moved = list(zip(fused.parameters(), plain.parameters(), strict=True))
    assert len(moved) > 20
    for ours, theirs in moved:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_that_a_scaler_unscales_are_left_to_plain_optimizers() -> None:
    """Fabric refuses to clip what a fused optimizer would unscale itself."""
    recipe, assembly = built()
    [step] = assembly.plan.phases[0].steps
    optimizer = optimizer_for(step, assembly.ensemble, assembly.plan, recipe.train, scaled=True)
    assert not optimizer.defaults["fused"]
    assert isinstance(optimizer, torch.optim.SGD)


def test_a_layer_takes_the_short_way_to_the_same_value() -> None:
    from qkd.quantizers import Scheme, calibrate, insert

    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = insert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), Scheme.parse("w2a2"))
    calibrate(network, [images])
    layer = network.get_submodule("2")
    values = layer.weight_quant.tensor_quant(layer.weight)[0]  # type: ignore[union-attr,operator]
    torch.testing.assert_close(layer.weight_quant.tensor_quant.value(layer.weight), values, rtol=0, atol=0)  # type: ignore[union-attr,operator]


OWN = ["method={name: cmtkd, importance_optimizer: adam, importance_rate: 0.03}"]


def collaborating(*words: str) -> Any:
    recipe = recipes.load("digits_cmtkd_w2a2", [*OWN, *words])
    assembly = assemble(recipe, DataSpec((3, 16, 16), 4))
    [step] = assembly.plan.phases[0].steps
    return assembly, optimizer_for(step, assembly.ensemble, assembly.plan, recipe.train)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_a_learner_with_a_rate_of_its_own_is_moved_by_adam_whatever_the_schedule(per: str) -> None:
    assembly, optimizer = collaborating(f"method.importance_per={per}")
    importance = assembly.ensemble.exchange.importance["layer1"]
    for parameter in assembly.ensemble.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    set_rate(optimizer, 1e-9)
    optimizer.step()
    torch.testing.assert_close(
        importance, torch.full_like(importance, -0.03), rtol=0.02, atol=0
    )  # a step has that size
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    every = [id(p) for p in assembly.ensemble.parameters()]
    assert sorted(owned) == sorted(every)


def test_joined_optimizers_go_on_from_a_state() -> None:
    (one, first), (other, second) = collaborating(), collaborating()

    def move(assembly: Any, optimizer: Any, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in assembly.ensemble.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_rate(optimizer, 0.02)
        optimizer.step()

    move(one, first, 0)
    other.ensemble.load_state_dict(one.ensemble.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for pair in ((one, first), (other, second)):
        move(*pair, 1)
    assert all(map(torch.equal, one.ensemble.parameters(), other.ensemble.parameters()))


def test_importance_of_channels_is_not_pulled_to_zero_by_weight_decay() -> None:
    recipe = recipes.load("digits_cmtkd_w2a2", ["method.importance_per=channel", "train.weight_decay=0.1"])
    assembly = assemble(recipe, DataSpec((3, 16, 16), 4))
    [step] = assembly.plan.phases[0].steps
    groups = optimizer_for(step, assembly.ensemble, assembly.plan, recipe.train).param_groups
    importance = {id(p) for p in assembly.ensemble.exchange.importance.values()}
    [found] = [group for group in groups if importance & set(map(id, group["params"]))]
    assert found["weight_decay"] == 0.0 and found["factor"] == 0.1


def moved_by_a_step(clip: float | None, clip_per: str) -> dict[str, torch.Tensor]:
    """How far one step at rate 1, without momentum or decay, moves the parameters of each network: its clipped gradient."""
    parts, plan = company("dml", "peer")
    [step] = plan.phases[0].steps
    settings = Train(epochs=1, rate=1, momentum=0, weight_decay=0, schedule="constant", clip=clip, clip_per=clip_per)
    fabric = Machine("cpu").fabric()
    data: Any = None
    training = Training(parts, plan, data, settings, 6, 0, fabric)
    module = fabric.setup_module(parts)
    optimizer = fabric.setup_optimizers(optimizer_for(step, parts, plan, settings))
    action = Action(step, sorted(parts.networks), optimizer)
    before = {name: flat(network) for name, network in parts.networks.items()}
    parts.set_learners(step.learners)
    take_step(training, module, action, batch(), 0.0, 1, alone=True)
    return {name: before[name] - flat(parts.networks[name]) for name in before}


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in network.parameters()])


def test_gradients_are_clipped_together_or_each_network_by_itself() -> None:
    gradients = moved_by_a_step(None, "step")
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    least = min(norms.values())
    limit = least * 1.01  # above the smaller, below the larger, far below both together
    assert max(norms.values()) > limit
    together = sum(norm**2 for norm in norms.values()) ** 0.5
    for clip_per, share in (
        ("step", {name: limit / together for name in norms}),
        ("network", {name: min(1.0, limit / norm) for name, norm in norms.items()}),
    ):
        moved = moved_by_a_step(limit, clip_per)
        for name in norms:
            torch.testing.assert_close(moved[name], share[name] * gradients[name], rtol=1e-3, atol=1e-5)


def test_decay_is_a_share_for_each_learner() -> None:
    parts, plan = company("ffl", "peer")
    [step] = plan.phases[0].steps
    settings = Train(epochs=1, weight_decay=1e-4)
    groups = optimizer_for(step, parts, plan, settings).param_groups
    found = {(g["part"], round(g["weight_decay"], 9)) for g in groups if any(p.dim() > 1 for p in g["params"])}
    assert found == {("student", 1e-4), ("peer", 1e-4), ("fusion", 1e-5), ("fused", 1e-5)}
    assert {g["weight_decay"] for g in groups if all(p.dim() < 2 for p in g["params"])} == {0.0}
    other = replace(plan, decays={Learner("student", "layer1"): 0.5, Learner("student"): 2.0})
    assert [
        other.decay_of(Learner(*each)) for each in (("student", "layer1"), ("student", "layer2"), ("peer", ""))
    ] == [0.5, 2, 1]


def test_settings_of_parts_that_are_not_there_are_refused(refused: Refused) -> None:
    parts, plan = company("dml", "peer")
    shapes = measure_shapes(dict(parts.networks.items()), FACTS)
    for changes in (
        {"decays": {Learner("peeer"): 2.0}},
        {"rates": {Learner("head"): 2.0}},
        {"one_schedule": frozenset({"us"})},
    ):
        with refused(PlanError, "plan.setting-of-no-part"):
            rehearse(parts, replace(plan, **changes), shapes, FACTS)


def phases_of(*shares: tuple[str, float, tuple[str, ...]], one: frozenset[str]) -> Plan:
    return Plan(
        tuple(Phase(name, (Step(who, [label(part) for part in who]),), share) for name, share, who in shares),
        one_schedule=one,
    )


def test_one_schedule_goes_on_over_the_phases_in_which_a_part_learns() -> None:
    first, second, third = ("a", 1.0, ("student",)), ("b", 1.0, ("teacher",)), ("c", 3.0, ("student", "teacher"))
    plan = phases_of(first, second, third, one=frozenset({"student"}))
    epochs = (2, 2, 6)
    assert [spans(plan, epochs, index) for index in range(3)] == [{"student": Span(0, 8)}, {}, {"student": Span(2, 8)}]
    both = {part: staged(seed) for seed, part in enumerate(("student", "teacher"))}
    settings = Train(epochs=10, rate=0.5, warmup=1, optimizer="sgd")
    parts = Ensemble(both, plan)
    [step] = plan.phases[2].steps
    optimizer = optimizer_for(step, parts, plan, settings)
    action = Action(step, [], optimizer, spans=spans(plan, epochs, 2))
    action.set_rates(settings, 0.25, 6)  # 1.5 of its 6 epochs: for the student 3.5 of 8, for the teacher 1.5 of 6
    rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
    assert rates["student"] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * (3.5 - 1) / (8 - 1))))
    assert rates["teacher"] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * (1.5 - 1) / (6 - 1))))


def test_two_phases_of_one_schedule_are_one_phase() -> None:
    """With all images in every batch their order does not count, so rates and momentum alone decide."""
    data = fake(size=16, train=24, test=8, classes=4)

    def trained(*shares: float, one: bool) -> torch.Tensor:
        who = frozenset({"student"})
        plan = phases_of(
            *((str(n), share, ("student",)) for n, share in enumerate(shares)), one=who if one else frozenset()
        )
        parts = Ensemble({"student": staged(0)}, plan)
        settings = Train(epochs=6, rate=0.1, augment=False, clip=None)
        training = Training(parts, plan, data, settings, len(data.train.labels), 0, Machine("cpu").fabric())
        train(training)
        return flat(parts.networks["student"])

    whole = trained(1.0, one=True)
    same, anew = ((trained(2.0, 1.0, one=one) - whole).norm() for one in (True, False))
    assert same < whole.norm() * 1e-4
    assert anew > 30 * same
