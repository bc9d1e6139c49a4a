"""Recipes that were stored before two-bit weights had four levels keep three; those written by hand have today's default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qkd import recipe as recipes
from qkd.assembly.inputs import load_data
from qkd.errors import RunError
from qkd.pipeline.reload import reload_product
from qkd.pipeline.resume import refuse_changed
from qkd.quantizers import quantizers
from qkd.report.run_data import levels, scheme_title
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_runs import TINY, recipe_in, run_of


def stored(folder: Path, quantize: Any, *, old: bool, **overrides: Any) -> recipes.Recipe:
    """A recipe as a run folder keeps it, and as an older one did: without the field."""
    student = {**TINY["student"], "quantize": quantize}
    content = yaml.safe_load(recipes.dump(recipe_in(folder, student=student, **overrides)))
    for entry in (content["student"], *content["teachers"].values()):
        if old and entry["quantize"] != "off":
            assert entry["quantize"].pop("weight_levels") == "auto"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return recipes.load(folder / "recipe.yaml")


def test_an_older_run_keeps_its_three_levels_and_a_new_one_its_four(tmp_path: Path) -> None:
    before = stored(tmp_path, "w2a2", old=True).student.quantize
    now = stored(tmp_path, "w2a2", old=False).student.quantize
    assert before is not None and now is not None
    assert (before.weight_levels, before.levels) == ("narrow", 3)
    assert (now.weight_levels, now.levels) == ("auto", 4)


def test_what_was_read_from_an_older_run_is_stored_as_it_was(tmp_path: Path) -> None:
    before = stored(tmp_path, "w2a2", old=True)
    (tmp_path / "again.yaml").write_text(recipes.dump(before))
    assert recipes.load(tmp_path / "again.yaml") == before


@pytest.mark.parametrize(
    "quantize", ["w4a4", {"weights": 2, "activations": 2, "family": "ewgs"}, {"weights": 3, "activations": 2}]
)
def test_schemes_without_a_choice_are_as_before(tmp_path: Path, quantize: Any) -> None:
    assert stored(tmp_path, quantize, old=True).student == stored(tmp_path, quantize, old=False).student


def test_single_layers_of_two_bits_count_too(tmp_path: Path) -> None:
    quantize = {"weights": 4, "activations": 4, "overrides": {"layer1.*": "w2a4"}}
    scheme = stored(tmp_path, quantize, old=True).student.quantize
    assert scheme is not None and scheme.weight_levels == "narrow"


def test_a_report_of_an_older_run_says_three(tmp_path: Path) -> None:
    stored(tmp_path, "w2a2", old=True)
    student = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["student"]
    assert (levels(student), scheme_title(student)) == (3, "w2a2 (3 levels)")
    assert scheme_title({"quantize": "w2a2"}) == "w2a2 (4 levels)"
    assert scheme_title({"quantize": {"weights": 2, "activations": 4}}) == "w2a4 (4 levels)"
    assert (scheme_title({"quantize": "off"}), scheme_title({"quantize": "w4a4"})) == ("float", "w4a4")


def test_levels_without_weights_of_two_bits_are_named(tmp_path: Path) -> None:
    student = {**TINY["student"], "quantize": {"weights": 4, "activations": 4, "weight_levels": "full"}}
    found = [str(problem) for problem in recipes.warnings(recipe_in(tmp_path, student=student))]
    assert [line.partition("student.quantize.")[2] for line in found] == [
        "weight_levels: full has no effect: no weights have 2 bits"
    ]


def test_an_older_run_opens_on_the_grid_it_was_trained_on(tmp_path: Path) -> None:
    student = {**TINY["student"], "quantize": {"weights": 2, "activations": 2, "weight_levels": "narrow"}}
    recipe = recipe_in(
        tmp_path, method={"name": "qat"}, teachers={}, student=student, train={"epochs": 1, "rate": 0.05}
    )
    run, _ = run_of(tmp_path, recipe)
    images = load_data(recipe).test.images[:8].float()
    expected = reload_product(run).product(images)
    path = run.folder / "recipe.yaml"
    text = path.read_text()
    path.write_text("".join(line for line in text.splitlines(True) if "weight_levels" not in line))
    again = reload_product(run)
    assert torch.equal(again.product(images), expected)
    grids = {core.num_levels for name, core in quantizers(again.product) if name.endswith(".weight") and core.bits == 2}
    assert grids == {3}


def test_an_older_run_is_not_gone_on_with_on_four_levels(tmp_path: Path, refused: Refused) -> None:
    run = Run.create(tmp_path / "run")
    before = stored(run.folder, "w2a2", old=True)
    now = recipe_in(tmp_path, student={**TINY["student"], "quantize": "w2a2"})
    refuse_changed(run, before)
    with refused(RunError, "run.recipe-changed"):
        refuse_changed(run, now)
