"""Searches: ranges, proposals, continuing and scores. With Optuna where it is installed, and with a stand-in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qkd.cli.sweep import sweep as command
from qkd.errors import RecipeError, UsageError
from qkd.pipeline.search import Range, parse_range, run_search
from qkd.pipeline.sweep import Point
from tests.support.optuna_stand_in import StandIn
from tests.support.refusals import Refused
from tests.support.tiny_runs import ALONE, TINY


def test_a_range_is_numbers_or_words() -> None:
    assert parse_range("train.rate=0.01:1:log") == Range("train.rate", 0.01, 1.0, log=True)
    assert parse_range("train.rate=0.5:1") == Range("train.rate", 0.5, 1.0)
    assert parse_range("train.epochs=1:8") == Range("train.epochs", 1, 8, whole=True)
    assert parse_range("train.optimizer=sgd, adamw") == Range("train.optimizer", words=("sgd", "adamw"))
    assert parse_range("a=0.1:0.9").written(0.123456789) == "a=0.123457"
    assert parse_range("a=1:9").written(3) == "a=3"


@pytest.mark.parametrize(
    "text", ["a", "a=", "=1:2", "a=1", "a=2:1", "a=x:y", "a=0:1:log", "a=1:2:3", "a=1:2:log:x", "a=b,b"]
)
def test_what_is_no_range_is_refused(text: str, refused: Refused) -> None:
    with refused(UsageError, "search.no-range"):
        parse_range(text)


@pytest.fixture(params=["real", "stand-in"])
def optuna(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "real":
        return pytest.importorskip("optuna")
    monkeypatch.setitem(sys.modules, "optuna", StandIn())
    return sys.modules["optuna"]


def trained(calls: list[str], broken: str = "") -> Callable[[Point], str | None]:
    """A run that is good where the rate is near 0.1."""

    def train(point: Point) -> str | None:
        calls.append(point.name)
        if broken and broken in point.name:
            return "the loss is nan"
        rate = float(point.changes[0].partition("=")[2])
        point.folder.mkdir(parents=True, exist_ok=True)
        result = {"finished": True, "val_top1": 100 - abs(rate - 0.1)}
        (point.folder / "result.json").write_text(json.dumps(result))
        return None

    return train


def nothing_wrong(point: Point) -> None:
    pass


RANGES = [Range("train.rate", 0.01, 1.0, log=True), Range("train.optimizer", words=("sgd", "adamw"))]


def test_a_search_is_continued_to_the_number_of_trials(tmp_path: Path, optuna: Any, refused: Refused) -> None:
    calls: list[str] = []
    lines: list[str] = []
    found, failures = run_search(
        tmp_path,
        RANGES,
        4,
        trained(calls),
        check=nothing_wrong,
        jobs=2,
        listen=lambda point, state: lines.append(state),
    )
    assert not failures
    assert len(lines) == 4
    assert 1 <= len(found) <= 4
    assert all(point.finished and point.folder.parent == tmp_path for point in found)
    scores = [point.result().val_top1 or 0 for point in found]
    assert scores == sorted(scores, reverse=True)
    again, _ = run_search(tmp_path, RANGES, 4, trained(calls), check=nothing_wrong)
    assert again == found
    before = len(calls)
    run_search(tmp_path, RANGES, 6, trained(calls), check=nothing_wrong)
    assert len(calls) <= before + 2
    with refused(UsageError, "search.other-ranges"):
        run_search(tmp_path, [Range("train.rate", 0.1, 1.0)], 5, trained(calls), check=nothing_wrong)


def test_a_run_without_a_score_is_a_failure_with_a_reason(tmp_path: Path, optuna: Any) -> None:
    def short(point: Point) -> None:
        point.folder.mkdir(parents=True, exist_ok=True)
        (point.folder / "result.json").write_text('{"finished": false, "val_top1": null}')

    _, failures = run_search(tmp_path, RANGES, 1, short, check=nothing_wrong)
    (why,) = failures.values()
    assert "no val_top1" in why


def test_an_interrupted_run_is_trained_first(tmp_path: Path, optuna: Any) -> None:
    class Killed(BaseException):
        pass

    tried: list[Point] = []

    def killed(point: Point) -> str | None:
        tried.append(point)
        raise Killed

    with pytest.raises(Killed):
        run_search(tmp_path, RANGES, 3, killed, check=nothing_wrong)
    calls: list[str] = []
    found, _ = run_search(tmp_path, RANGES, 3, trained(calls), check=nothing_wrong)
    assert calls[0] == tried[0].name
    assert tried[0] in found


def test_what_fails_is_named_and_has_no_result(tmp_path: Path, optuna: Any) -> None:
    found, failures = run_search(tmp_path, RANGES, 2, trained([], broken="rate="), check=nothing_wrong)
    assert not found
    assert set(failures.values()) == {"the loss is nan"}


def test_the_ends_of_a_range_are_checked_before_anything(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **ALONE}))
    for wrong in ("train.rat=0.1:1", "train.ema=0.5:1.5"):
        words = [str(tmp_path / "tiny.yaml"), "--search", wrong, "--trials", "2", "--out", str(tmp_path / "s")]
        done = CliRunner().invoke(command, words)
        assert isinstance(done.exception, RecipeError)
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--search", "train.rate=0.1:1"], "search.without-trials"),
        (["--trials", "3", "--seeds", "2"], "search.without-trials"),
        (["--search", "train.rate=0.1:1", "--trials", "3", "--seeds", "2"], "search.with-a-grid"),
    ],
)
def test_a_search_is_no_grid(tmp_path: Path, words: list[str], key: str, refused: Refused) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **ALONE}))
    with refused(UsageError, key):
        CliRunner().invoke(command, [str(tmp_path / "tiny.yaml"), *words], catch_exceptions=False)


def test_without_optuna_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with refused(UsageError, "extra.not-installed"):
        run_search(tmp_path, RANGES, 1, trained([]), check=nothing_wrong)


@pytest.mark.slow
def test_a_search_ends_in_the_table(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **ALONE}))
    words = [str(tmp_path / "tiny.yaml"), "--search", "train.rate=0.01:0.1:log", "--trials", "2", "--threads", "1"]
    done = CliRunner().invoke(command, [*words, "--out", str(tmp_path / "s"), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 2
    assert all(row["changes"][0].startswith("train.rate=0.0") and row["top1"] is not None for row in rows)
