"""Sweep: a grid of runs of one recipe, each a process of its own; what is done already is not done again."""

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
from qkd.storage.run import Run

Listener = Callable[["Point", str], None]  # (point, "finished already" | "done" | "failed: why")


def launch_locally(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder, and what it changes in the recipe."""

    folder: Path
    changes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether it came to its end, and what it says of that can be read."""
        return not self.damage and bool(self.result().get("finished", True))

    @property
    def damage(self) -> str:
        """What is wrong with what the run says of its end; empty where it is sound, or not there yet."""
        try:
            self.result()
        except RunError as error:
            return str(error)
        return ""

    def result(self) -> dict[str, Any]:
        """What the run says of its end, ``{"finished": False}`` before. Raises RunError where that is damaged."""
        return Run(self.folder).result()


def axis(text: str) -> tuple[str, tuple[str, ...]]:
    """``a.b=1,2,3`` -> the key and its values; commas inside brackets and braces belong to a value."""
    key, sign, values = text.partition("=")
    found = tuple(value.strip() for value in _split(values))
    if not sign or not key.strip() or not all(found):
        raise UsageError(f"--over {text}: expected KEY=VALUE,VALUE,..., for example train.rate=0.1,0.05")
    if len(set(found)) < len(found):
        raise UsageError(f"--over {text}: a value stands there twice")
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
    """The grid, the last axis the fastest; ``seeds`` adds one, 0 to ``seeds - 1``. Raises UsageError."""
    axes = [axis(text) for text in over]
    if seeds is not None:
        axes.append(("seed", tuple(map(str, range(seeds)))))
    keys = [key for key, _ in axes]
    if not axes:
        raise UsageError("nothing to sweep over: give --over KEY=VALUE,VALUE or --seeds N")
    if len(set(keys)) < len(keys):
        raise UsageError(f"--over names a key twice: {', '.join(keys)}")
    grid = [tuple(zip(keys, values, strict=True)) for values in itertools.product(*(values for _, values in axes))]
    changes = [tuple(f"{key}={value}" for key, value in each) for each in grid]
    names = [folder_name(each) for each in changes]
    if len(set(names)) < len(names):
        names = [f"{number:03}_{name}" for number, name in enumerate(names)]
    return [Point(out / name, change) for name, change in zip(names, changes, strict=True)]


def folder_name(changes: Sequence[str]) -> str:
    """The folder's name of what changes ``a.b=1``, ``c=2``: ``b=1_c=2``."""
    pairs = (change.partition("=") for change in changes)
    return "_".join(f"{key.rpartition('.')[2]}={_plain(value)}" for key, _, value in pairs)


def _plain(value: str) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-")[:60]


def run_grid(
    recipe: str,
    grid: Sequence[Point],
    *,
    overrides: Sequence[str] = (),
    options: Sequence[str] = (),
    jobs: int = 1,
    listen: Listener = lambda point, state: None,
    launch: Launch = launch_locally,
) -> dict[str, str]:
    """Train every point that is not finished yet, so many at once, each resumed where it was. -> why some failed, by name

    ``launch`` says where, `qkd.pipeline.launchers.launcher_for`.
    """

    def work(point: Point) -> tuple[str, str | None]:
        if point.finished:
            listen(point, "finished already")
            return point.name, None
        damage = point.damage
        failure = train(recipe, point, overrides, options, launch)
        state = f"failed: {failure}" if failure else "done"
        listen(point, f"{state} (before, {damage})" if damage else state)
        return point.name, failure

    grid[0].folder.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        ends = dict(pool.map(work, grid))
    return {name: failure for name, failure in ends.items() if failure is not None}


def train(recipe: str, point: Point, overrides: Sequence[str], options: Sequence[str], launch: Launch) -> str | None:
    """One run, wherever it is launched. -> its last error, if it failed"""
    resume = ["--resume"] if point.folder.is_dir() else []
    words = ["train", recipe, *overrides, *point.changes, "--out", str(point.folder), "--quiet", *options, *resume]
    try:
        failure = launch(run_in_process, words, str(Path.cwd()))
    except Exception as error:  # whatever a scheduler may raise about a job that is gone
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None if failure is None else str(failure)


def run_in_process(words: Sequence[str], folder: str) -> str | None:
    """``qkd`` in a process of its own, started in that folder. -> its last error, if it failed"""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    line = [sys.executable, "-m", "qkd", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=alone, cwd=folder)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit {done.returncode}"])[-1]


def rows(grid: Sequence[Point]) -> list[dict[str, Any]]:
    """What `qkd compare` says of every point that has a result, beside what the point changes.

    Those that `--max-steps` ended early are among them: ``finished`` tells.
    """
    from qkd.report.compare import compare_runs

    there = [point for point in grid if not point.damage and "top1" in point.result()]
    return [
        {"changes": list(point.changes), "finished": point.finished, **row}
        for point, row in zip(there, compare_runs([point.folder for point in there]), strict=True)
    ]


def require(failures: Mapping[str, str]) -> None:
    """Raise QkdError naming the runs that failed."""
    if failures:
        listed = "\n".join(f"{name}: {why}" for name, why in failures.items())
        raise QkdError(f"{listed}\n{len(failures)} failed; the same command does these again, and only these")
