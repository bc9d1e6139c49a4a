"""Exports a finished run: writes its ONNX file, verified on the test split, and the float file of the same network beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qkd.assembly.inputs import load_data
from qkd.data import Data
from qkd.engine.metrics import logits
from qkd.errors import ExportError, GateError
from qkd.export import (
    INPUT,
    Emitted,
    Layout,
    Runtime,
    Target,
    Uint8Input,
    Verdict,
    emit,
    emit_float,
    float_parity,
    predict,
    require,
    require_parity,
    save,
    target_of,
    torch_parity,
    verify,
)
from qkd.pipeline.onnx_metadata import metadata_of_run, write_export_report, write_infer_program
from qkd.pipeline.reload import FinishedRun, float_network, reload_product
from qkd.storage.artifacts import EXPORT, FLOAT_ONNX, INFER, STUDENT_ONNX, file_beside
from qkd.storage.atomic import replaced_on_success, sha256
from qkd.storage.results import ExportReport, SecondRuntime, UnprovenExportReport
from qkd.storage.run import Run

Input = Literal["float", "uint8"]
Storage = Literal["int8", "packed"]
INPUT_IMAGES, PARITY_IMAGES = 256, 32
"""Images on which a file with uint8 input is compared with the one with float input, and a file with the network."""


def export_run(
    run: Run,
    *,
    output: Path | None = None,
    storage: Storage = "int8",
    input: Input = "float",
    layout: Layout = "nchw",
    target: str = "onnxruntime",
) -> ExportReport | UnprovenExportReport:
    """Emit, verify and save the file; write the float file, ``infer.py`` and ``export.json`` beside it. -> the report

    The report is an UnprovenExportReport for targets whose files cannot be verified here. With ``input`` "uint8" the file
    takes uint8 images in ``layout`` and normalises them itself; its logits are the same. Raises GateError, and leaves what
    was at the path, if the file is not the network that was trained; ExportError for settings that make no file.
    """
    chosen = target_of(target)
    path = output or run.folder / STUDENT_ONNX
    _require(path, input, layout)
    if not chosen.proven:
        from qkd.pipeline.export_targets import export_for_target

        uint8 = input == "uint8"
        return export_for_target(run, chosen, output=output, storage=storage, uint8_input=uint8, layout=layout)
    second = None if chosen.runtime is None else chosen.runtime()
    finished = reload_product(run)
    data = load_data(finished.recipe).with_test_in_memory()
    scale, shift = (part.reshape(-1).numpy() for part in data.affine())
    export = _Export(finished, data, path, storage, input, chosen, Uint8Input(scale, shift, layout))
    return export.write(second)


@dataclass(frozen=True)
class _Export:
    """What is written, of which run, and the test images it is verified on. ``uint8``: how uint8 images are normalised."""

    finished: FinishedRun
    data: Data
    path: Path
    storage: Storage
    input: Input
    target: Target
    uint8: Uint8Input

    def write(self, second: Runtime | None) -> ExportReport:
        """Write the files, each only once it is verified. ``second``: another runtime that runs the file too."""
        emitted = self._emitted()
        with replaced_on_success(self.path) as unverified:
            save(emitted.model, unverified)
            parity = self._require_parity(emitted)
            verdict = self._verify(unverified)
            found = None if second is None else self._on_second(unverified, second)
            if self.input == "uint8":
                self._require_same_logits(unverified)
            floating = save(self._float_model(), file_beside(self.path, FLOAT_ONNX))
            written = {"bytes": unverified.stat().st_size, "sha256": sha256(unverified)}
        program = write_infer_program(self.path, file_beside(self.path, INFER))
        facts = {
            **{"float_bytes": floating.stat().st_size, "target": self.target.name, "storage": self.storage},
            **{"input": self.input, "layout": self.uint8.layout},
            "openvino": None if found is None else found.to_json(),
            "program": None if program is None else str(program),
        }
        report = ExportReport.from_json({**verdict.as_dict(), **facts, **written, **parity, **_resolution(emitted)})
        write_export_report(self.path, report)
        return report

    @property
    def _file_input(self) -> Uint8Input | None:
        """The uint8 input of the file; None for float input."""
        return self.uint8 if self.input == "uint8" else None

    def _emitted(self) -> Emitted:
        metadata = metadata_of_run(self.finished, self.uint8, "uint8" if self.input == "uint8" else "float32")
        product, shape = self.finished.product, self.finished.facts.shape
        return emit(product, shape, storage=self.storage, metadata=metadata, raw=self._file_input, target=self.target)

    def _images(self) -> np.ndarray:
        """The test images as the file takes them."""
        images: np.ndarray = self.data.normalize(self.data.test.images).numpy()
        given = self._file_input
        return images if given is None else given.arranged(self.data.test.images[:].numpy())

    def _verify(self, file: Path) -> Verdict:
        batches = self.data.batches("test", self.finished.recipe.data.batch)
        reference = logits(self.finished.product, batches).numpy()
        labels = self.data.test.labels.numpy()
        found = verify(file, self._images(), labels=labels, reference_logits=reference)
        verdict = replace(found, file=str(self.path))
        require(verdict)
        _require_exact(self.finished, verdict)
        return verdict

    def _require_parity(self, emitted: Emitted) -> dict[str, Any]:
        """What PyTorch computes beside the file, layer by layer. Raises GateError where it is another network."""
        images = self.data.test.images[:PARITY_IMAGES]
        floats = self.data.normalize(images).numpy()
        given = floats if self._file_input is None else self.uint8.arranged(images.numpy())
        found = torch_parity(self.finished.product, emitted, given, floats)
        require_parity(found, self.path)
        return {"same_integers": found.same, "compared_quantizers": found.quantizers}

    def _float_model(self) -> Any:
        """The float file of the same network. Raises GateError if it is not that."""
        network = float_network(self.finished) or self.finished.product
        model = emit_float(network, self.finished.facts.shape)
        images = self.data.normalize(self.data.test.images[:PARITY_IMAGES]).numpy()
        if wrong := float_parity(network, model, images):
            where = file_beside(self.path, FLOAT_ONNX)
            raise GateError(f"{where}: is not the float network: {wrong}", key="export.float-file-differs")
        return model

    def _on_second(self, file: Path, runtime: Runtime) -> SecondRuntime:
        """Another runtime rounds by rules of its own, so logits are not compared, only classes."""
        images, labels = self._images(), self.data.test.labels.numpy()
        found, expected = runtime.open(file, 1).logits(INPUT, images).argmax(1), predict(file, images).argmax(1)
        top1, agreement = (float(100 * (found == each).mean()) for each in (labels, expected))
        return SecondRuntime(runtime.version, top1, agreement)

    def _require_same_logits(self, file: Path) -> None:
        """Raises GateError unless uint8 images give the logits of normalised images, to the last bit."""
        images = self.data.test.images[:INPUT_IMAGES]
        floats = emit(self.finished.product, self.finished.facts.shape, storage=self.storage).model
        expected = predict(floats, self.data.normalize(images).numpy())
        same = (predict(file, self.uint8.arranged(images.numpy())) == expected).all(axis=1)
        if not same.all():
            share = f"{100 * (1 - same.mean()):.3g} %"
            raise GateError(
                f"{self.path}: {share} of uint8 images give other logits than normalised ones",
                key="export.uint8-input-differs",
            )


def changed_since_export(path: Path) -> str:
    """A warning for a file that has changed since it was verified; empty where it has not, or no report of it is known."""
    try:
        report = ExportReport.from_json(json.loads(file_beside(path, EXPORT).read_text()))
        if report.file is None or Path(report.file).name != path.name or report.sha256 in (None, sha256(path)):
            return ""
    except (OSError, ValueError):
        return ""
    return f"{path}: no longer the file that was verified; export it again"


def _require(path: Path, input: str, layout: str) -> None:
    if path.suffix != ".onnx" or path.is_dir():
        what = "is a folder" if path.is_dir() else "does not end with .onnx"
        example = path.with_name("student.onnx")
        raise ExportError(f"{path}: {what}; -o names the file to write, such as {example}", key="export.no-onnx-path")
    if path.name == FLOAT_ONNX or path.name.endswith(f".{FLOAT_ONNX}"):
        raise ExportError(
            f"{path}: this name is kept for the float file beside an exported one; choose another with -o",
            key="export.name-of-a-float-file",
        )
    if layout != "nchw" and input != "uint8":
        raise ExportError(
            f"layout {layout} with float input: float input is nchw, as in training; add --input uint8",
            key="export.layout-of-float-input",
        )


def _require_exact(finished: FinishedRun, verdict: Verdict) -> None:
    """Raises GateError if a network of a bit-exact scheme gives other logits in PyTorch than in onnxruntime."""
    scheme, same = finished.recipe.student.quantize, verdict.same_as_reference
    if scheme is not None and scheme.exact and same is not None and same < 1:
        raise GateError(
            f"{verdict.file}: exact: {100 * (1 - same):.3g} % of the images have other logits in PyTorch; pools over 2^n "
            f"pixels and layers that stay integer are exact, others are not: leave exact out",
            key="export.not-exact",
        )


def _resolution(emitted: Emitted) -> dict[str, Any]:
    """The resolution of each integer layer, and the layers whose bias is coarse."""
    return {
        "resolution": [each.as_dict() for each in emitted.resolution],
        "coarse_layers": [each.layer for each in emitted.resolution if each.coarse],
    }
