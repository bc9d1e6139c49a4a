"""Ship: a finished run -> its ONNX file, verified on the test split, with the float file of the same network beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qkd import __version__
from qkd.errors import DataError
from qkd.evaluate import logits
from qkd.export import emit, emit_float, require, save, verify
from qkd.produce import Finished, float_network, load_data, reload
from qkd.run import Run

STUDENT_FILE, FLOAT_FILE, EXPORT = "student.onnx", "float.onnx", "export.json"


def ship(run: Run, *, output: Path | None = None, storage: Literal["int8", "packed"] = "int8") -> dict[str, Any]:
    """Emit, verify, save. -> what `qkd export --json` prints. Raises GateError if the file is not what was trained."""
    finished = reload(run)
    emitted = emit(finished.product, finished.facts.shape, storage=storage, metadata=metadata(finished))
    path = output or run.folder / STUDENT_FILE
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(emitted.model, beside)
        verdict = _verify(finished, beside)
        float_path = _save_float(finished, run)
        report = {
            **verdict,
            "file": str(path),
            "bytes": beside.stat().st_size,
            "float_bytes": float_path.stat().st_size,
            "storage": storage,
        }
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    (path.parent / EXPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _verify(finished: Finished, path: Path) -> dict[str, Any]:
    data = load_data(finished.recipe)
    batches = list(data.batches("test", finished.recipe.data.batch))
    images = np.concatenate([batch.images.contiguous().numpy() for batch in batches])
    reference = logits(finished.product, batches).numpy()
    verdict = verify(path, images, labels=data.test.labels.numpy(), reference_logits=reference)
    require(verdict)
    return verdict.as_dict()


def _save_float(finished: Finished, run: Run) -> Path:
    network = float_network(finished) or finished.product
    path = run.folder / FLOAT_FILE
    save(emit_float(network, finished.facts.shape), path)
    return path


def metadata(finished: Finished) -> Mapping[str, str]:
    """What travels inside the file: labels, preprocessing, bits, recipe."""
    entry, data = finished.recipe.student, finished.data
    return {
        "labels": json.dumps(data["labels"]),
        "preprocessing": json.dumps({"mean": data["mean"], "std": data["std"], "scale": 255, "layout": "NCHW"}),
        "scheme": str(entry.quantize),
        "network": entry.build,
        "method": finished.recipe.method.name,
        "recipe": finished.run.folder.name,
        "qkd": __version__,
    }


def test_images(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """The normalised test images (N, C, H, W) and labels of a run's recipe; None where the data is not there any more."""
    try:
        return _images_for(run.folder / STUDENT_FILE, None)
    except DataError:
        return None


def score(
    run_or_file: Path, *, recipe: str | None, integer: bool, device: str = "auto", threads: int | None = None
) -> dict[str, Any]:
    """Accuracy of a run's product or of an ONNX file on test images. -> what `qkd eval --json` prints.

    ``integer`` evaluates the ONNX file with the integer emulator. Raises DataError if no test data is known.
    """
    from qkd.evaluate import top1
    from qkd.export import emulate, predict
    from qkd.produce import Machine, test_top1

    if run_or_file.is_dir() and not integer:
        finished = reload(Run.open(run_or_file))
        fabric = Machine(device, threads=threads).fabric()
        data = load_data(finished.recipe)
        value = test_top1(finished.product.to(fabric.device), data, finished.recipe.data.batch, fabric.device)
        return {"top1": value, "images": len(data.test.labels)}
    path = run_or_file / STUDENT_FILE if run_or_file.is_dir() else run_or_file
    if not path.is_file():
        raise DataError(f"{path}: no such file; `qkd export` writes one")
    images, labels = _images_for(path, recipe)
    outputs = (emulate if integer else predict)(path, images)
    import torch

    return {"top1": top1(torch.from_numpy(outputs), torch.from_numpy(labels)), "images": len(labels)}


def _images_for(path: Path, recipe: str | None) -> tuple[np.ndarray, np.ndarray]:
    from qkd import recipe as recipes

    if recipe is None and not (path.parent / "recipe.yaml").is_file():
        raise DataError(f"{path}: stands in no run folder; name a recipe whose test data is meant with --data")
    loaded = recipes.load(recipe if recipe is not None else path.parent / "recipe.yaml")
    data = load_data(loaded)
    images = [batch.images.contiguous().numpy() for batch in data.batches("test", loaded.data.batch)]
    return np.concatenate(images), data.test.labels.numpy()
