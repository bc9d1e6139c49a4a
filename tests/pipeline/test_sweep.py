"""Sweeps: the grid, what is trained again, failures and launchers. Most runs are replaced by a script."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qkd.cli.sweep import sweep as command
from qkd.errors import QkdError, UsageError
from qkd.pipeline import sweep as sweeping
from qkd.pipeline.launchers import launcher_for
from qkd.pipeline.sweep import Point, axis, points
from tests.support.refusals import Refused
from tests.support.tiny_runs import TINY

ALONE: dict[str, Any] = {"method": {"name": "qat"}, "teachers": {}, "match": [], "train": {"epochs": 1}}


here = partial(sweeping.train, "r.yaml")


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    grid = points(tmp_path, ["train.rate=0.1,0.05", "student.quantize=w2a2,{weights: 2, activations: 4}"], 2)
    assert len(grid) == 8
    assert len({point.folder for point in grid}) == 8
    assert grid[0].changes == ("train.rate=0.1", "student.quantize=w2a2", "seed=0")
    assert grid[-1].changes == ("train.rate=0.05", "student.quantize={weights: 2, activations: 4}", "seed=1")
    assert grid[0].name == "rate=0.1_quantize=w2a2_seed=0"
    assert all(point.folder.parent == tmp_path for point in grid)


def test_names_that_would_be_equal_are_told_apart(tmp_path: Path) -> None:
    assert [point.name for point in points(tmp_path, ["method.kind=a/b,a:b"], None)] == ["000_kind=a-b", "001_kind=a-b"]


@pytest.mark.parametrize("text", ["train.rate", "=1,2", "train.rate=", "train.rate=1,,2", "train.rate=1,1"])
def test_what_is_no_axis_is_refused(text: str, refused: Refused) -> None:
    key = "sweep.value-twice" if text == "train.rate=1,1" else "sweep.no-key-values"
    with refused(UsageError, key):
        axis(text)


def test_an_axis_is_named_once_and_there_is_one(tmp_path: Path, refused: Refused) -> None:
    with refused(UsageError, "sweep.key-twice"):
        points(tmp_path, ["seed=0,1"], 2)
    with refused(UsageError, "sweep.no-axis"):
        points(tmp_path, [], None)


def test_only_what_is_not_finished_is_run_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    calls: list[list[str]] = []

    def run(words: list[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
        calls.append(words[3:])
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir(exist_ok=True)
        if "seed=2" in words:
            return subprocess.CompletedProcess(words, 1, "", "warning: hot\nerror: the loss is nan\n")
        (folder / "result.json").write_text(json.dumps({"finished": True}))
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    grid = points(tmp_path / "sweep", [], 3)
    grid[0].folder.mkdir(parents=True)
    (grid[0].folder / "result.json").write_text(json.dumps({"finished": True}))
    grid[1].folder.mkdir()
    states: dict[str, str] = {}
    failures = sweeping.run_grid(grid, here, jobs=2, listen=lambda point, state: states.update({point.name: state}))
    assert states["seed=0"] == "finished already"
    assert states["seed=1"] == "done"
    assert states["seed=2"].startswith("failed: ")
    assert all(("seed=1" in words) == ("--resume" in words) for words in calls)
    with refused(QkdError, "sweep.failed-runs"):
        sweeping.require(failures)
    calls.clear()
    sweeping.run_grid(grid, here)
    assert len(calls) == 1
    assert "seed=2" in calls[0]


def test_a_mistake_is_found_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = [str(tmp_path / "tiny.yaml"), "--over", "train.rate=0.1,fast", "--out", str(tmp_path / "sweep")]
    done = CliRunner().invoke(command, words)
    assert "train.rate" in str(done.exception)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_sweep_ends_in_a_table_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **ALONE}))
    words = [
        str(tmp_path / "tiny.yaml"),
        "--over",
        "train.rate=0.1,0.05",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "s"),
    ]
    done = CliRunner().invoke(command, [*words, "--jobs", "2", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["changes"] for row in rows] == [["train.rate=0.1"], ["train.rate=0.05"]]
    assert all(row["top1"] is not None for row in rows)
    again = CliRunner().invoke(command, words)
    assert again.exit_code == 0
    assert "finished already" in again.output


def test_a_point_without_a_result_is_not_finished(tmp_path: Path) -> None:
    point = Point(tmp_path, ())
    assert not point.finished
    assert not point.damage
    (tmp_path / "result.json").write_text('{"finished": false}')
    assert not point.finished
    assert not point.damage


@pytest.mark.parametrize("content", ["{half", "[1, 2]", "", "\x00\xff", '"words"'])
def test_a_damaged_result_is_named_and_the_run_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (point,) = points(tmp_path / "sweep", [], 1)
    point.folder.mkdir(parents=True)
    result = point.folder / "result.json"
    result.write_bytes(content.encode("latin-1"))
    assert not point.finished
    assert f"{result}: damaged" in point.damage
    assert sweeping.rows([point]) == []

    def run(words: list[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
        assert "--resume" in words
        result.write_text(json.dumps({"finished": True}))
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    lines: list[str] = []
    assert not sweeping.run_grid([point], here, listen=lambda point, state: lines.append(state))
    assert lines[0].startswith(f"done (before, {result}: damaged")
    assert point.finished


class Calls:
    """A stand-in for a scheduler: it computes here, and records its settings and jobs."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.settings, self.submitted = settings, 0

    def update_parameters(self, **settings: Any) -> None:
        if "queue" in settings:
            raise NameError("unknown argument queue\nmore")
        self.settings |= settings

    def submit(self, function: Any, *arguments: Any) -> Any:
        self.submitted += 1
        value = function(*arguments)
        return types.SimpleNamespace(result=lambda: value)


def scheduler(name: str, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, module = Calls(), types.ModuleType(name)
    if name == "submitit":
        module.AutoExecutor = lambda folder: calls
    else:

        def remote(function: Any) -> Any:
            def options(**settings: Any) -> Any:
                calls.settings |= settings
                return handle

            handle = types.SimpleNamespace(remote=lambda *a: calls.submit(function, *a), options=options)
            return handle

        module.init, module.remote, module.get = (lambda **k: None), remote, (lambda job: job.result())
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_a_scheduler_runs_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls, lines = scheduler(name, monkeypatch), list[list[str]]()

    def run(words: list[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
        lines.append(words)
        if "seed=1" in words:
            raise OSError("node lost\nand more")
        Path(words[words.index("--out") + 1]).mkdir()
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    launch = launcher_for(name, tmp_path, ["num_gpus=1", "fraction=0.5", "partition=long"])
    train = partial(sweeping.train, "r.yaml", launch=launch)
    failures = sweeping.run_grid(points(tmp_path / "s", [], 2), train, jobs=2)
    assert failures == {"seed=1": "OSError: node lost"}
    assert calls.submitted == len(lines) == 2
    assert {"num_gpus": 1, "fraction": 0.5, "partition": "long"}.items() <= calls.settings.items()


def test_what_no_launcher_can_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
        with refused(UsageError, "extra.not-installed"):
            launcher_for(name, tmp_path)
    with refused(UsageError, "launcher.no-settings"):
        launcher_for("local", tmp_path, ["num_gpus=1"])
    scheduler("submitit", monkeypatch)
    with refused(UsageError, "launcher.refused-setting"):
        launcher_for("submitit", tmp_path, ["queue=1"])
    with refused(UsageError, "launcher.no-key-value"):
        launcher_for("ray", tmp_path, ["gpus"])


@pytest.mark.slow
def test_the_real_submitit_takes_a_run(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **ALONE}))
    words = [str(tmp_path / "tiny.yaml"), "--seeds", "1", "--threads", "1", "--out", str(tmp_path / "s"), "--json"]
    done = CliRunner().invoke(command, [*words, "--launcher", "submitit", "--launch-with", "timeout_min=5"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout.splitlines()[-1])["rows"]) == 1
