"""Bits go down by the schedule, ranges stay, a resumed run is the unbroken one, and what is deployed has the bits asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qkd import recipe as recipes
from qkd.engine import loop
from qkd.engine.device import Machine
from qkd.engine.events import BitsLowered, Event
from qkd.errors import PlanError, SchemeError
from qkd.pipeline.reload import reload_product
from qkd.pipeline.train import train_recipe
from qkd.quantizers import Scheme, bit_stages, calibrate, insert, quantizers, set_bit_stage
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_runs import TINY, recipe_in
from tests.support.tiny_wirings import Residual, images, with_statistics

ONE = Machine("cpu", threads=1)
DOWN = {"weights": 2, "activations": 2, "progressive": [8, 4, 2]}


def going_down(folder: Path, **train: Any) -> Any:
    student = {**TINY["student"], "quantize": DOWN}
    return recipe_in(
        folder, method={"name": "qat"}, teachers={}, student=student, train={"epochs": 3, "rate": 0.05, **train}
    )


def bits_in(network: torch.nn.Module) -> set[int]:
    return {core.bits for _, core in quantizers(network)}


def test_ranges_stay_when_bits_go() -> None:
    module = insert(with_statistics(Residual), Scheme(2, 3, progressive=(8, 4, 2), overrides={"layer1.*": "w5a5"}))
    cores = dict(quantizers(module))
    assert bit_stages(module) == 3
    assert cores["layer2.conv1.weight"].bit_schedule == (8, 4, 2)
    assert cores["layer1.conv1.weight"].bit_schedule == (8, 5, 5)
    assert cores["stem.0.weight"].bit_schedule == (8, 8, 8)
    set_bit_stage(module, 0, keep_range=False)
    assert bits_in(module) == {8}
    calibrate(module, [images()])
    before = {name: (core.high - core.low) * core.scale() for name, core in cores.items()}
    assert set_bit_stage(module, 1, keep_range=True)
    assert not set_bit_stage(module, 1, keep_range=True)
    assert cores["layer2.conv1.weight"].bits == 4
    assert set_bit_stage(module, 2, keep_range=True)
    for name, core in cores.items():
        assert torch.allclose((core.high - core.low) * core.scale(), before[name], rtol=1e-5), name
    fresh = dict(quantizers(insert(with_statistics(Residual), Scheme(2, 3, overrides={"layer1.*": "w5a5"}))))
    grids = {name: (c.bits, c.low, c.high, int(c.bit_width)) for name, c in fresh.items()}
    assert {name: (c.bits, c.low, c.high, int(c.bit_width)) for name, c in cores.items()} == grids


@pytest.mark.parametrize("wrong", [(2, 4, 8), (8, 4), (9, 2), (8, True, 2)])
def test_what_is_no_way_down_is_refused(wrong: tuple[int, ...], refused: Refused) -> None:
    with refused(SchemeError, "scheme.progressive-bits"):
        Scheme(2, 2, progressive=wrong)
    with refused(SchemeError, "scheme.progressive-family"):
        Scheme(2, 2, family="pot", progressive=(8, 2))


def test_a_run_too_short_for_its_bits_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(PlanError, "plan.fewer-epochs-than-bits"):
        train_recipe(going_down(tmp_path, epochs=2), Run.create(tmp_path / "run"), ONE)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_bits_go_down_and_the_product_has_those_asked_for(tmp_path: Path, ema: float, monkeypatch: Any) -> None:
    seen = []
    measured = loop.Loop._run_batches

    def batches(self: loop.Loop, *arguments: Any) -> Any:
        seen.append(min(bits_in(self.training.ensemble)))
        return measured(self, *arguments)

    monkeypatch.setattr(loop.Loop, "_run_batches", batches)
    run = Run.create(tmp_path / "run")
    events: list[Event] = []
    recipe = going_down(tmp_path, ema=ema) if ema else going_down(tmp_path)
    result = train_recipe(recipe, run, ONE, listen=events.append)
    assert seen == [8, 4, 2]
    assert sum(isinstance(event, BitsLowered) for event in events) == 2
    assert result.val_top1 == run.metrics()[-1]["val/top1"]  # what had more bits does not count
    finished = reload_product(run)
    assert min(bits_in(finished.product)) == 2
    assert recipes.load(run.folder / "recipe.yaml").student.quantize.progressive == (8, 4, 2)


@pytest.mark.parametrize("steps", [3, 4, 6, 8])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path, steps: int) -> None:
    recipe = going_down(tmp_path)
    whole, broken = Run.create(tmp_path / "whole"), Run.create(tmp_path / "broken")
    train_recipe(recipe, whole, ONE)
    assert train_recipe(recipe, broken, ONE, max_steps=steps).finished is False
    train_recipe(recipe, broken, ONE, resume=True)
    one, two = (run.checkpoints.load("last")["parts"] for run in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)
