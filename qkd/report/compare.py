"""Compares runs: a row for each run, or one for runs that differ only in their seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from qkd.report.run_data import (
    RunData,
    exported_rows,
    headline_row,
    is_float_file,
    levels,
    mapping,
    read_run,
    scheme_text,
)
from qkd.storage.results import ComparedRun, ComparedSeeds, Spread
from qkd.storage.run import Run

SAME = ("method", "network", "bits", "levels", "batch", "threads")  # what the runs of a group have in common
SUMMARISED = tuple(each.name for each in fields(ComparedSeeds) if each.name not in ("runs", "seeds", *SAME))


def compare_runs(runs: Sequence[Path]) -> list[ComparedRun]:
    """One row per run folder, in the order given; None where a run has not come that far.

    Accuracies in %, ``bytes`` of the exported file, ``p50_ms`` and ``speedup`` at the smallest batch that was measured,
    ``seconds`` of training. Raises RunError for a folder that is no run.
    """
    return rows(read_runs(runs))


def read_runs(runs: Sequence[Path]) -> list[RunData]:
    """The content of run folders, in the order given, each read once. Raises RunError for a folder that is no run."""
    return [read_run(Run.open(Path(folder))) for folder in runs]


def rows(found: Sequence[RunData]) -> list[ComparedRun]:
    """The rows of ``compare_runs`` for runs that were read."""
    return [_row(run_data) for run_data in found]


def _row(run_data: RunData) -> ComparedRun:
    result, export, fastest = run_data.result, run_data.export, headline_row(exported_rows(run_data))
    float_file = headline_row([row for row in run_data.rows if is_float_file(row)])
    return ComparedRun(
        run=str(run_data.run.folder),
        method=result.method if result.method is not None else mapping(run_data.recipe.get("method")).get("name"),
        network=run_data.student.get("build"),
        bits=scheme_text(run_data.student) if run_data.student else None,
        levels=levels(run_data.student),
        float_top1=result.float_top1,
        before_top1=run_data.before_top1,
        top1=result.top1,
        top1_onnxruntime=export.top1_onnxruntime,
        bytes=export.bytes,
        float_bytes=export.float_bytes,
        batch=fastest.batch,
        threads=fastest.threads,
        p50_ms=fastest.p50_ms,
        float_p50_ms=float_file.p50_ms,
        speedup=fastest.speedup,
        seconds=result.training_seconds,
        seed=result.seed if result.seed is not None else run_data.recipe.get("seed"),
        combined=result.combined,
    )


def by_recipe(found: Sequence[RunData]) -> list[ComparedSeeds]:
    """Runs whose recipes differ in nothing but the seed, as one row each: mean and sample standard deviation."""
    return [_group(rows(alike)) for alike in groups_of(found)]


def groups_of(found: Sequence[RunData]) -> list[list[RunData]]:
    """Runs whose recipes differ in nothing but the seed together, in the order given."""
    groups: dict[str, list[RunData]] = {}
    for run_data in found:
        groups.setdefault(_recipe_without_seed(run_data), []).append(run_data)
    return list(groups.values())


def _recipe_without_seed(run_data: RunData) -> str:
    kept = {key: value for key, value in run_data.recipe.items() if key != "seed"}
    return repr(kept) if kept else str(run_data.run.folder)


def _group(rows: Sequence[ComparedRun]) -> ComparedSeeds:
    same = {name: getattr(rows[0], name) for name in SAME}
    spreads: dict[str, Any] = {name: _spread([getattr(row, name) for row in rows]) for name in SUMMARISED}
    runs, seeds = tuple(row.run or "" for row in rows), tuple(row.seed for row in rows)
    return ComparedSeeds(runs=runs, seeds=seeds, **same, **spreads)


def _spread(values: Sequence[float | None]) -> Spread:
    measured = [value for value in values if value is not None]
    mean = statistics.fmean(measured) if measured else None
    return Spread(mean, statistics.stdev(measured) if len(measured) > 1 else None, len(measured))
