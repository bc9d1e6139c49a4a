"""Loggers: who is told what, when it is closed, and what is said where a tool is not installed."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from qkd.engine.events import EpochEnded, Event, StepTaken, ignore
from qkd.engine.loggers import LOGGERS, curves, with_loggers
from qkd.errors import UsageError
from tests.support.command_line import qkd
from tests.support.refusals import Refused
from tests.support.tiny_runs import TINY

LINE = {"phase": "train", "epoch": 1, "epochs": 3, "steps": 4, "val/top1": 25.0, "train/loss/label/student": 1}
CURVES = {"train/val/top1": 25.0, "train/train/loss/label/student": 1.0}


class Recorder:
    """Stands in for a library and for what it hands out; remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Recorder:
            self.calls.append((name, *arguments, keywords))
            return self

        return call

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    module: Any = types.ModuleType(request.param)
    module.__getattr__ = recorder.__getattr__
    monkeypatch.setitem(sys.modules, request.param, module)
    return recorder


def test_counters_are_no_curves() -> None:
    assert curves(LINE) == CURVES


@pytest.mark.parametrize(
    ("library", "log", "closed"),
    [("wandb", "log", "finish"), ("mlflow", "log_metrics", "end_run")],
    indirect=["library"],
)
def test_libraries_are_told_every_epoch_and_closed(
    tmp_path: Path, library: Recorder, log: str, closed: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["library"]
    events: list[Event] = []
    given = [EpochEnded(LINE), StepTaken("train", 0.5, 0, 2)]
    with with_loggers([name, name], tmp_path, {"seed": 3, "train": {}}, events.append) as listen:
        for event in given:
            listen(event)
        assert not library.of(closed)
    assert events == given
    assert library.of(log) == [(CURVES, {"step": 4})]
    assert len(library.of(closed)) == 1


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
def test_nothing_is_sent_unless_the_environment_says_so(
    tmp_path: Path, library: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for mode in ("offline", "online"):
        with with_loggers(["wandb"], tmp_path, {"seed": 3}, ignore):
            pass
        [settings] = library.of("init")[-1]
        assert settings["mode"] == mode
        assert settings["config"] == {"seed": 3}
        monkeypatch.setenv("WANDB_MODE", "online")


@pytest.mark.parametrize("library", ["mlflow"], indirect=True)
def test_a_run_that_fails_is_closed_too(tmp_path: Path, library: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ZeroDivisionError), with_loggers(["mlflow"], tmp_path, {"seed": 3, "a": {}}, ignore):
        raise ZeroDivisionError
    assert library.of("end_run") == [({},)]
    assert library.of("log_params") == [({"seed": 3}, {})]
    assert library.of("set_tracking_uri") == [((tmp_path / "mlruns").as_uri(), {})]


def test_tensorboard_through_fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("lightning_fabric.loggers.TensorBoardLogger", lambda *a, **k: recorder)
    with with_loggers(["tensorboard"], tmp_path, {}, ignore) as listen:
        listen(EpochEnded(LINE))
    assert recorder.of("log_metrics") == [(CURVES, {"step": 4})]
    assert recorder.of("finalize") == [("success", {})]


@pytest.mark.parametrize("name", [name for name in LOGGERS if name != "csv"])
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, refused: Refused
) -> None:
    def missing(*arguments: Any, **keywords: Any) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("lightning_fabric.loggers.TensorBoardLogger", missing)
    with (
        refused(UsageError, "extra.not-installed"),
        with_loggers([name], tmp_path, {}, ignore),
    ):
        pass


def test_a_table_of_a_whole_run(tmp_path: Path) -> None:
    alone = {"method": {"name": "qat"}, "teachers": {}, "match": [], "train": {"epochs": 2}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **alone}))
    done = qkd("train", "tiny.yaml", "--threads", "1", "--out", "run", "--logger", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    own = [row for row in rows if row.get("train/val/top1")]
    assert [row["step"] for row in own] == ["4", "8"]
    with with_loggers(["csv"], tmp_path / "run", {}, ignore) as listen:
        listen(EpochEnded(LINE))
    assert (tmp_path / "run" / "csv-2" / "metrics.csv").is_file()


def test_a_missing_tool_ends_the_command_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = qkd("train", "tiny.yaml", "--out", "run", "--logger", "wandb", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: --logger wandb: wandb is not installed" in done.stderr
    assert not (tmp_path / "run").exists()
