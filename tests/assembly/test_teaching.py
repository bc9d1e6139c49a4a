"""Before training: the terms whose gradient reaches a teacher, and the networks that begin as copies of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.equal_starts import equal_starts
from qkd.assembly.teaching import reaching_terms
from qkd.report.describe import describe
from qkd.tasks.spec import DataSpec
from tests.support.tiny_runs import TINY, recipe_in


def assembled(folder: Path, **changes: Any) -> tuple[Any, Assembly]:
    recipe = recipe_in(folder, **changes)
    return recipe, assemble(recipe, DataSpec((3, 16, 16), 4))


def reached(folder: Path, **method: Any) -> dict[str, list[str]]:
    _, assembly = assembled(folder, method={"name": "cmtkd", **method})
    found = reaching_terms(assembly, assembly.plan.phases[0].steps[0])
    return {part: [term.name for term in terms] for part, terms in found.items()}


OWN = ["label/student", "imitate/student<ensemble"]
TOGETHER = ["label/shared", "imitate/shared<ensemble"]
FEATURES = ["attention/student.layer1<shared.layer1", "attention/student.layer2<shared.layer2"]


@pytest.mark.parametrize(
    ("method", "of_four"),
    [
        ({}, TOGETHER),
        ({"feature_gradient": "both"}, [*TOGETHER, *FEATURES]),
        ({"mutual": "student"}, TOGETHER[:1]),
        ({"beta": 0.0}, TOGETHER[:1]),  # a term of weight zero teaches nothing
        ({"teachers": "frozen"}, None),
    ],
)
def test_terms_that_reach_a_teacher_are_those_with_a_gradient_there(
    tmp_path: Path, method: dict[str, Any], of_four: list[str] | None
) -> None:
    found = reached(tmp_path, **method)
    assert found.get("four") == found.get("eight") == of_four
    assert set(found["student"]) >= {"label/student", *FEATURES}


def test_looking_changes_nothing(tmp_path: Path) -> None:
    _, assembly = assembled(tmp_path)
    before = {name: tensor.clone() for name, tensor in assembly.ensemble.state_dict().items()}
    torch.manual_seed(0)
    reaching_terms(assembly, assembly.plan.phases[0].steps[0])
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in assembly.ensemble.state_dict().items())


def test_copies_and_what_reaches_them_are_told(tmp_path: Path) -> None:
    teachers = {name: {**entry, "seed": 3} for name, entry in TINY["teachers"].items()}
    recipe, assembly = assembled(tmp_path, teachers=teachers)
    assert [set(group) for group in equal_starts(recipe)] == [{"four", "eight"}]
    text = describe(recipe, assembly)
    assert (
        "equal beginnings  " in text and "four       in phase train from 1 x label/shared, 0.5 x imitate/shared" in text
    )


def test_other_networks_are_no_copies(tmp_path: Path) -> None:
    teachers = {**TINY["teachers"], "wide": {"build": "resnet8", "width": 8, "quantize": "w4a4"}}
    teachers["late"] = {"build": "resnet8", "width": 4, "quantize": "w4a4", "start_from": "scratch"}
    recipe, assembly = assembled(tmp_path, teachers=teachers, match=["layer1"], method={"name": "kd"})
    grouped = {part for group in equal_starts(recipe) for part in group}
    assert not grouped & {"wide", "late"}
    assert "teachers that learn" not in describe(recipe, assembly)
