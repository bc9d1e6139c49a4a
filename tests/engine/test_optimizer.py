"""Optimizers: fused ones take the steps of plain ones, in whatever layout; groups carry what they should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.engine.optimizer import optimizer_for, set_rate
from qkd.tasks.spec import DataSpec


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
