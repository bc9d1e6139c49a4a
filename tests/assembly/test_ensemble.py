"""An ensemble works with copies of what its plan holds: a plan stays as it is, and serves any number of ensembles."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from qkd.assembly.build import measure_shapes
from qkd.assembly.ensemble import Ensemble
from qkd.assembly.product import quantized_heads
from qkd.assembly.rehearsal import rehearse
from qkd.distill.plan import Plan, Setup, networks_needed
from qkd.methods import METHODS
from qkd.networks.batch_norm import BatchNorm
from qkd.quantizers import Scheme
from tests.support.ensembles import FACTS, STAGES, batch, learners_of, staged

METHODS_WITH_STATE = [
    ("cmtkd", {}),
    ("kdcl", {"target": "general"}),
    ("ceskd", {}),
    ("atsc", {}),
    ("ffcl", {}),
    ("dpk", {}),
]


def tensors_of(plan: Plan) -> dict[str, torch.Tensor]:
    held: list[nn.Module] = [plan.exchange, *plan.heads, *plan.regularizers, *plan.statistics]
    return {f"{i}.{name}": t for i, module in enumerate(held) for name, t in module.state_dict().items()}


def plan_and_networks(method: str, options: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    count = 1 if method == "dpk" else 2
    networks = {name: staged(seed) for seed, name in enumerate(["student", *"ab"[:count]])}
    torch.manual_seed(0)
    setup = Setup("student", tuple("ab"[:count]), STAGES, FACTS.classes, measure_shapes(networks, FACTS))
    return METHODS[method](setup, **options), networks


@pytest.mark.parametrize(("method", "options"), METHODS_WITH_STATE)
def test_two_ensembles_of_one_plan_do_not_touch_each_other_or_the_plan(method: str, options: dict[str, Any]) -> None:
    plan, networks = plan_and_networks(method, options)
    attributes = [vars(head).copy() for head in plan.heads]
    before = {name: tensor.clone() for name, tensor in tensors_of(plan).items()}
    one, two = (Ensemble(copy.deepcopy(networks), plan) for _ in range(2))
    for ensemble in (one, two):
        rehearse(ensemble, plan, measure_shapes(networks, FACTS), FACTS)
    untouched = {name: tensor.clone() for name, tensor in two.state_dict().items()}
    for step in plan.phases[0].steps:
        one.set_learners(step.learners)
        outputs = one(batch().images, sorted(networks_needed(plan, step)), 0.5)
        sum(term(outputs, batch()) for term in step.terms).backward()
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.sub_(0.1 if parameter.grad is not None else 0.0)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in two.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(plan).items())
    assert [vars(head) for head in plan.heads] == attributes
    assert all(parameter.grad is None for module in (plan.exchange, *plan.heads) for parameter in module.parameters())


def test_quantizing_the_heads_of_a_product_leaves_those_of_the_plan() -> None:
    plan, networks = plan_and_networks("atsc", {})
    before = [(head.body, head.separate_inputs, head.borrowed) for head in plan.heads]
    heads = quantized_heads(plan, networks, Scheme(2, 2))
    assert [(head.body, head.separate_inputs, head.borrowed) for head in plan.heads] == before
    assert heads[plan.product].body is not plan.heads[-1].body


def test_batch_norms_of_heads_are_those_that_ranks_can_share() -> None:
    plan, networks = plan_and_networks("ffcl", {})
    ensemble = Ensemble(networks, plan)
    norms = [m for head in ensemble.heads.values() for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, BatchNorm) for norm in norms)


def test_learners_print_as_addresses() -> None:
    plan, _ = plan_and_networks("cmtkd", {})
    assert learners_of(plan) == {"student", "a", "b", "exchange.importance"}
