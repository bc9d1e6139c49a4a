"""A method in the user's own file, and what methods say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkd.assembly.assemble import assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.cli.ls import methods
from qkd.distill.method_info import MethodInfo, method_info
from qkd.distill.plan import Setup
from qkd.errors import PlanError, RecipeError
from qkd.methods import METHODS
from qkd.pipeline.reload import reload_product
from tests.support.refusals import Refused
from tests.support.tiny_runs import recipe_in, run_of
from tests.support.user_method import MINE


@pytest.fixture
def mine(in_tmp: Path) -> Path:
    (in_tmp / "mine.py").write_text(MINE)
    return in_tmp


def test_it_trains_and_comes_back(mine: Path) -> None:
    recipe = recipe_in(mine, method={"name": "./mine.py:my_method", "weight": 5})
    assert recipe.method.options == {"weight": 5.0}
    run, result = run_of(mine, recipe, max_steps=2)
    assert result.method.endswith("mine.py:my_method")
    losses = {key for line in run.metrics() for key in line if key.startswith("train/loss/")}
    assert losses == {
        "train/loss/label/student",
        "train/loss/attention/student.layer1<eight.layer1",
        "train/loss/attention/student.layer2<eight.layer2",
    }
    assert reload_product(run).product is not None


def test_its_options_are_checked_like_any_others(mine: Path, refused: Refused) -> None:
    with refused(RecipeError, "recipe"):
        recipe_in(mine, method={"name": "./mine.py:my_method", "wieght": 5})
    with refused(RecipeError, "recipe"):
        recipe_in(mine, method={"name": "./mine.py:my_method", "weight": -1})
    with refused(RecipeError, "recipe"):
        recipe_in(mine, method={"name": "./mine.py:my_metod"})


def test_its_needs_are_checked_like_any_others(mine: Path, refused: Refused) -> None:
    recipe = recipe_in(mine, method={"name": "./mine.py:my_method"}, match=[])
    with refused(PlanError, "method.needs-matched-layers"):
        assemble(recipe, spec_of(load_data(recipe)))


@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)", "1 / 0"], ids=["leaves", "fails"])
def test_a_file_that_fails_or_leaves_is_named(in_tmp: Path, text: str, refused: Refused) -> None:
    (in_tmp / "bad.py").write_text(text)
    with refused(RecipeError, "recipe"):
        recipe_in(in_tmp, method={"name": "./bad.py:my_method"})


def test_what_a_file_prints_is_no_part_of_the_output(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "loud.py").write_text(f"print('hello')\n{MINE}")
    recipe_in(mine, method={"name": "./loud.py:my_method"})
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "hello\n")


def test_what_gives_no_plan_is_refused(mine: Path, refused: Refused) -> None:
    recipe = recipe_in(mine, method={"name": "./mine.py:not_a_method"})
    with refused(PlanError, "plan.not-a-plan"):
        assemble(recipe, spec_of(load_data(recipe)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_its_paper_and_its_needs(name: str, refused: Refused) -> None:
    known = method_info(METHODS[name])
    assert known is not None
    assert known.paper
    assert known.year is not None
    if known.teachers:
        with refused(PlanError, "method.too-few-teachers"):
            METHODS[name](Setup("student", (), ("layer1",), 4, {}))
    if known.match:
        with refused(PlanError, "method.needs-matched-layers"):
            METHODS[name](Setup("student", tuple("abc"[: known.teachers]), (), 4, {}))


def test_needs_are_told_in_words() -> None:
    assert MethodInfo("A, 2020", 2, True).needs == "labels, 2+ teachers, matched layers"
    assert MethodInfo("A, 2020", 1, most=1).needs == "labels, 1 teacher"
    assert MethodInfo("A, 2020", 1, most=2).needs == "labels, 1-2 teachers"
    assert MethodInfo("A, 2020, arXiv 1999.00001", 1, labels=False).needs == "1+ teachers"
    assert MethodInfo("A, 2020, arXiv 1999.00001").year == 2020
    assert MethodInfo("", labels=False).needs == "nothing"
    assert {row["name"]: row["needs"] for row in methods()}["simkd"] == "1+ teachers, matched layers"
