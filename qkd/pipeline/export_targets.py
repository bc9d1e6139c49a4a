"""Profiles: a finished run -> a file for a runtime that is not here to prove it, tried literally on the test split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qkd.assembly.inputs import load_data
from qkd.data import Data
from qkd.engine.metrics import logits
from qkd.errors import GateError
from qkd.export import (
    ONNXRUNTIME,
    Target,
    Uint8Input,
    emit,
    reference_logits,
    require_agreement,
    require_parity,
    run_reference,
    save,
    torch_parity,
)
from qkd.pipeline.onnx_metadata import metadata_of_run
from qkd.pipeline.reload import FinishedRun, reload_product
from qkd.storage.artifacts import EXPORT, file_beside
from qkd.storage.atomic import replaced_on_success, write_atomic
from qkd.storage.run import Run

COMPARED = 64
"""Images for which a file that only shifts codes is held against onnxruntime's, both taken literally."""


def export_for_target(
    run: Run,
    target: Target,
    *,
    output: Path | None = None,
    storage: Literal["int8", "packed"] = "int8",
    raw_input: bool = False,
    layout: Literal["nchw", "nhwc"] = "nchw",
) -> dict[str, Any]:
    """Emit for a target, try, save ``student.<target>.onnx``. -> what `qkd export --target --json` prints.

    Raises GateError if the file is not the network that was trained, and leaves what was there; ExportError for what the
    target cannot take.
    """
    path = output or run.folder / f"student.{target.name}.onnx"
    finished = reload_product(run)
    data = load_data(finished.recipe).with_test_in_memory()
    scale, shift = (part.reshape(-1).numpy() for part in data.affine())
    raw = Uint8Input(scale, shift, layout)
    told = metadata_of_run(finished, raw, "uint8" if raw_input else "float32")
    shape, given = finished.facts.shape, raw if raw_input else None
    emitted = emit(finished.product, shape, storage=storage, metadata=told, raw=given, target=target)
    images = raw.arranged(data.test.images[:].numpy()) if raw_input else data.normalize(data.test.images).numpy()
    ours = emit(finished.product, shape, raw=given, target=replace(ONNXRUNTIME, direct=False))
    floats = data.normalize(data.test.images[:COMPARED]).numpy()
    require_parity(torch_parity(finished.product, ours, images[:COMPARED], floats), path)
    if not target.symmetric:
        _require_shifted(ours.model, emitted.model, images[:COMPARED], target)
    with replaced_on_success(path) as beside:
        save(emitted.model, beside)
        trial = run_reference(emitted, beside, images, data.test.labels.numpy(), _reference(finished, data))
        require_agreement(replace(trial, file=str(path)), target.name)
    report = {**replace(trial, file=str(path)).as_dict(), "target": target.name, "storage": storage}
    write_atomic(file_beside(path, EXPORT), lambda file: file.write((json.dumps(report, indent=2) + "\n").encode()))
    return report


def _reference(finished: FinishedRun, data: Data) -> np.ndarray:
    found: np.ndarray = logits(finished.product, data.batches("test", finished.recipe.data.batch)).numpy()
    return found


def _require_shifted(ours: Any, model: Any, images: np.ndarray, target: Target) -> None:
    """Raises GateError unless the codes are onnxruntime's but for the shift: literally, both files give equal logits."""
    same = (reference_logits(model, images) == reference_logits(ours, images)).all(axis=1).mean()
    if same < 1:
        raise GateError(
            f"{target.name}: {100 * (1 - same):.3g} % of the images give other logits than onnxruntime's file"
        )
