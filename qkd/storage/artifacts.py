"""The names of the files of a run, and of what stands beside an exported file."""

from __future__ import annotations

from pathlib import Path

RECIPE, ORIGINAL_RECIPE = "recipe.yaml", "recipe.orig.yaml"
ENVIRONMENT, DATA, METRICS, RESULT = "environment.json", "data.json", "metrics.jsonl", "result.json"
CHECKPOINTS, PRODUCT, FLOAT_START = "checkpoints", "product.safetensors", "float.safetensors"
STUDENT_ONNX, FLOAT_ONNX, EXPORT, BENCH, INFER = "student.onnx", "float.onnx", "export.json", "bench.json", "infer.py"
REPORT = "report.html"

CALIBRATED = "before"
"""The phase under which metrics.jsonl holds the accuracy that calibration alone gives."""


def file_beside(path: Path, name: str) -> Path:
    """Where a file that belongs to an exported one stands: ``name`` beside student.onnx, ``x.name`` beside x.onnx.

    So a second exported file in a folder leaves alone what belongs to the first.
    """
    return path.with_name(name if path.name == STUDENT_ONNX else f"{path.name.removesuffix('.onnx')}.{name}")
