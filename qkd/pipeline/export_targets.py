"""Exports a finished run for a runtime that is not here: the file is run in onnxruntime without optimised operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from qkd.assembly.inputs import load_data
from qkd.data import Data
from qkd.engine.metrics import logits
from qkd.errors import GateError
from qkd.export import (
    ONNXRUNTIME,
    Emitted,
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
from qkd.pipeline.onnx_metadata import metadata_of_run, write_export_report
from qkd.pipeline.reload import FinishedRun, reload_product
from qkd.storage.atomic import replaced_on_success
from qkd.storage.results import UnprovenExportReport
from qkd.storage.run import Run

COMPARED = 64
"""Images on which a file that only shifts integers is compared with onnxruntime's, both without optimised operators."""


def export_for_target(
    run: Run,
    target: Target,
    *,
    output: Path | None = None,
    storage: Literal["int8", "packed"] = "int8",
    uint8_input: bool = False,
    layout: Literal["nchw", "nhwc"] = "nchw",
) -> UnprovenExportReport:
    """Emit a file for a target, run it here, save ``student.<target>.onnx`` and its report. -> the report

    Raises GateError, and leaves what was at the path, if the file is not the network that was trained; ExportError for what
    the target does not support.
    """
    path = output or run.folder / f"student.{target.name}.onnx"
    finished = reload_product(run)
    data = load_data(finished.recipe).with_test_in_memory()
    scale, shift = (part.reshape(-1).numpy() for part in data.affine())
    uint8 = Uint8Input(scale, shift, layout)
    metadata = metadata_of_run(finished, uint8, "uint8" if uint8_input else "float32")
    shape, given = finished.facts.shape, uint8 if uint8_input else None
    emitted = emit(finished.product, shape, storage=storage, metadata=metadata, raw=given, target=target)
    images = uint8.arranged(data.test.images[:].numpy()) if uint8_input else data.normalize(data.test.images).numpy()
    _require_same_network(finished, emitted, data, images[:COMPARED], given, target, path)
    with replaced_on_success(path) as unverified:
        save(emitted.model, unverified)
        trial = run_reference(emitted, unverified, images, data.test.labels.numpy(), _reference(finished, data))
        trial = replace(trial, file=str(path))
        require_agreement(trial, target.name)
    report = UnprovenExportReport.from_json({**trial.as_dict(), "target": target.name, "storage": storage})
    write_export_report(path, report)
    return report


def _require_same_network(
    finished: FinishedRun,
    emitted: Emitted,
    data: Data,
    images: np.ndarray,
    given: Uint8Input | None,
    target: Target,
    path: Path,
) -> None:
    """Raises GateError if the network's onnxruntime file does not match PyTorch, or the target's file not that file."""
    ours = emit(finished.product, finished.facts.shape, raw=given, target=replace(ONNXRUNTIME, direct=False))
    floats = data.normalize(data.test.images[:COMPARED]).numpy()
    require_parity(torch_parity(finished.product, ours, images, floats), path)
    if target.symmetric:
        return
    same = (reference_logits(emitted.model, images) == reference_logits(ours.model, images)).all(axis=1).mean()
    if same < 1:
        raise GateError(
            f"{target.name}: {100 * (1 - same):.3g} % of the images give other logits than onnxruntime's file",
            key="export.target-file-differs",
        )


def _reference(finished: FinishedRun, data: Data) -> np.ndarray:
    """Logits (N, classes) of the fake-quantized network on the test split."""
    found: np.ndarray = logits(finished.product, data.batches("test", finished.recipe.data.batch)).numpy()
    return found
