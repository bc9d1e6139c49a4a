"""Runs with views of the student: they resume to the same bits, their product is exported, nothing of them is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qkd.engine.device import Machine
from qkd.engine.teacher_cache import build_teacher_cache
from qkd.engine.training_context import Training
from qkd.pipeline.export import export_run
from qkd.pipeline.train import train_recipe
from qkd.storage.checkpoints import LAST
from qkd.storage.results import ExportReport
from qkd.storage.run import Run
from tests.support.tiny_runs import TINY, losses, recipe_in, run_of

ONE = Machine("cpu", threads=1)
SPEQ: dict[str, Any] = {
    "method": {"name": "speq"},
    "teachers": {"finer": {"of": "student", "activations": 8, "share": 0.5}},
    "match": [],
}
PEER: dict[str, Any] = {
    "method": {"name": "dml"},
    "teachers": {
        "four": TINY["teachers"]["four"],
        "mean": {"of": "student", "average": 0.9, "activations": 4, "share": 0.5},
    },
    "match": [],
}


@pytest.mark.parametrize("steps", [0, 6])
@pytest.mark.parametrize("changes", [SPEQ, PEER], ids=["bits", "average"])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path, changes: dict[str, Any], steps: int) -> None:
    recipe = recipe_in(tmp_path, **changes)
    whole, result = run_of(tmp_path, recipe, "whole")
    broken = Run.create(tmp_path / "broken")
    assert train_recipe(recipe, broken, ONE, max_steps=steps).finished is False
    train_recipe(recipe, broken, ONE, resume=True)
    assert losses(broken) == losses(whole)
    expected, found = whole.checkpoints.load(LAST), broken.checkpoints.load(LAST)
    assert expected is not None
    assert found is not None
    assert all(torch.equal(found["parts"][name], tensor) for name, tensor in expected["parts"].items())
    assert result.parts is not None
    assert set(result.parts) == {"student", *changes["teachers"]}


def test_the_average_in_a_checkpoint_is_that_of_the_steps(tmp_path: Path) -> None:
    teachers = {"mean": {"of": "student", "average": 0.5}}
    run, _ = run_of(tmp_path, recipe_in(tmp_path, method={"name": "kd"}, teachers=teachers, match=[]), max_steps=1)
    parts = run.checkpoints.load(LAST)["parts"]
    student, mean = (parts[f"{home}.conv1.weight"] for home in ("networks.student.network", "averages.mean"))
    first, _ = run_of(tmp_path, recipe_in(tmp_path, method={"name": "kd"}, teachers=teachers, match=[]), max_steps=0)
    begun = first.checkpoints.load(LAST)["parts"]["networks.student.network.conv1.weight"]
    assert not torch.equal(begun, student)
    assert torch.allclose(mean, 2 / 11 * begun + 9 / 11 * student, atol=1e-7)  # the decay of the first step


@pytest.mark.parametrize("method", ["kd", "kdcl", "cmtkd"])
def test_an_average_of_the_student_is_a_teacher(tmp_path: Path, method: str) -> None:
    teachers = {"four": TINY["teachers"]["four"], "mean": {"of": "student", "average": 0.9}}
    run, _ = run_of(tmp_path, recipe_in(tmp_path, method={"name": method}, teachers=teachers))
    lines = losses(run)
    assert all(value == value for line in lines for value in line.values())
    assert all(torch.isfinite(tensor).all() for tensor in run.load_product().values() if tensor.is_floating_point())


def test_the_product_is_that_of_the_student_alone_and_is_proven(tmp_path: Path) -> None:
    run, result = run_of(tmp_path, recipe_in(tmp_path, **SPEQ))
    alone, _ = run_of(tmp_path, recipe_in(tmp_path, method={"name": "qat"}, teachers={}, match=[]))
    assert run.load_product().keys() == alone.load_product().keys()
    report = export_run(run)
    assert isinstance(report, ExportReport)
    assert report.top1_onnxruntime == report.top1_emulator
    costs = result.cost.participants
    assert costs["finer"].parameters == 0
    assert costs["finer"].learn_ms is None
    assert costs["finer"].forward_ms > 0


def test_a_view_is_never_cached(tmp_path: Path) -> None:
    from qkd.assembly.assemble import assemble
    from qkd.assembly.inputs import load_data, spec_of
    from qkd.quantizers import disabled

    teachers = {"four": TINY["teachers"]["four"], "mean": {"of": "student", "average": 0.9}}
    settings = {"epochs": 2, "augment": False}
    recipe = recipe_in(tmp_path, method={"name": "kd"}, teachers=teachers, match=[], train=settings)
    images = load_data(recipe)
    assembly = assemble(recipe, spec_of(images))
    training = Training(assembly.ensemble, assembly.plan, images, recipe.train, 16, 0, ONE.fabric())
    with disabled(assembly.ensemble):
        found = build_teacher_cache(training, assembly.ensemble, assembly.plan.phases[0], 2)
    assert found is not None
    assert found.networks == {"four"}
