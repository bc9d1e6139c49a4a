"""What can be said early is: what export will say of a product before it is trained, and whether training paid."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from qkd import recipe as recipes
from qkd.cli.check import check
from qkd.cli.progress import Reporter
from qkd.cli.train import _print_result as shown
from qkd.engine.device import Machine
from qkd.engine.events import Calibrated, Event, PlanChecked, StepTaken
from qkd.errors import RecipeError, SchemeError
from qkd.pipeline.train import train_recipe
from qkd.storage.results import TrainResult
from qkd.storage.run import Run
from tests.support.refusals import Refused

NETWORKS = """\
import torch
from torch import nn


class Curved(nn.Sequential):
    def __init__(self, classes: int, channels: int):
        curve = nn.SiLU() if self.curved else nn.ReLU()
        layers = nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4), curve, nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

    curved = True


class Straight(Curved):
    curved = False


class Sorted(Straight):
    def forward(self, images):
        return torch.sort(super().forward(images), 1)[0]
"""


def events_of(tmp_path: Path, network: str, *words: str) -> list[Event]:
    """The events of a run in their order."""
    (tmp_path / "mine.py").write_text(NETWORKS)
    drawn = "data={name: fake, batch: 8, size: 16, train: 16, test: 8, classes: 4}"
    student = f"student={{build: {tmp_path}/mine.py:{network}, quantize: {{weights: 4, activations: 4}}}}"
    recipe = recipes.load("digits_qat_w2a2", [student, drawn, "train.epochs=1", "pretrain.epochs=1", *words])
    events: list[Event] = []
    train_recipe(recipe, Run.create(tmp_path / "run"), Machine("cpu", threads=1, compile="off"), listen=events.append)
    return events


def test_layers_that_stay_float_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    first, *others = events_of(tmp_path, "Curved")
    assert isinstance(first, PlanChecked)
    assert any(isinstance(event, StepTaken) for event in others)
    (line,) = first.lines
    assert line.startswith("stays float: 2: onnxruntime has no integer SiLU")


def test_warnings_are_told_without_progress_too(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter(PlanChecked(["stays float: 2: why"]))
    reporter(Calibrated(50.0))
    assert capsys.readouterr().err == "warning: stays float: 2: why\n"


def test_nothing_is_said_of_a_product_that_becomes_integer(tmp_path: Path) -> None:
    assert not any(isinstance(event, PlanChecked) for event in events_of(tmp_path, "Straight"))


def test_a_product_without_exported_form_is_trained_with_a_warning(tmp_path: Path) -> None:
    first = events_of(tmp_path, "Sorted")[0]
    assert isinstance(first, PlanChecked)
    assert first.lines[0].startswith("the product will not be exported: ")
    assert "sort" in first.lines[0]


def test_what_cannot_be_exact_is_not_trained(tmp_path: Path, refused: Refused) -> None:
    exact = "student.quantize={weights: 4, activations: 4, family: pot, exact: true}"
    drawn = "data={name: fake, batch: 8, size: 12, train: 16, test: 8, classes: 4}"
    with refused(SchemeError, "scheme.not-exact"):
        events_of(tmp_path, "Straight", exact, drawn)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "student",
    [
        "{build: ./mine.py:Sorted, quantize: w4a4}",
        "{build: ./mine.py:Straight, quantize: {weights: 4, activations: 4, family: pot, exact: true}}",
    ],
    ids=["no ONNX form", "not exact"],
)
def test_check_says_at_its_line_what_export_would_refuse(in_tmp: Path, student: str, refused: Refused) -> None:
    Path("mine.py").write_text(NETWORKS)
    words = ["digits_qat_w2a2", "data={name: fake, size: 12, classes: 4}", f"student={student}"]
    with refused(RecipeError, "recipe"):
        CliRunner().invoke(check, words, catch_exceptions=False)


@pytest.mark.parametrize(("before", "worse"), [(97.0, True), (95.0, False), (None, False)])
def test_training_that_made_it_worse_is_not_passed_over(
    before: float | None, worse: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    result = TrainResult(run="runs/x", method="qat", top1=96.0, float_top1=None, before_top1=before)
    shown(result)
    said = capsys.readouterr()
    assert ("better before training; lower train.rate" in said.err) is worse
    assert "96.00 % on test" in said.out
