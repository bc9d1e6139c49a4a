"""A run measures its combined teacher, the gradients of its teachers and its importance, and keeps its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkd.assembly.assemble import assemble
from qkd.pipeline.collaboration import Team, combined_teacher, team_of
from qkd.report.collaboration import sentences
from qkd.storage.predictions import read_predictions
from qkd.tasks.spec import DataSpec
from tests.support.tiny_runs import ALONE, TINY, recipe_in, run_of


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "cmtkd"}, "shared"),
        ({"name": "cmtkd", "target": "combined", "mutual": "student"}, "shared"),
        ({"name": "cmtkd", "combined": "head"}, "combined"),
        ({"name": "kd"}, "mean of teachers"),
        ({"name": "ffcl"}, "fused"),  # whose fused map is no classifier
        ({"name": "dml"}, None),
    ],
)
def test_the_combined_teacher_is_what_a_term_learns_from(
    tmp_path: Path, method: dict[str, Any], expected: str | None
) -> None:
    assembly = assemble(recipe_in(tmp_path, method=method), DataSpec((3, 16, 16), 4))
    team = team_of(assembly.plan, assembly.setup)
    assert (team and team.part) == expected
    assert team is None or {*team.members} - {"student"} == {"eight", "four"}


def test_one_teacher_is_no_team(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, teachers={"four": TINY["teachers"]["four"]})
    assembly = assemble(recipe, DataSpec((3, 16, 16), 4))
    assert team_of(assembly.plan, assembly.setup) is None


def test_it_stands_beside_its_best_member() -> None:
    labels = np.zeros(10, dtype=int)
    classes = {
        "a": np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]),  # 70 %
        "b": np.array([0, 0, 0, 2, 2, 0, 0, 0, 0, 0]),  # 80 %
        "c": np.array([2, 0, 1, 0, 0, 0, 0, 0, 0, 3]),  # 70 %
        "together": np.array([0, 0, 0, 0, 2, 0, 0, 0, 0, 0]),  # 90 %
    }
    found = combined_teacher(Team("together", ("a", "b", "c")), classes, labels)
    assert (found["top1"], found["best_member"], found["best_top1"], found["difference"]) == (90.0, "b", 80.0, 10.0)
    assert found["standard_error"] == pytest.approx(100 * np.std([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]) / 10**0.5, abs=1e-4)
    assert found["disagreement"] == pytest.approx(100 * (0.5 + 0.3 + 0.5) / 3, abs=1e-3)  # a-b, a-c, b-c


def test_a_run_says_whether_its_networks_worked_together(tmp_path: Path) -> None:
    weak = {"name": "cmtkd", "alpha": 0.01, "target": "combined", "mutual": "student", "gamma": 1000}
    run, result = run_of(tmp_path, recipe_in(tmp_path, method=weak))
    assert result.gradients is not None and set(result.gradients) == {"four", "eight"}
    for found in result.gradients.values():
        assert found.hardly_learns and found.beside_student is not None and 0 < found.beside_student < 0.1
        assert found.terms == {"label/shared": 1.0}
    assert result.combined is not None and result.combined.part == "shared"
    assert result.parts is not None and result.combined.top1 == result.parts["shared"]
    assert result.importance_moved is not None and result.importance_moved < 0.01
    assert [line.split(" ")[0] for line in sentences(result)] == ["combined", "gradient", "importance"]
    predictions = read_predictions(run)
    assert 100 * predictions.right.mean() == pytest.approx(result.top1)
    assert len(predictions.labels) == 32
    # an optimizer that divides by the norm makes steps of full size from a small gradient
    adaptive = {**TINY["train"], "optimizer": "adamw", "rate": 0.001, "epochs": 1}
    _, other = run_of(tmp_path, recipe_in(tmp_path, method=weak, train=adaptive), "adamw")
    assert other.gradients is not None and not any(each.hardly_learns for each in other.gradients.values())


def test_a_student_alone_says_nothing(tmp_path: Path) -> None:
    run, result = run_of(tmp_path, recipe_in(tmp_path, **ALONE), max_steps=1)
    assert result.combined is result.gradients is result.importance_moved is None
    assert not {"combined", "gradients", "importance_moved"} & result.to_json().keys()
    assert read_predictions(run).test_set


def test_frozen_teachers_have_no_gradient_and_are_combined_all_the_same(tmp_path: Path) -> None:
    _, result = run_of(tmp_path, recipe_in(tmp_path, method={"name": "kd"}, match=[]), max_steps=1)
    assert result.gradients is result.importance_moved is None
    assert result.combined is not None and result.combined.part == "mean of teachers"
    assert result.parts is not None and "mean of teachers" not in result.parts
