"""Trains a grid of runs of one recipe, each in a process of its own; runs that are finished are not trained again."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkd.errors import QkdError, RunError, UsageError
from qkd.pipeline.launchers import Launch
from qkd.storage.results import ComparedRun, TrainResult
from qkd.storage.run import Run

Listener = Callable[["Point", str], None]  # (point, "finished already" | "done" | "failed: why")


def launch_locally(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder, and its changes of the recipe."""

    folder: Path
    changes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether training ended, and its result can be read."""
        return not self.damage and self.result().finished is not False

    @property
    def damage(self) -> str:
        """What is wrong with the result of the run; empty where it can be read, or is not there yet."""
        try:
            self.result()
        except RunError as error:
            return str(error)
        return ""

    def result(self) -> TrainResult:
        """The result of the run; of a run that is still training, only ``finished`` is known. Raises RunError if damaged."""
        return TrainResult.from_json(Run(self.folder).result())


def axis(text: str) -> tuple[str, tuple[str, ...]]:
    """``a.b=1,2,3`` -> the key and its values; commas inside brackets and braces belong to a value."""
    key, sign, values = text.partition("=")
    found = tuple(value.strip() for value in _split(values))
    if not sign or not key.strip() or not all(found):
        raise UsageError(
            f"--over {text}: expected KEY=VALUE,VALUE,..., for example train.rate=0.1,0.05", key="sweep.no-key-values"
        )
    if len(set(found)) < len(found):
        raise UsageError(f"--over {text}: a value is given twice", key="sweep.value-twice")
    return key.strip(), found


def _split(values: str) -> Iterator[str]:
    depth, word = 0, ""
    for letter in values:
        depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth == 0:
            yield word
            word = ""
        else:
            word += letter
    yield word


def points(out: Path, over: Sequence[str], seeds: int | None) -> list[Point]:
    """The grid; the last axis varies fastest. ``seeds`` adds an axis ``seed``, 0 to ``seeds - 1``. Raises UsageError."""
    axes = [axis(text) for text in over]
    if seeds is not None:
        axes.append(("seed", tuple(map(str, range(seeds)))))
    keys = [key for key, _ in axes]
    if not axes:
        raise UsageError("nothing to sweep over: give --over KEY=VALUE,VALUE or --seeds N", key="sweep.no-axis")
    if len(set(keys)) < len(keys):
        raise UsageError(f"--over names a key twice: {', '.join(keys)}", key="sweep.key-twice")
    grid = [tuple(zip(keys, values, strict=True)) for values in itertools.product(*(values for _, values in axes))]
    changes = [tuple(f"{key}={value}" for key, value in each) for each in grid]
    names = [folder_name(each) for each in changes]
    if len(set(names)) < len(names):
        names = [f"{number:03}_{name}" for number, name in enumerate(names)]
    return [Point(out / name, change) for name, change in zip(names, changes, strict=True)]


def folder_name(changes: Sequence[str]) -> str:
    """The name of the folder of changes: ``a.b=1`` and ``c=2`` give ``b=1_c=2``."""
    pairs = (change.partition("=") for change in changes)
    return "_".join(f"{key.rpartition('.')[2]}={_plain(value)}" for key, _, value in pairs)


def _plain(value: str) -> str:
    """A value as part of the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-")[:60]


def run_grid(
    grid: Sequence[Point],
    train: Callable[[Point], str | None],
    *,
    jobs: int = 1,
    listen: Listener = lambda point, state: None,
) -> dict[str, str]:
    """Train every point that is not finished yet, ``jobs`` at a time. -> the reason of each failure, by name"""

    def work(point: Point) -> tuple[str, str | None]:
        if point.finished:
            listen(point, "finished already")
            return point.name, None
        damage = point.damage
        failure = train(point)
        state = f"failed: {failure}" if failure else "done"
        listen(point, f"{state} (before, {damage})" if damage else state)
        return point.name, failure

    grid[0].folder.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        ends = dict(pool.map(work, grid))
    return {name: failure for name, failure in ends.items() if failure is not None}


def train(
    recipe: str,
    point: Point,
    overrides: Sequence[str] = (),
    options: Sequence[str] = (),
    launch: Launch = launch_locally,
) -> str | None:
    """Train one point, resumed where it stopped. -> its last error, or None where it succeeded

    ``options`` are those of `qkd train`. ``launch``: where it is computed, see `qkd.pipeline.launchers.launcher_for`.
    """
    resume = ["--resume"] if point.folder.is_dir() else []
    words = ["train", recipe, *overrides, *point.changes, "--out", str(point.folder), "--quiet", *options, *resume]
    try:
        failure = launch(run_in_process, words, str(Path.cwd()))
    except Exception as error:  # schedulers raise errors of their own about jobs that are gone
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None if failure is None else str(failure)


def run_in_process(words: Sequence[str], folder: str) -> str | None:
    """``qkd`` in a process of its own, started in a folder. -> its last error, or None where it succeeded"""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    line = [sys.executable, "-m", "qkd", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=alone, cwd=folder)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit {done.returncode}"])[-1]


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep: its changes of the recipe, whether it is finished, and its row of `qkd compare`."""

    changes: tuple[str, ...]
    finished: bool
    run: ComparedRun

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the changes, then the row."""
        return {"changes": list(self.changes), "finished": self.finished, **self.run.to_json()}


def rows(grid: Sequence[Point]) -> list[SweptRun]:
    """A row for every point that has a result; points that `--max-steps` stopped early are not ``finished``."""
    from qkd.report.compare import compare_runs

    with_result = [point for point in grid if not point.damage and point.result().top1 is not None]
    return [
        SweptRun(point.changes, point.finished, row)
        for point, row in zip(with_result, compare_runs([point.folder for point in with_result]), strict=True)
    ]


def require(failures: Mapping[str, str]) -> None:
    """Raises QkdError naming the runs that failed, if there are any."""
    if failures:
        listed = "\n".join(f"{name}: {why}" for name, why in failures.items())
        again = "the same command trains these again, and only these"
        raise QkdError(f"{listed}\n{len(failures)} failed; {again}", key="sweep.failed-runs")
