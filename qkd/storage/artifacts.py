"""The names of the files in a run folder, and of those that belong to an exported file."""

from __future__ import annotations

from pathlib import Path

RECIPE, ORIGINAL_RECIPE = "recipe.yaml", "recipe.orig.yaml"
ENVIRONMENT, DATA, METRICS, RESULT = "environment.json", "data.json", "metrics.jsonl", "result.json"
CHECKPOINTS, PRODUCT, FLOAT_START = "checkpoints", "product.safetensors", "float.safetensors"
PREDICTIONS = "predictions.npz"
STUDENT_ONNX, FLOAT_ONNX, EXPORT, BENCH, INFER = "student.onnx", "float.onnx", "export.json", "bench.json", "infer.py"
REPORT = "report.html"

CALIBRATED = "before"
"""The phase under which metrics.jsonl holds the accuracy after calibration and before training."""


def file_beside(path: Path, name: str) -> Path:
    """The path of a file that belongs to the exported file ``path``: ``name`` for student.onnx, ``x.name`` for x.onnx.

    So files that belong to several exported files in one folder do not collide.
    """
    return path.with_name(name if path.name == STUDENT_ONNX else f"{path.name.removesuffix('.onnx')}.{name}")
