"""Writes what goes with an exported file: the metadata inside it, its report, and a program that classifies images with it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkd import __version__
from qkd.storage.artifacts import EXPORT, RECIPE, file_beside
from qkd.storage.atomic import write_atomic

if TYPE_CHECKING:
    from qkd.export import Uint8Input
    from qkd.pipeline.reload import FinishedRun
    from qkd.recipe import Recipe
    from qkd.storage.results import ExportReport, UnprovenExportReport

MARK = '"""Written by `qkd export`: classifies image files with the ONNX file beside it.'
PROGRAM = (
    MARK
    + '''

    python infer.py IMAGE...        needs numpy, pillow and onnxruntime
"""
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from PIL import Image, ImageOps

model = Path(__file__).with_name(FILE)
session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
told = session.get_modelmeta().custom_metadata_map
labels, how = json.loads(told["labels"]), json.loads(told["preprocessing"])
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("L" if how["channels"] == 1 else "RGB")
    image = ImageOps.fit(image, (how["width"], how["height"]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(1, how["height"], how["width"], how["channels"])
    if how["input"] == "float32":
        pixels = pixels.astype(np.float32) * np.float32(how["multiply"]) + np.float32(how["add"])
    if how["layout"] == "nchw":
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    logits = session.run(None, {session.get_inputs()[0].name: pixels})[0][0]
    chances = np.exp(logits - logits.max())
    print(path, labels[logits.argmax()], f"{chances.max() / chances.sum():.4f}", sep="\\t")
'''
)


def metadata_of_run(finished: FinishedRun, uint8: Uint8Input, kind: str) -> Mapping[str, str]:
    """The metadata of an exported file: labels, preprocessing, bits, levels of 2-bit weights, scheme, completed recipe, versions.

    ``kind``, "uint8" or "float32", is the type of the file's input; ``uint8``: how uint8 images are normalised, inside the
    file or before it.
    """
    folder = finished.run.folder
    text = (folder / RECIPE).read_text()
    return metadata_of_recipe(
        finished.recipe, finished.data, uint8, kind, name=folder.name, text=text, commit=commit(folder)
    )


def metadata_of_recipe(
    recipe: Recipe, data: Mapping[str, Any], uint8: Uint8Input, kind: str, *, name: str, text: str, commit: str
) -> Mapping[str, str]:
    """``metadata_of_run`` from its parts: the content of ``data.json``, the ``name`` of the run, the ``text`` of its recipe."""
    scheme = recipe.student.quantize
    found = {
        "name": name,
        "labels": json.dumps(data["labels"]),
        "preprocessing": json.dumps(preprocessing(data, uint8, kind)),
        "scheme": "float" if scheme is None else str(scheme),
        "bits": json.dumps(None if scheme is None else bits(scheme)),
        "weight_levels": "" if scheme is None or scheme.levels is None else str(scheme.levels),
        "network": recipe.student.build,
        "method": recipe.method.name,
        "recipe": text,
        "qkd": __version__,
        "commit": commit,
    }
    return {key: value for key, value in found.items() if value}


def preprocessing(data: Mapping[str, Any], uint8: Uint8Input, kind: str) -> dict[str, Any]:
    """How an image becomes the input of the file. ``multiply`` and ``add`` are float32 values, exact when read again."""
    channels, height, width = data["shape"]
    return {
        "input": kind,
        "layout": uint8.layout,
        "channels": channels,
        "height": height,
        "width": width,
        "resize": "scaled and cropped in the middle, bilinear",
        "mean": data["mean"],
        "std": data["std"],
        "scale": 255,
        "multiply": [float(value) for value in uint8.scale],
        "add": [float(value) for value in uint8.shift],
    }


def bits(scheme: Any) -> dict[str, int]:
    """Bits of weights and activations of the inner layers, and of the first and last layer."""
    return {name: getattr(scheme, name) for name in ("weights", "activations", "first", "last")}


def commit(folder: Path) -> str:
    """The git commit of the working tree that holds a folder; empty where there is none."""
    try:
        words = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""


def write_infer_program(file: Path, path: Path) -> Path | None:
    """Write the program that classifies images with ``file``. None, and nothing written, where another file is at ``path``."""
    if path.is_file() and not path.read_text(errors="replace").startswith(MARK):
        return None
    return write_atomic(path, lambda to: to.write(PROGRAM.replace("(FILE)", f"({json.dumps(file.name)})").encode()))


def write_export_report(file: Path, report: ExportReport | UnprovenExportReport) -> None:
    """Write the report of an exported file beside it. Raises RunError."""
    text = json.dumps(report.to_json(), indent=2) + "\n"
    write_atomic(file_beside(file, EXPORT), lambda to: to.write(text.encode()))
