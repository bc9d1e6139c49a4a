"""Dampening: the distance of weights from their own rounding, by arithmetic, and what `train.dampen` adds to a plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.errors import PlanError
from qkd.quantizers import calibrate, compile_cores, dampening_distance, disabled, rounded_layers
from qkd.quantizers.inspection import weights
from tests.support.ensembles import FAKE
from tests.support.refusals import Refused
from tests.support.tiny_runs import ALONE, losses, recipe_in, run_of
from tests.support.tiny_wirings import Residual, images, quantized


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", ["lsq", "ewgs", "hwgq", "pot", "ternary"])
def test_distance_and_gradient_by_arithmetic(family: str, compiled: bool) -> None:
    network = quantized(Residual, "w2a2", family=family)
    compile_cores(network, compiled)
    found = dampening_distance(rounded_layers(network))
    found.backward()
    total = 0.0
    for _, layer in weights(network):
        core = layer.weight_quant.tensor_quant
        with torch.no_grad():
            rounded, scale, *_ = core(layer.weight)
        w, q, s = (t.detach().double().numpy() for t in (layer.weight, rounded, scale))
        inside = np.clip(w, core.low * s, core.high * s)
        total += ((q - inside) ** 2).sum()
        wanted = np.where((w > core.low * s) & (w < core.high * s), 2 * (w - q), 0)
        np.testing.assert_allclose(layer.weight.grad.numpy(), wanted, rtol=1e-4, atol=1e-6)
        assert (wanted != 0).any()
        scales = list(core.parameters())
        assert all(parameter.grad is None for parameter in scales)
    assert found.item() == pytest.approx(total, rel=1e-4)


def test_a_step_along_it_moves_weights_towards_what_they_are_rounded_to() -> None:
    network = quantized(Residual, "w2a2")
    before = dampening_distance(rounded_layers(network))
    before.backward()
    with torch.no_grad():
        for _, layer in weights(network):
            layer.weight -= 0.25 * layer.weight.grad  # half of the way
    assert dampening_distance(rounded_layers(network)).item() == pytest.approx(before.item() / 4, rel=1e-3)


def test_nothing_is_dampened_that_is_not_rounded_or_does_not_learn() -> None:
    network = quantized(Residual, "w2a2")
    with disabled(network):
        assert not dampening_distance(rounded_layers(network)).requires_grad
    network.requires_grad_(False)
    found = dampening_distance(rounded_layers(network))
    assert found.item() == 0 and not found.requires_grad


def plan_of(name: str, *changes: str) -> dict[str, list[str]]:
    """The names of the terms of every step, by phase, with their weights at the end."""
    recipe = recipes.load(name, [FAKE, "train.dampen=0.1", *changes])
    plan = assemble(recipe, spec_of(load_data(recipe))).plan
    return {
        phase.name: [
            f"{term.name} {term.weight_at(0.0):g} {term.weight_at(0.5):g} {term.weight_at(1.0):g}"
            for step in phase.steps
            for term in step.terms
            if term.kind == "dampen"
        ]
        for phase in plan.phases
    }


def test_every_quantized_network_is_dampened_where_it_learns() -> None:
    course = "0 0.05 0.1"
    assert plan_of("digits_kd_w2a2") == {"train": [f"dampen/student {course}"]}
    assert plan_of("digits_takd_w2a2") == {
        "assistant": [f"dampen/assistant {course}"],
        "student": [f"dampen/student {course}"],
    }
    cmtkd = plan_of("digits_cmtkd_w2a2")["train"]
    assert len(cmtkd) == 1 + len(recipes.load("digits_cmtkd_w2a2").teachers)
    both = plan_of("digits_atsc_w2a2")["train"]  # its second step moves a classifier alone; its teacher is anchored too
    assert both == [f"dampen/{part} {course}" for part in ("eight", "student")]


def test_dampening_without_effect_is_refused(refused: Refused) -> None:
    with refused(PlanError, "dampen.nothing-quantized"):
        plan_of("digits_qat_w2a2", "student.quantize=off")
    with refused(PlanError, "dampen.transformed-weights"):
        plan_of("digits_qat_w2a2", "student.quantize={weights: 2, activations: 2, family: dorefa}")


def test_a_float_start_has_nothing_to_dampen(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, pretrain={"epochs": 1, "dampen": 0.1})
    (found,) = recipes.warnings(recipe)
    assert found.key == "pretrain.dampen" and "no effect" in found.message


def test_a_run_with_dampening_says_so_in_its_metrics_and_ends_nearer_to_its_grid(tmp_path: Path) -> None:
    ends = {}
    for dampen in (0.001, 3.0):
        recipe = recipe_in(tmp_path, **ALONE, train={"epochs": 3, "rate": 0.02, "dampen": dampen})
        run, _ = run_of(tmp_path, recipe, str(dampen))
        course = [line["train/loss/dampen/student"] for line in losses(run) if "val/top1" in line]
        assert len(course) == 3 and all(value > 0 for value in course)
        ends[dampen] = course[-1]
    assert ends[3.0] < 0.7 * ends[0.001]


def test_a_calibrated_network_that_was_not_touched_keeps_its_outputs() -> None:
    """Measuring changes nothing."""
    network = quantized(Residual, "w2a2").eval()
    calibrate(network, [images()])
    with torch.no_grad():
        before = network(images())
    dampening_distance(rounded_layers(network))
    with torch.no_grad():
        assert torch.equal(network(images()), before)
