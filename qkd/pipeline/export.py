"""Ship: a finished run -> its ONNX file, verified on the test split, with the float file of the same network beside it."""

from __future__ import annotations

import json
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
from qkd.pipeline.onnx_metadata import metadata_of_run, write_infer_program
from qkd.pipeline.reload import FinishedRun, float_network, reload_product
from qkd.storage.artifacts import EXPORT, FLOAT_ONNX, INFER, STUDENT_ONNX, file_beside
from qkd.storage.atomic import replaced_on_success, sha256, write_atomic
from qkd.storage.run import Run

Input = Literal["float", "uint8"]
COMPARED, LIKENED = 256, 32
"""Images for which a file with raw input is held against the one with float input, and a file against the network."""


def export_run(
    run: Run,
    *,
    output: Path | None = None,
    storage: Literal["int8", "packed"] = "int8",
    input: Input = "float",
    layout: Layout = "nchw",
    target: str = "onnxruntime",
) -> dict[str, Any]:
    """Emit, verify, save; the float file, ``infer.py`` and the report beside. -> what `qkd export --json` prints.

    With ``input`` "uint8" the file takes raw images in a layout and normalises them itself, to the same logits. Raises
    GateError if the file is not what was trained, and leaves what was there; ExportError for settings that make no file.
    """
    chosen = target_of(target)
    path = output or run.folder / STUDENT_ONNX
    _require(path, input, layout)
    if not chosen.proven:
        from qkd.pipeline.export_targets import export_for_target

        return export_for_target(run, chosen, output=output, storage=storage, raw_input=input == "uint8", layout=layout)
    second = None if chosen.runtime is None else chosen.runtime()
    finished = reload_product(run)
    data = load_data(finished.recipe).with_test_in_memory()
    scale, shift = (part.reshape(-1).numpy() for part in data.affine())
    raw = Uint8Input(scale, shift, layout)
    emitted = _emitted(finished, storage, raw, input, chosen)
    with replaced_on_success(path) as beside:
        save(emitted.model, beside)
        given = raw if input == "uint8" else None
        like = _like(finished, emitted, path, data, given)
        verdict = _verify(finished, beside, data, given)
        if second is not None:
            verdict[second.name] = {"version": second.version, **_in_second_runtime(second, beside, data, given)}
        if input == "uint8":
            _require_same(finished, storage, beside, data, raw)
        floating = save(_float_model(finished, path, data), file_beside(path, FLOAT_ONNX))
        facts = {"file": str(path), "bytes": beside.stat().st_size, "float_bytes": floating.stat().st_size}
        checksum = sha256(beside)
    report = {
        **verdict,
        **facts,
        **like,
        "sha256": checksum,
        "target": target,
        "storage": storage,
        "input": input,
        "layout": layout,
        **_resolution(emitted),
    }
    program = write_infer_program(path, file_beside(path, INFER))
    report["program"] = None if program is None else str(program)
    write_atomic(file_beside(path, EXPORT), lambda file: file.write((json.dumps(report, indent=2) + "\n").encode()))
    return report


def changed_since_export(path: Path) -> str:
    """What to say of a file that is no longer the one that was verified; empty where it is, or nothing is known of it."""
    try:
        report = json.loads(file_beside(path, EXPORT).read_text())
        told = report.get("sha256") if Path(report["file"]).name == path.name else None
        same = told in (None, sha256(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return "" if same else f"{path}: no longer the file that was verified; export it again"


def _require(path: Path, input: str, layout: str) -> None:
    if path.suffix != ".onnx" or path.is_dir():
        what = "is a folder" if path.is_dir() else "does not end with .onnx"
        raise ExportError(f"{path}: {what}; -o names the file to write, such as {path.with_name('student.onnx')}")
    if path.name == FLOAT_ONNX or path.name.endswith(f".{FLOAT_ONNX}"):
        raise ExportError(f"{path}: float files beside exported ones get such names; choose another with -o")
    if layout != "nchw" and input != "uint8":
        raise ExportError(f"layout {layout} with float input: training's own layout is nchw; add --input uint8")


def _emitted(
    finished: FinishedRun, storage: Literal["int8", "packed"], raw: Uint8Input, input: Input, target: Target
) -> Emitted:
    told = metadata_of_run(finished, raw, "uint8" if input == "uint8" else "float32")
    given = raw if input == "uint8" else None
    return emit(finished.product, finished.facts.shape, storage=storage, metadata=told, raw=given, target=target)


def _verify(finished: FinishedRun, path: Path, data: Data, raw: Uint8Input | None) -> dict[str, Any]:
    reference = logits(finished.product, data.batches("test", finished.recipe.data.batch)).numpy()
    verdict = verify(path, _given(data, raw), labels=data.test.labels.numpy(), reference_logits=reference)
    require(verdict)
    _require_exact(finished, verdict)
    return verdict.as_dict()


def _like(finished: FinishedRun, emitted: Emitted, path: Path, data: Data, raw: Uint8Input | None) -> dict[str, Any]:
    """What the report says of PyTorch beside the file, layer by layer. Raises GateError where it is another network."""
    images = data.test.images[:LIKENED]
    floats = data.normalize(images).numpy()
    given = floats if raw is None else raw.arranged(images.numpy())
    found = torch_parity(finished.product, emitted, given, floats)
    require_parity(found, path)
    return {"same_integers": found.same, "compared_quantizers": found.quantizers}


def _float_model(finished: FinishedRun, path: Path, data: Data) -> Any:
    """The float file beside. Raises GateError if it is not the float network."""
    network = float_network(finished) or finished.product
    model = emit_float(network, finished.facts.shape)
    wrong = float_parity(network, model, data.normalize(data.test.images[:LIKENED]).numpy())
    if wrong:
        raise GateError(f"{file_beside(path, FLOAT_ONNX)}: is not the float network: {wrong}")
    return model


def _given(data: Data, raw: Uint8Input | None) -> np.ndarray:
    """The test images as a file takes them."""
    images: np.ndarray = data.normalize(data.test.images).numpy()
    return images if raw is None else raw.arranged(data.test.images[:].numpy())


def _in_second_runtime(second: Runtime, path: Path, data: Data, raw: Uint8Input | None) -> dict[str, float]:
    """Top-1 there, and how often it is onnxruntime's, in %; its rounding is its own, so bits are not compared."""
    images, labels = _given(data, raw), data.test.labels.numpy()
    found, expected = second.open(path, 1).logits(INPUT, images).argmax(1), predict(path, images).argmax(1)
    return {"top1": float(100 * (found == labels).mean()), "agreement": float(100 * (found == expected).mean())}


def _require_exact(finished: FinishedRun, verdict: Verdict) -> None:
    """Raises GateError if a network of the bit-exact edition gives other logits in PyTorch than in onnxruntime."""
    scheme, same = finished.recipe.student.quantize, verdict.same_as_reference
    if scheme is not None and scheme.exact and same is not None and same < 1:
        raise GateError(
            f"{verdict.file}: exact: {100 * (1 - same):.3g} % of the images have other logits in PyTorch; pools over 2^n "
            f"pixels and layers that stay integer are exact, others are not: leave exact out"
        )


def _require_same(
    finished: FinishedRun, storage: Literal["int8", "packed"], path: Path, data: Data, raw: Uint8Input
) -> None:
    """Raises GateError unless bytes give the logits of normalised images, to the last bit."""
    images = data.test.images[:COMPARED]
    floats = emit(finished.product, finished.facts.shape, storage=storage).model
    expected = predict(floats, data.normalize(images).numpy())
    same = (predict(path, raw.arranged(images.numpy())) == expected).all(axis=1)
    if not same.all():
        raise GateError(f"{path}: {100 * (1 - same.mean()):.3g} % of raw images give other logits than normalised ones")


def _resolution(emitted: Emitted) -> dict[str, Any]:
    """What the report says of each integer layer's resolution, and of those whose bias is coarse."""
    return {
        "resolution": [each.as_dict() for each in emitted.resolution],
        "coarse_layers": [each.layer for each in emitted.resolution if each.coarse],
    }
