"""What a network's entry says about its start: checked with the file it names, each mistake at its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qkd import recipe as recipes
from qkd.assembly.checkpoint_starts import CheckpointStarts
from qkd.assembly.inputs import load_and_assemble
from qkd.engine.device import Machine
from qkd.engine.events import CheckpointLoaded, Event
from qkd.errors import RecipeError
from qkd.networks import NETWORKS
from qkd.pipeline.train import train_recipe
from qkd.storage.run import Run
from tests.support.refusals import Refused

RECIPE = """\
method:   {name: kd}
student:  {build: resnet8, width: 4, quantize: w4a4, start_from: student.pt}
teachers:
  big:
    {build: resnet8, width: 8, start_from: big.pt}
data:     {name: fake, batch: 16, size: 16, train: 64, test: 32, classes: 4}
train:    {epochs: 1, rate: 0.01}
"""


def write(folder: Path, **classes: int) -> str:
    for name, width in (("student", 4), ("big", 8)):
        network = NETWORKS["resnet8"](classes=classes.get(name, 4), width=width)
        torch.save({"model": network.state_dict()}, folder / f"{name}.pt")
    (folder / "kd.yaml").write_text(RECIPE)
    return str(folder / "kd.yaml")


def test_checkpoints_that_do_not_fit_are_all_named_at_their_lines(tmp_path: Path, refused: Refused) -> None:
    with refused(RecipeError, "recipe") as info:
        load_and_assemble(write(tmp_path, student=7, big=9), (), CheckpointStarts())
    assert [(problem.line, problem.key) for problem in info.value.problems] == [
        (2, "student.start_from"),
        (5, "teachers.big.start_from"),
    ]


def test_what_is_taken_is_told_by_check_and_train(tmp_path: Path) -> None:
    starts, told = CheckpointStarts(), list[Event]()
    path = write(tmp_path, big=9)
    recipe, _ = load_and_assemble(path, ["teachers.big.start_head=fresh"], starts)
    said = {"student": "weights at model", "big": "weights at model, left fresh: fc.weight, fc.bias"}
    assert {part: str(loaded) for part, loaded in starts.loaded.items()} == said
    train_recipe(recipe, Run.create(tmp_path / "run"), Machine("cpu", threads=1), max_steps=1, listen=told.append)
    assert {event.part: event.taken for event in told if isinstance(event, CheckpointLoaded)} == said
    assert recipes.load(tmp_path / "run" / "recipe.yaml") == recipe


def test_a_run_refuses_a_checkpoint_before_it_trains_anything(tmp_path: Path) -> None:
    told = list[Event]()
    recipe = recipes.load(write(tmp_path, big=9), ["student.start_from=float"])
    with pytest.raises(RecipeError, match="only fc differs, 9 classes for 4"):
        train_recipe(recipe, Run.create(tmp_path / "run"), Machine("cpu", threads=1), listen=told.append)
    assert told == []


def test_a_fresh_head_depends_on_a_seed(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path), ["student.start_head=fresh", "student.seed=3", "teachers.big.seed=3"])
    assert [problem.key for problem in recipes.warnings(recipe)] == ["teachers.big.seed"]
    assert recipe.student.is_seeded and not recipe.teachers["big"].is_seeded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("student.start_head=frehs", "student.start_head: .*'fresh'"),
        (
            "student={build: 'torchvision:resnet18', weights: DEFAULT}",
            "student.weights: not an option, since nothing is",
        ),
    ],
)
def test_mistakes_about_weights(change: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        recipes.load(write(tmp_path), [change])


def test_a_fresh_head_without_a_checkpoint_and_unread_keywords_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def net(*, classes, **kwargs):\n    return kwargs\n")
    changes: Any = ["student={build: ./net.py:net, depht: 3}", "teachers.big.start_from=float"]
    recipe = recipes.load(write(tmp_path), [*changes, "teachers.big.start_head=fresh"])
    found = {problem.key: problem.message for problem in recipes.warnings(recipe)}
    assert found["student.depht"].startswith("goes into the **kwargs of net.py:net")
    assert found["teachers.big.start_head"].startswith("no effect without a checkpoint")
