"""Times files and the files of runs on onnxruntime, beside their float counterpart; accuracy where the data is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from qkd.errors import ExportError, GateError, UsageError, nearest
from qkd.export import SETTINGS, Images, bench, contenders, load_openvino, quantize_file
from qkd.pipeline.evaluate import EvalImages, eval_images
from qkd.storage.artifacts import BENCH, FLOAT_ONNX, RECIPE, STUDENT_ONNX, file_beside
from qkd.storage.environment import processor
from qkd.storage.results import BenchReport, BenchRow
from qkd.storage.run import Run

AGAINST = ("float", "ptq", "none")
CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Gates:
    """The least that every timed file has to reach, at every batch size and number of threads; None for no limit.

    min_top1 in %; max_p50_ms for one call; min_speedup over the file compared with; max_drop of top-1 below it, in points.
    """

    min_top1: float | None = None
    max_p50_ms: float | None = None
    min_speedup: float | None = None
    max_drop: float | None = None


def benchmark_files(
    files: Sequence[Path],
    *,
    against: str = "float",
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    memory: bool = False,
    openvino: bool = False,
) -> BenchReport:
    """Time ONNX files, or those of run folders, interleaved with what they are compared with.

    The file of a run is compared with its own float file, and its accuracy is measured on the images of its own run; files
    of no run count as files of the first run. ``openvino``: also time the files there. ``against`` "ptq": also time two
    quantizations that onnxruntime itself makes of the first float file. The rows of a run's own file are kept as its
    ``bench.json``. Raises ExportError for a missing file.
    """
    also_in = load_openvino() if openvino else None
    paths = [_file(path) for path in files]
    beside = _counterparts(paths, against)
    runs = {path: Run(path.parent) for path in [*paths, *beside.values()] if (path.parent / RECIPE).is_file()}
    rivals = _rivals(runs.get(paths[0]), beside.get(paths[0])) if against == "ptq" else []
    beside |= {rival: beside[paths[0]] for rival in rivals}
    images = _images([*paths, *rivals, *beside.values()], runs, paths[0])
    settings: dict[str, Any] = {"batches": batches, "threads": threads, "seconds": seconds, "memory": memory}
    samples = {path: Images(*sample) for path, sample in images.items()}
    rows = bench(contenders([*paths, *rivals], against=beside, images=samples, also_in=also_in), **settings)
    report = BenchReport(processor(), tuple(rows), tuple(map(str, paths)))
    for run in (runs[path] for path in paths if path in runs and path.name == STUDENT_ONNX):
        _keep(run, report, {other.folder for other in runs.values()} - {run.folder})
    return report


def _images(files: Sequence[Path], runs: Mapping[Path, Run], first: Path) -> dict[Path, EvalImages]:
    """The test images of each file's run, or else of the first file's; without those whose data is not there."""
    samples = {run.folder: eval_images(run) for run in {run.folder: run for run in runs.values()}.values()}
    found = {path: samples.get(path.parent, samples.get(first.parent)) for path in files}
    return {path: sample for path, sample in found.items() if sample is not None}


def _keep(run: Run, report: BenchReport, others: set[Path]) -> None:
    """Write the report into the run, without the files of other runs."""
    rows = tuple(row for row in report.rows or () if Path(row.file or "").parent not in others)
    judged = tuple(file for file in report.judged or () if Path(file).parent not in others)
    run.write_file(BENCH, json.dumps(replace(report, rows=rows, judged=judged).to_json(), indent=2) + "\n")


def _counterparts(paths: Sequence[Path], against: str) -> dict[Path, Path]:
    """The file that each is compared with: the float file beside it, or else that of the first."""
    found = {path: _against(path, against) or _against(paths[0], against) for path in paths}
    return {path: beside for path, beside in found.items() if beside is not None and beside != path}


def require_gates(report: BenchReport, gates: Gates) -> None:
    """Raises GateError naming every row and number that misses a gate; UsageError for a gate on what was not measured."""
    every, judged = report.rows or (), report.judged or ()
    rows = [row for row in every if row.file in judged and row.runtime == "onnxruntime"]
    missed = [miss for row in rows for miss in _missed(row, _beside(row, every), gates)]
    if missed:
        raise GateError("; ".join(missed), key="bench.gate-missed")


class _Limit(NamedTuple):
    """A number that was measured, and the limit it has to keep; ``sign``: 1 for at least, -1 for at most."""

    name: str
    measured: float | None
    limit: float | None
    sign: int
    unit: str
    where: str  # when the number is measured


def _limits(row: BenchRow, beside: BenchRow | None, gates: Gates) -> list[_Limit]:
    drop = None if beside is None or beside.top1 is None or row.top1 is None else beside.top1 - row.top1
    run = "in a run folder whose data is there"
    return [
        _Limit("top-1", row.top1, gates.min_top1, 1, "%", run),
        _Limit("p50", row.p50_ms, gates.max_p50_ms, -1, "ms", ""),
        _Limit("speed-up", row.speedup, gates.min_speedup, 1, "x", "beside a file to compare with"),
        _Limit("drop of top-1", drop, gates.max_drop, -1, "points", f"beside a float file, {run}"),
    ]


def _missed(row: BenchRow, beside: BenchRow | None, gates: Gates) -> list[str]:
    threads = f"{row.threads} thread{'s' * (row.threads != 1)}"
    where = f"{row.file} at batch {row.batch}, {threads}"
    missed = []
    for name, measured, limit, sign, unit, needed in _limits(row, beside, gates):
        if limit is None:
            continue
        if measured is None:
            raise UsageError(f"{where}: no {name} is known; it is measured {needed}", key="bench.gate-not-measured")
        # not (a >= b) rather than a < b: what is not a number passes no gate
        if not sign * measured >= sign * limit:
            bound = "at least" if sign > 0 else "at most"
            missed.append(f"{where}: {name} is {measured:.4g} {unit}, asked for {bound} {limit:g}")
    return missed


def _beside(row: BenchRow, rows: Sequence[BenchRow]) -> BenchRow | None:
    """The row of the file compared with, in the same runtime at the same batch size and number of threads."""
    setting = (row.beside, row.runtime, row.batch, row.threads)
    same = [each for each in rows if (each.file, each.runtime, each.batch, each.threads) == setting]
    return same[-1] if same and same[-1] is not row else None


def _rivals(run: Run | None, float_file: Path | None) -> list[Path]:
    """Onnxruntime's own static quantizations of the float file, calibrated on the run's training images."""
    if run is None or float_file is None:
        raise ExportError(
            "--against ptq: needs a run folder with its float.onnx; `qkd export` writes it", key="bench.ptq-without-run"
        )
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
            raise ExportError(
                f"{path}: not there yet; `qkd export {path.parent}` writes it", key="bench.run-not-exported"
            )
    if not path.is_file():
        raise ExportError(f"{path}: no such file", key="bench.no-such-file")
    return path


def _against(first: Path, against: str) -> Path | None:
    if against == "none":
        return None
    if against not in AGAINST:
        if not Path(against).exists() and not against.endswith(".onnx"):
            possible = ", ".join(AGAINST)
            raise ExportError(
                f"--against {against}: choose {possible} or an ONNX file{nearest(against, AGAINST)}",
                key="bench.unknown-counterpart",
            )
        return _file(Path(against))
    beside = file_beside(first, FLOAT_ONNX)
    return beside if beside.is_file() and beside != first else None
