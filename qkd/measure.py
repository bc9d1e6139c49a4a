"""Measure: files and run folders on onnxruntime, the float counterpart beside them, accuracy where the data is at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qkd.errors import ExportError
from qkd.export import bench
from qkd.run import RECIPE, Run, processor
from qkd.ship import FLOAT_FILE, STUDENT_FILE, test_images

BENCH = "bench.json"


def measure(
    files: Sequence[Path],
    *,
    against: str = "float",
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
) -> dict[str, Any]:
    """Time the files, interleaved with what they are compared with. -> what `qkd bench --json` prints.

    In a run folder the result is kept as ``bench.json``. Raises ExportError for a missing file.
    """
    paths = [_file(path) for path in files]
    float_file = _against(paths[0], against)
    run = Run(paths[0].parent) if (paths[0].parent / RECIPE).is_file() else None
    sample = test_images(run) if run else None
    images, labels = sample if sample else (None, None)
    rows = bench(
        paths, against=float_file, batches=batches, threads=threads, seconds=seconds, images=images, labels=labels
    )
    report = {"processor": processor(), "rows": [row.as_dict() for row in rows]}
    if run:
        run.write(BENCH, json.dumps(report, indent=2) + "\n")
    return report


def _file(path: Path) -> Path:
    if path.is_dir():
        path = path / STUDENT_FILE
        if not path.is_file():
            raise ExportError(f"{path}: not there yet; `qkd export {path.parent}` writes it")
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    return path


def _against(first: Path, against: str) -> Path | None:
    if against == "none":
        return None
    if against != "float":
        return _file(Path(against))
    beside = first.with_name(FLOAT_FILE)
    return beside if beside.is_file() and beside != first else None
