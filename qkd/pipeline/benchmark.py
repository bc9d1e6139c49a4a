"""Measure: files and run folders on onnxruntime, the float counterpart beside them, accuracy where the data is at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkd.errors import ExportError, GateError, UsageError, nearest
from qkd.export import SETTINGS, bench, quantize_file, require_openvino
from qkd.pipeline.evaluate import eval_images
from qkd.storage.artifacts import BENCH, FLOAT_ONNX, RECIPE, STUDENT_ONNX, file_beside
from qkd.storage.environment import processor
from qkd.storage.run import Run

AGAINST = ("float", "ptq", "none")
CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Gates:
    """What every file that is timed has to reach, at every batch size and number of threads; None asks for nothing.

    min_top1 in %; max_p50_ms for one call; min_speedup over the file compared with; max_drop of top-1 below it, in points.
    """

    min_top1: float | None = None
    max_p50_ms: float | None = None
    min_speedup: float | None = None
    max_drop: float | None = None

    @property
    def any(self) -> bool:
        return any(value is not None for value in vars(self).values())


def benchmark_files(
    files: Sequence[Path],
    *,
    against: str = "float",
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    memory: bool = False,
    openvino: bool = False,
) -> dict[str, Any]:
    """Time the files, interleaved with what they are compared with. -> what `qkd bench --json` prints.

    Of several runs each file stands beside its own float file, and its accuracy is that on its own run's images; files of
    no run are taken for the first one's. With ``openvino`` the same files also run there. ``against`` "ptq" also times two
    quantizations that onnxruntime makes of the first float file itself. What was found of a run's own file is kept as its
    ``bench.json``. Raises ExportError for a missing file.
    """
    if openvino:
        require_openvino()
    paths = [_file(path) for path in files]
    beside = _counterparts(paths, against)
    runs = {path: Run(path.parent) for path in [*paths, *beside.values()] if (path.parent / RECIPE).is_file()}
    samples = {run.folder: eval_images(run) for run in {run.folder: run for run in runs.values()}.values()}
    rivals = _rivals(runs.get(paths[0]), beside.get(paths[0])) if against == "ptq" else []
    beside |= {rival: beside[paths[0]] for rival in rivals}
    first = samples.get(paths[0].parent)
    given = {path: samples.get(path.parent, first) for path in [*paths, *rivals, *beside.values()]}
    settings: dict[str, Any] = {"batches": batches, "threads": threads, "seconds": seconds, "memory": memory}
    own = {path: sample for path, sample in given.items() if sample is not None}
    rows = [row.as_dict() for row in bench([*paths, *rivals], against=beside, own=own, openvino=openvino, **settings)]
    report = {"processor": processor(), "rows": rows, "judged": [str(path) for path in paths]}
    for run in (runs[path] for path in paths if path in runs and path.name == STUDENT_ONNX):
        _keep(run, report, {other.folder for other in runs.values()} - {run.folder})
    return report


def _keep(run: Run, report: dict[str, Any], others: set[Path]) -> None:
    """Write what was found into the run, without the files of other runs."""
    rows = [row for row in report["rows"] if Path(row["file"]).parent not in others]
    judged = [file for file in report["judged"] if Path(file).parent not in others]
    run.write(BENCH, json.dumps({**report, "rows": rows, "judged": judged}, indent=2) + "\n")


def _counterparts(paths: Sequence[Path], against: str) -> dict[Path, Path]:
    """What each file is compared with; one that has no float file beside it, with that of the first."""
    found = {path: _against(path, against) or _against(paths[0], against) for path in paths}
    return {path: beside for path, beside in found.items() if beside is not None and beside != path}


def require_gates(report: dict[str, Any], gates: Gates) -> None:
    """Raises GateError naming every row and number that misses a gate; UsageError for a gate that nothing can answer."""
    rows = [row for row in report["rows"] if row["file"] in report["judged"] and row["runtime"] == "onnxruntime"]
    missed = [miss for row in rows for miss in _missed(row, _beside(row, report["rows"]), gates)]
    if missed:
        raise GateError("; ".join(missed))


def _missed(row: dict[str, Any], beside: dict[str, Any] | None, gates: Gates) -> list[str]:
    drop = None if beside is None or beside["top1"] is None or row["top1"] is None else beside["top1"] - row["top1"]
    asked = (
        ("top-1", row["top1"], gates.min_top1, 1, "%", "in a run folder whose data is there"),
        ("p50", row["p50_ms"], gates.max_p50_ms, -1, "ms", ""),
        ("speed-up", row["speedup"], gates.min_speedup, 1, "x", "beside a file to compare with"),
        (
            "drop of top-1",
            drop,
            gates.max_drop,
            -1,
            "points",
            "beside a float file, in a run folder whose data is there",
        ),
    )
    where = f"{row['file']} at batch {row['batch']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
    missed = []
    for name, found, limit, sign, unit, needed in asked:
        if limit is None:
            continue
        if found is None:
            raise UsageError(f"{where}: no {name} is known; it is measured {needed}")
        # not (a >= b) rather than a < b: what is not a number passes no gate
        if not sign * found >= sign * limit:
            bound = "at least" if sign > 0 else "at most"
            missed.append(f"{where}: {name} is {found:.4g} {unit}, asked for {bound} {limit:g}")
    return missed


def _beside(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the file compared with, at the same batch size and number of threads."""
    setting = ("runtime", "batch", "threads")
    same = [each for each in rows if each["file"] == row["beside"] and all(each[name] == row[name] for name in setting)]
    return same[-1] if same and same[-1] is not row else None


def _rivals(run: Run | None, float_file: Path | None) -> list[Path]:
    """Onnxruntime's own static quantizations of the float file, calibrated on the run's training images."""
    if run is None or float_file is None:
        raise ExportError("--against ptq: needs a run folder with its float.onnx; `qkd export` writes it")
    images = _calibration_images(run)
    names = {setting: float_file.with_name(f"ptq_{setting}.onnx") for setting in SETTINGS}
    return [quantize_file(float_file, path, images, setting) for setting, path in names.items()]


def _calibration_images(run: Run) -> Any:
    from qkd import recipe as recipes
    from qkd.assembly.inputs import load_data

    data = load_data(recipes.load(run.folder / RECIPE))
    return data.normalize(data.train.images[:CALIBRATION_IMAGES]).numpy()


def _file(path: Path) -> Path:
    if path.is_dir():
        path = path / STUDENT_ONNX
        if not path.is_file():
            raise ExportError(f"{path}: not there yet; `qkd export {path.parent}` writes it")
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    return path


def _against(first: Path, against: str) -> Path | None:
    if against == "none":
        return None
    if against not in AGAINST:
        if not Path(against).exists() and not against.endswith(".onnx"):
            known = ", ".join(AGAINST)
            raise ExportError(f"--against {against}: choose {known} or an ONNX file{nearest(against, AGAINST)}")
        return _file(Path(against))
    beside = file_beside(first, FLOAT_ONNX)
    return beside if beside.is_file() and beside != first else None
