"""Compare: several runs in one table, runs that differ only in their seed as one row, and what is worth choosing among."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qkd.report.run_data import RunData, exported_rows, headline_row, is_float_file, mapping, read_run, scheme_text
from qkd.storage.run import Run

NUMBERS = (
    "float_top1",
    "before_top1",
    "top1",
    "top1_onnxruntime",
    "bytes",
    "p50_ms",
    "speedup",
    "seconds",
)  # what is averaged over seeds


def compare_runs(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per run folder, in the order given; None where a run has not come that far.

    Accuracies in %, ``bytes`` of the exported file, ``p50_ms`` and ``speedup`` at the smallest batch that was measured,
    ``seconds`` of training. Raises RunError for a folder that is no run.
    """
    return rows(read_runs(runs))


def read_runs(runs: Sequence[Path]) -> list[RunData]:
    """What run folders hold, in the order given, each read once. Raises RunError for a folder that is no run."""
    return [read_run(Run.open(Path(folder))) for folder in runs]


def rows(found: Sequence[RunData]) -> list[dict[str, Any]]:
    """The rows of ``compare_runs`` for runs that were read."""
    return [_row(evidence) for evidence in found]


def _row(evidence: RunData) -> dict[str, Any]:
    result, export, fastest = evidence.result, evidence.export, headline_row(exported_rows(evidence))
    theirs = [row for row in evidence.rows if is_float_file(row)]
    return {
        "run": str(evidence.run.folder),
        "method": result.get("method", mapping(evidence.recipe.get("method")).get("name")),
        "network": evidence.student.get("build"),
        "bits": scheme_text(evidence.student) if evidence.student else None,
        "float_top1": result.get("float_top1"),
        "before_top1": evidence.before_top1,
        "top1": result.get("top1"),
        "top1_onnxruntime": export.get("top1_onnxruntime"),
        "bytes": export.get("bytes"),
        "float_bytes": export.get("float_bytes"),
        "batch": fastest.get("batch"),
        "threads": fastest.get("threads"),
        "p50_ms": fastest.get("p50_ms"),
        "float_p50_ms": headline_row(theirs).get("p50_ms"),
        "speedup": fastest.get("speedup"),
        "seconds": result.get("training_seconds"),
        "seed": result.get("seed", evidence.recipe.get("seed")),
    }


def by_recipe(found: Sequence[RunData]) -> list[dict[str, Any]]:
    """Runs whose recipes differ in nothing but the seed, as one row each: mean and sample standard deviation.

    Every name of ``NUMBERS`` holds ``{"mean": ..., "std": ..., "count": ...}``; std is None for one run alone.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for evidence in found:
        groups.setdefault(_but_seed(evidence), []).append(_row(evidence))
    return [_group(alike) for alike in groups.values()]


def _but_seed(evidence: RunData) -> str:
    kept = {key: value for key, value in evidence.recipe.items() if key != "seed"}
    return repr(kept) if kept else str(evidence.run.folder)


def _group(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    same = {name: first[name] for name in ("method", "network", "bits", "batch", "threads")}
    spread = {name: _spread([row[name] for row in rows if row[name] is not None]) for name in NUMBERS}
    return {"runs": [row["run"] for row in rows], "seeds": [row["seed"] for row in rows], **same, **spread}


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    mean = statistics.fmean(values) if values else None
    return {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else None, "count": len(values)}
