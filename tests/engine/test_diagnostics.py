"""A training that breaks down says where it began; broken quantizers are named while there is time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qkd.engine import loop
from qkd.engine.device import Machine
from qkd.engine.diagnostics import first_non_finite_layer
from qkd.engine.events import EpochEnded, Event, QuantizersBroken
from qkd.engine.step import first_non_finite_loss
from qkd.errors import TrainingError
from qkd.pipeline.train import train_recipe
from qkd.quantizers import quantizers
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_runs import recipe_in

ONE = Machine("cpu", threads=1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)).sqrt())


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    network, x = Network(), torch.ones(4, 3)
    with torch.no_grad():
        network.first.weight.fill_(3e38)
    assert first_non_finite_layer(network, lambda: network(x).sum()) == "the output of first (Linear) is not finite"
    with torch.no_grad():
        network.third.bias[0] = float("nan")
    assert first_non_finite_layer(network, lambda: network(x).sum()) == "third.bias is not finite before this step"


def test_the_first_gradient_that_is_not_finite_is_named() -> None:
    network, x = Network(), torch.ones(4, 3)
    with torch.no_grad():
        network.first.weight.zero_()
        network.first.bias.fill_(-1.0)  # the root of zero: its gradient is infinite
    assert first_non_finite_layer(network, lambda: network(x).sum()) == "the gradient behind second is not finite"
    assert first_non_finite_layer(network, lambda: network(x).sum() * float("inf")) == "every layer's output is finite"


def test_a_broken_run_names_layer_and_step_and_keeps_what_was_good(tmp_path: Path, refused: Refused) -> None:
    run = Run.create(tmp_path / "run")
    recipe = recipe_in(tmp_path, method={"name": "qat"}, teachers={}, train={"epochs": 3, "rate": 0.05})

    def break_it(event: Event) -> None:
        if layer is not None and isinstance(event, EpochEnded) and event.metrics["epoch"] == 1:
            layer.weight.data[0] = float("inf")

    begin = loop.Loop.run_phase

    def phase(self: loop.Loop, *arguments: Any, **options: Any) -> None:
        nonlocal layer
        if arguments[0].name != "float":  # a start that is made on the way is left alone
            layer = self.training.ensemble.networks["student"].network.get_submodule("layer1.0.conv1")
        begin(self, *arguments, **options)

    layer: Any = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "run_phase", phase)
        with refused(TrainingError, "training.gradient-not-finite"):
            train_recipe(recipe, run, ONE, listen=break_it)
    kept = run.checkpoints.load("last")
    assert kept is not None
    assert kept["cursor"]["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in kept["parts"].values() if tensor.is_floating_point())
    assert train_recipe(recipe, run, ONE, resume=True).finished


def test_a_step_that_spoils_a_weight_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    real, steps = loop.take_step, []

    def do(training: Any, *arguments: Any, **options: Any) -> Any:
        losses = real(training, *arguments, **options)
        steps.append(0)
        if len(steps) == 4:  # the last of the first epoch: all losses were finite, the gradient was not
            training.ensemble.networks["student"].network.get_submodule("fc").weight.data[0] = float("inf")
        return losses

    monkeypatch.setattr(loop, "take_step", do)
    student = {"build": "resnet8", "width": 4, "quantize": "w2a2", "start_from": "scratch"}
    recipe = recipe_in(tmp_path, method={"name": "qat"}, student=student, teachers={}, match=[])
    run = Run.create(tmp_path / "run")
    with refused(TrainingError, "training.parameter-not-finite"):
        train_recipe(recipe, run, ONE)
    assert [path.name[:15] for path in run.checkpoints.files("last")] == ["last-000000000-"]
    assert not run.checkpoints.files("best")


def test_a_sum_that_is_not_finite_where_every_loss_is_has_a_name(tmp_path: Path) -> None:
    losses = {"a": torch.tensor(3e38), "b": torch.tensor(1.0)}
    assert first_non_finite_loss(losses, losses["a"] * 10) == "weighted sum of losses is inf"
    assert first_non_finite_loss({**losses, "b": torch.tensor(float("nan"))}, losses["a"]) == "loss b is nan"


def test_dead_quantizers_are_heard_of_once_and_stand_in_the_results(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    events: list[Event] = []
    recipe = recipe_in(tmp_path, method={"name": "qat"}, teachers={}, train={"epochs": 3, "rate": 1e-6})
    begin = loop.Loop.run_phase

    def phase(self: loop.Loop, *arguments: Any, **options: Any) -> None:
        cores = dict(quantizers(self.training.ensemble.networks["student"].network))
        cores["layer1.0.relu1"].step.data.mul_(1000)
        begin(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "run_phase", phase)
        result = train_recipe(recipe, run, ONE, listen=events.append)
    (warning,) = [event for event in events if isinstance(event, QuantizersBroken)]
    assert "student.layer1.0.relu1: dead" in warning.lines[0]
    assert "warning: quantizer student.layer1.0.relu1: dead" in str(warning)
    assert result.diagnostics == tuple([line["alarms"] for line in run.metrics() if "alarms" in line][-1])
    assert "student.layer1.0.relu1" in result.diagnostics[0]
