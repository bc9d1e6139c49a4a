"""The recipes after the papers: each is assembled, and some are run through, on images that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qkd import recipe as recipes
from qkd.assembly.inputs import load_and_assemble
from qkd.engine.optimizer import rate_at
from tests.support.command_line import qkd
from tests.support.papers import PAPERS

LARGE = "imagenet_alexnet_cmtkd_w2a2"  # its pools want images of 224 pixels


def fake(name: str) -> str:
    size = 224 if name == LARGE else 64 if name.startswith("imagenet") else 32
    return f"data={{name: fake, batch: 8, size: {size}, train: 16, test: 8, classes: 10}}"


def test_there_are_recipes_of_the_papers() -> None:
    assert len(PAPERS) >= 12
    methods = {recipes.load(name, [fake(name)]).method.name for name in PAPERS}
    assert {"cmtkd", "dgkd", "atsc", "simkd", "ffl", "kdcl", "kd", "sqakd"} <= methods


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == LARGE else n for n in PAPERS])
def test_a_recipe_of_a_paper_fits_together(name: str) -> None:
    recipe, assembly = load_and_assemble(name, [fake(name)])
    assert assembly.plan.learners
    assert recipe.train.schedule != "step" or list(recipe.train.milestones) == sorted(recipe.train.milestones)
    assert "torchrun" in recipes.text_of(name) or not name.startswith("imagenet")


def test_the_rate_falls_at_the_milestones() -> None:
    settings = recipes.load("cifar100_resnet18_cmtkd_w2a2", [fake("cifar100")]).train
    rates = [rate_at(epoch / 120, settings, 120) for epoch in (0, 49, 51, 99, 101, 119)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = settings.model_copy(update={"warmup": 20.0, "milestones": (0.5, 0.75)})
    rates = [rate_at(epoch / 100, warm, 100) for epoch in (10, 20, 49, 50, 74, 75)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01])  # of all epochs, those of the warm-up included


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cifar100_alexnet_cmtkd_w2a2", "cifar100_resnet8x4_atsc_w4a4", "imagenet_resnet18_cmtkd_w2a2"]
)
def test_a_recipe_of_a_paper_runs_through(tmp_path: Path, name: str) -> None:
    done = qkd("train", name, fake(name), "--dry-run", "--threads", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["export"]["float_layers"] == []
