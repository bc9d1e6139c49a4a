"""Adapters: inserted where shapes differ, announced, trained, and left out of the product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qkd.assembly.assemble import assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.distill.adapters import ShapeAdapter
from qkd.distill.heads import adapt_shapes, pool_to_smallest, trainable
from qkd.distill.taps import Tap
from qkd.errors import PlanError
from qkd.report.describe import describe
from tests.support.ensembles import learners_of
from tests.support.refusals import Refused
from tests.support.tiny_runs import recipe_in

A, B = Tap("student", "layer1"), Tap("teacher", "layer1")


def test_equal_shapes_need_nothing() -> None:
    assert adapt_shapes(A, B, {A: (4, 8, 8), B: (4, 8, 8)}) == (A, B, ())


@pytest.mark.parametrize(
    ("own", "theirs", "words"),
    [
        ((4, 8, 8), (6, 8, 8), ["adapter, 1x1 convolution 4 -> 6"]),
        ((4, 8, 8), (4, 4, 2), ["adapter, pooled to 4x2"]),
        ((4, 4, 4), (4, 8, 8), ["adapter, pooled to 4x4"]),
        ((4, 4, 4), (6, 8, 8), ["adapter, 1x1 convolution 4 -> 6", "adapter, pooled to 4x4"]),
        ((4, 8, 4), (6, 4, 8), ["adapter, pooled to 4x4, 1x1 convolution 4 -> 6", "adapter, pooled to 4x4"]),
    ],
)
def test_what_differs_is_adapted_and_then_equal(
    own: tuple[int, ...], theirs: tuple[int, ...], words: list[str]
) -> None:
    first, second, heads = adapt_shapes(A, B, {A: own, B: theirs})
    assert [head.about for head in heads] == words
    outputs = {A: torch.randn(2, *own), B: torch.randn(2, *theirs)}
    for head in heads:
        outputs |= head(outputs, {})
    assert outputs[first].shape == outputs[second].shape
    assert outputs[second].shape[1] == theirs[0]
    assert trainable(heads) == [head.name for head in heads if "convolution" in head.about]


def test_attention_needs_equal_sizes_alone() -> None:
    assert adapt_shapes(A, B, {A: (4, 8, 8), B: (6, 8, 8)}, channels=False)[2] == ()
    assert trainable(adapt_shapes(A, B, {A: (4, 8, 8), B: (6, 4, 4)}, channels=False)[2]) == []


def test_maps_are_levelled_to_the_smallest() -> None:
    shapes = {A: (4, 8, 6), B: (6, 4, 8)}
    taps, heads = pool_to_smallest([A, B], shapes)
    outputs = {tap: torch.randn(2, *shape) for tap, shape in shapes.items()}
    for head in heads:
        outputs |= head(outputs, {})
    assert [tuple(outputs[tap].shape[2:]) for tap in taps] == [(4, 6), (4, 6)]
    assert pool_to_smallest([A], shapes) == ([A], ())


def test_what_is_no_feature_map_cannot_be_adapted(refused: Refused) -> None:
    with refused(PlanError, "match.shapes-cannot-be-adapted"):
        adapt_shapes(A, B, {A: (4,), B: (8, 4, 4)})
    with refused(PlanError, "match.not-feature-maps"):
        pool_to_smallest([A, B], {A: (4,), B: (8, 4, 4)})


def test_teachers_of_another_shape_are_announced_and_stay_behind(tmp_path: Path) -> None:
    teachers = {name: {"build": "resnet8", "width": 8, "quantize": "w4a4"} for name in ("four", "eight")}
    match = {
        "first": {"student": "layer2", "four": "layer1", "eight": "layer1"},
        "second": {"student": "layer3", "four": "layer3", "eight": "layer3"},
    }
    recipe = recipe_in(tmp_path, method={"name": "cmtkd", "feature": "hint"}, teachers=teachers, match=match)
    assembly = assemble(recipe, spec_of(load_data(recipe)))
    told = describe(recipe, assembly)
    assert "adapt_shared_first_to_student adapter, pooled to 8x8 on shared.first, not in the product" in told
    assert (
        "adapt_student_second_to_shared adapter, 1x1 convolution 16 -> 32 on student.second, not in the product" in told
    )
    assert "adapt_student_second_to_shared" in learners_of(assembly.plan)
    assert "adapt_shared_first_to_student" not in learners_of(assembly.plan)
    assert assembly.product() is assembly.ensemble.networks["student"].network


@pytest.mark.parametrize("own", [(6, 4, 4), (2, 8, 8), (4, 2, 8), (4, 8, 4)])
def test_an_adapter_leads_there_and_back(own: tuple[int, ...]) -> None:
    adapter = ShapeAdapter(own, (4, 4, 4))
    x = torch.randn(2, *own)
    assert adapter.to_common(x).shape == (2, 4, 4, 4)
    assert adapter.to_own(adapter.to_common(x)).shape == x.shape


def test_what_fits_through_an_adapter_comes_back_as_it_was() -> None:
    wider = ShapeAdapter((2, 4, 4), (4, 4, 4))
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(wider.to_own(wider.to_common(x)), x)
    assert str(wider) == "1x1 convolution 2 -> 4"
    larger = ShapeAdapter((4, 2, 2), (4, 4, 4))
    y = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(larger.to_own(larger.to_common(y)), y)
    assert str(larger) == "resized 2x2 -> 4x4" and not any(True for _ in larger.parameters())


def test_views_are_announced(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, method={"name": "kdcl"}, match=[])
    told = describe(recipe, assemble(recipe, spec_of(load_data(recipe))))
    assert "starts from float, seed " in told and ", sees view 3 of 3 of each batch" in told
    same = recipe_in(tmp_path, method={"name": "kdcl", "views": "same"}, match=[])
    assert "sees view" not in describe(same, assemble(same, spec_of(load_data(same))))


def test_adapters_between_teachers_are_announced(tmp_path: Path) -> None:
    teachers = {n: {"build": "resnet8", "width": w, "quantize": "w4a4"} for n, w in (("a", 8), ("b", 4))}
    recipe = recipe_in(tmp_path, method={"name": "cmtkd"}, teachers=teachers)
    assembly = assemble(recipe, spec_of(load_data(recipe)))
    told = describe(recipe, assembly)
    assert "adapter for b: 1x1 convolution 4 -> 8, not in the product" in told
    assert "learners a, b, exchange.adapters, exchange.importance (rate x 0.1)" in told
