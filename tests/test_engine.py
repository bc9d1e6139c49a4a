"""What the loop can do beside the plain thing: pieces of a batch, averaged weights, phases, costs, precision, compiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qkd.data import Batch
from qkd.engine.average import Average
from qkd.engine.loop import deciding
from qkd.engine.position import order
from qkd.engine.steps import _pieces
from qkd.errors import UsageError
from qkd.evaluate import ece
from qkd.plan import Phase, Plan, Step
from qkd.produce import Machine, produce
from qkd.run import Run
from qkd.terms import label
from tests.test_train import losses, recipe_in

ALONE: dict[str, Any] = {"method": {"name": "qat"}, "teachers": {}, "match": []}


def test_the_order_of_epochs_is_that_of_a_tuples_hash() -> None:
    for numbers in [(0, 0, 0), (0, 1, 7), (12345, 2, 199)]:
        assert order(*numbers) == hash(numbers) % 2**31


def test_pieces_are_the_batch_and_none_is_a_lone_image() -> None:
    batch = Batch(torch.arange(9.0), torch.arange(9), torch.arange(9))
    pieces = list(_pieces(batch, 4))
    assert [len(piece.labels) for piece, _ in pieces] == [3, 3, 3]
    assert sum(share for _, share in pieces) == pytest.approx(1)
    assert [len(piece.labels) for piece, _ in _pieces(batch, 2)] == [5, 4]
    assert [len(piece.labels) for piece, _ in _pieces(batch, 8)] == [2, 2, 2, 2]
    assert list(_pieces(batch, 1)) == [(batch, 1)]


def test_the_average_follows_and_is_put_in_for_a_while() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = Average(layer, 0.5)
    layer.weight.data.fill_(1.0)
    average.update()
    share = 1 - min(0.5, 2 / 11)
    with average.applied():
        assert layer.weight.item() == pytest.approx(share)
        again = Average(layer, 0.5)
    assert layer.weight.item() == 1.0
    again.load(average.state())
    assert again.updates == 1
    assert torch.equal(again.kept["weight"], average.kept["weight"])


def test_calibration_error_by_hand() -> None:
    scores = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]]).log()
    labels = torch.tensor([0, 1, 0, 1])
    # confidence 0.8 twice, right once: 2 x |0.5 - 0.8|; 0.6 twice, right twice: 2 x |1 - 0.6|; over 4 images
    assert ece(scores, labels) == pytest.approx((2 * 0.3 + 2 * 0.4) / 4)
    assert ece(torch.tensor([[100.0, 0.0]]), torch.tensor([0])) == pytest.approx(0, abs=1e-6)


def test_the_best_is_chosen_among_phases_that_come_last_for_the_product() -> None:
    def phase(name: str, *learners: str) -> Phase:
        return Phase(name, (Step(learners, [label("student")]),))

    assert deciding(Plan((phase("a", "student"),))) == 0
    assert deciding(Plan((phase("a", "student"), phase("b", "teacher"), phase("c", "student.logits")))) == 2
    assert deciding(Plan((phase("a", "student"), phase("b", "teacher")))) == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("plain")
    run = Run.create(folder / "plain")
    return run, produce(recipe_in(folder, **ALONE), run, Machine("cpu", threads=1))


def test_the_result_tells_calibration_and_cost(plain: tuple[Run, dict[str, Any]]) -> None:
    result = plain[1]
    assert 0 <= result["ece"] <= 1
    assert result["finished"] is True
    assert result["cost"]["peak_memory_mb"] > 100
    [student] = result["cost"]["participants"].values()
    assert 0 < student["forward_ms"] < student["learn_ms"]
    assert student["parameters"] > 1000


@pytest.mark.parametrize("setting", [{"ema": 0.9}, {"accumulate": 2}])
def test_settings_change_what_they_say(tmp_path: Path, plain: tuple[Run, Any], setting: dict[str, Any]) -> None:
    run = Run.create(tmp_path / "run")
    produce(recipe_in(tmp_path, **ALONE, train={"epochs": 3, "rate": 0.05, **setting}), run, Machine("cpu", threads=1))
    found, expected = losses(run), losses(plain[0])
    if "ema" in setting:  # training is the same, what is deployed is not
        assert [line["train/loss/label/student"] for line in found[1:]] == [
            line["train/loss/label/student"] for line in expected[1:]
        ]
        one, other = run.load_product(), plain[0].load_product()
        assert any(not torch.equal(one[name], other[name]) for name in one if name.endswith("weight"))
    else:
        assert found[1]["train/loss/label/student"] == pytest.approx(expected[1]["train/loss/label/student"], rel=0.2)
        assert found != expected


def test_bf16_trains_to_about_the_same(tmp_path: Path, plain: tuple[Run, Any]) -> None:
    run = Run.create(tmp_path / "run")
    produce(recipe_in(tmp_path, **ALONE), run, Machine("cpu", "bf16", threads=1))
    for found, expected in zip(losses(run)[1:], losses(plain[0])[1:], strict=True):
        assert found["train/loss/label/student"] == pytest.approx(expected["train/loss/label/student"], rel=0.2)


def test_frozen_teachers_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = recipe_in(tmp_path, method={"name": "kd"})
    once, ever = Run.create(tmp_path / "once"), Run.create(tmp_path / "ever")
    produce(frozen, once, Machine("cpu", threads=1))
    monkeypatch.setattr("qkd.engine.known.LIMIT", 0)
    produce(frozen, ever, Machine("cpu", threads=1))
    for found, expected in zip(losses(once)[1:], losses(ever)[1:], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_only_what_stays_the_same_is_worth_knowing(tmp_path: Path) -> None:
    from qkd.assemble import Facts, assemble
    from qkd.engine.known import worth_knowing

    def taps(**method: Any) -> set[str]:
        plan = assemble(recipe_in(tmp_path, method=method), Facts((3, 16, 16), 4)).plan
        return {str(tap) for tap in worth_knowing(plan, plan.phases[0])}

    assert taps(name="kd") == {"four.logits", "eight.logits"}
    assert taps(name="cmtkd") == set()
    assert taps(name="cmtkd", teachers="frozen") == set()  # their features flow on changed


def test_curves_for_tensorboard_or_a_word_that_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qkd.engine.tracking import numbers, tensorboard

    values = {"phase": "train", "epoch": 1, "epochs": 3, "steps": 4, "val/top1": 25.0, "train/loss/label/student": 1}
    assert numbers(values) == {"train/val/top1": 25.0, "train/train/loss/label/student": 1.0}
    written: list[tuple[dict[str, float], int]] = []

    class Logger:
        experiment = None

        def __init__(self, *arguments: Any, **keywords: Any) -> None: ...
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            written.append((metrics, step))

        def save(self) -> None: ...

    monkeypatch.setattr("lightning_fabric.loggers.TensorBoardLogger", Logger)
    heard: list[str] = []
    listen = tensorboard(tmp_path, lambda event, values: heard.append(event))
    listen("epoch", values)
    listen("step", {})
    assert heard == ["epoch", "step"]
    assert written == [(numbers(values), 4)]

    def missing(*arguments: Any, **keywords: Any) -> None:
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr("lightning_fabric.loggers.TensorBoardLogger", missing)
    with pytest.raises(UsageError, match="pip install"):
        tensorboard(tmp_path, listen)


def test_a_machine_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="--device cuda:99"):
        Machine("cuda:99").fabric()


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path: Path, plain: tuple[Run, Any]) -> None:
    events: list[str] = []
    run = Run.create(tmp_path / "run")
    produce(
        recipe_in(tmp_path, **ALONE),
        run,
        Machine("cpu", threads=1, compile="on"),
        listen=lambda event, values: events.append(event),
    )
    assert "compiling" in events
    for found, expected in zip(losses(run)[1:], losses(plain[0])[1:], strict=True):
        assert found["train/loss/label/student"] == pytest.approx(expected["train/loss/label/student"], rel=0.1)


def test_auto_compiles_long_runs_only(tmp_path: Path) -> None:
    from qkd.assemble import assemble
    from qkd.data import load
    from qkd.engine import compiling
    from qkd.engine.train import Training
    from qkd.produce import facts_of

    def training(epochs: int) -> Training:
        recipe = recipe_in(tmp_path, train={"epochs": epochs})
        data = load(recipe.data.name, recipe.data.options)
        assembly = assemble(recipe, facts_of(data))
        return Training(assembly.parts, assembly.plan, data, recipe.train, 16, 0, Machine("cpu").fabric())

    short, long = training(3), training(3_000_000)
    assert compiling.operations(long) == pytest.approx(1e6 * compiling.operations(short))
    assert not compiling.wanted(short, "auto")
    assert compiling.wanted(long, "auto")
    assert compiling.wanted(short, "on")
    assert not compiling.wanted(long, "off")


def test_what_cannot_be_compiled_stays_eager_or_is_refused(tmp_path: Path) -> None:
    from qkd.engine import compiling
    from qkd.errors import TrainingError

    def fail() -> None:
        raise RuntimeError("no C++ compiler\nand more")

    assert compiling.tried(nn.Module(), "auto", fail) == "no C++ compiler"
    with pytest.raises(TrainingError, match="--compile on: RuntimeError: no C\\+\\+ compiler; --compile off"):
        compiling.tried(nn.Module(), "on", fail)
