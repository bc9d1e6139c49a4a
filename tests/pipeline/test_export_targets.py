"""Files for other runtimes: they meet the documentation of the runtime, the logits stay, and refusals are one line."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from qkd import recipe as recipes
from qkd.cli.main import main
from qkd.engine.device import Machine
from qkd.errors import ExportError, GateError, UsageError
from qkd.export import TARGETS, Target, Uint8Input, emit, emit_float, emulate, reference_logits, save, target_of
from qkd.export import openvino as second
from qkd.pipeline import export_targets
from qkd.pipeline.export import export_run
from qkd.pipeline.train import train_recipe
from qkd.storage.results import ExportReport, SecondRuntime
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_products import (
    MIDDLES,
    SHAPE,
    Chunks,
    Concatenation,
    NormAlone,
    Residual,
    images,
    logits,
    product,
)
from tests.support.tiny_runs import TINY

TENSORRT, LITERT = TARGETS["tensorrt"], TARGETS["litert"]
SEVEN = {"last": 7, "sums": 7}
JOINING = (Concatenation, NormAlone, Chunks)


def quantizers(model: onnx.ModelProto, kind: str) -> Iterator[tuple[onnx.NodeProto, list[np.ndarray | None]]]:
    """Nodes of a kind, each with its constants; None for an input that is none."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == kind:
            yield node, [constants.get(name) for name in node.input]


def oracle(model: onnx.ModelProto, few: np.ndarray) -> np.ndarray:
    """onnx.reference, which has DequantizeLinear with an axis from opset 19 on."""
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.opset_import[0].version, newer.ir_version = 21, 10
    found: np.ndarray = ReferenceEvaluator(newer).run(None, {"images": few})[0]
    return found


@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w2a2"])
def test_litert_gets_int8_codes_and_int32_biases_and_the_same_logits(scheme: str) -> None:
    trained = product(Residual(), scheme)
    model = emit(trained, SHAPE, target=LITERT).model
    for _, (_, scale, zero) in quantizers(model, "QuantizeLinear"):
        assert scale is not None and zero is not None and zero.dtype == np.int8 and scale.ndim == zero.ndim == 0
    weights = biases = 0
    for node, (codes, scale, *zero) in quantizers(model, "DequantizeLinear"):
        if codes is not None and codes.dtype == np.int8:
            assert abs(codes.astype(int)).max() <= 127 and zero[0] is not None and not zero[0].any()
            assert node.attribute[0].name == "axis" and scale is not None and scale.shape == (len(codes),)
            weights += 1
        biases += codes is not None and codes.dtype == np.int32
    layers = sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    assert weights == biases == layers == 5
    ours = emit(trained, SHAPE).model
    assert np.array_equal(reference_logits(model, images()), reference_logits(ours, images()))
    assert np.abs(oracle(model, images(2)) - reference_logits(ours, images(2))).max() < 1e-3


def test_tensorrt_gets_symmetric_int8_float_biases_and_no_integer_operator() -> None:
    trained = product(Residual(), "w4a7", **SEVEN)
    emitted = emit(trained, SHAPE, target=TENSORRT)
    model = emitted.model
    assert emitted.coarsened == () and emitted.float_layers == ()
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        for _, (_, _, zero) in quantizers(model, kind):
            assert zero is not None and zero.dtype == np.int8 and not zero.any()
    makers = {node.output[0]: node.op_type for node in model.graph.node}
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert stored[node.input[2]] == TensorProto.FLOAT
            assert [makers[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert makers.get(node.input[0]) != "QuantizeLinear", "an operator on integers"
    assert TensorProto.INT32 not in stored.values()
    given = images()
    expected = logits(trained, given)
    found = reference_logits(model, given)
    assert np.abs(found - expected).max() < 0.05 * expected.std()
    assert np.abs(oracle(model, given[:2]) - found[:2]).max() < 0.02 * expected.std()


@pytest.mark.parametrize("target", [TENSORRT, LITERT])
@pytest.mark.parametrize("middle", MIDDLES)
def test_every_operation_has_a_form_for_every_runtime(target: Target, middle: Any, refused: Refused) -> None:
    trained = product(middle(), "w4a4", **SEVEN)
    if target is LITERT and middle in JOINING:
        with refused(ExportError, "export.broken-invariant"):
            emit(trained, SHAPE, target=target)
        return
    found = reference_logits(emit(trained, SHAPE, target=target).model, images(8))
    expected = logits(trained, images(8))
    assert np.abs(found - expected).max() < 0.25 * expected.std()


def test_eight_bits_from_zero_up_become_seven_and_are_named() -> None:
    trained = product(Residual(), "w8a8")
    emitted = emit(trained, SHAPE, target=TENSORRT)
    assert "relu" in emitted.coarsened and not {name for name in emitted.coarsened if "conv" in name}
    found, expected = reference_logits(emitted.model, images()), logits(trained, images())
    assert 0 < np.abs(found - expected).max() < 0.3 * expected.std()


def test_raw_images_too() -> None:
    trained = product(Residual(), "w4a4", **SEVEN)
    raw = Uint8Input(np.full(3, 0.02, np.float32), np.full(3, -2.5, np.float32), "nhwc")
    given = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    for target in (TENSORRT, LITERT):
        as_bytes, as_floats = (
            emit(trained, SHAPE, raw=raw, target=target).model,
            emit(trained, SHAPE, target=target).model,
        )
        assert np.array_equal(
            reference_logits(as_bytes, raw.arranged(given)), reference_logits(as_floats, raw.normalized(given))
        )


def test_what_a_runtime_cannot_take_is_one_line(refused: Refused) -> None:
    with refused(UsageError, "target.unknown"):
        target_of("tensorflow")
    shifted = product(Residual(), "w4a4", family="lsq_plus", calibration="minmax")
    with refused(ExportError, "target.zero-point"):
        emit(shifted, SHAPE, target=TENSORRT)
    assert emit(shifted, SHAPE, target=LITERT).float_layers == ()
    for name, scheme in (("tensorrt", "w4a4"), ("litert", "w2a2"), ("openvino", "w2a2")):
        with refused(ExportError, "target.packed-bits"):
            emit(product(Residual(), scheme), SHAPE, storage="packed", target=TARGETS[name])
    assert emit(product(Residual(), "w4a4"), SHAPE, storage="packed", target=TARGETS["openvino"]).model


@pytest.mark.parametrize("target", [TENSORRT, LITERT])
def test_the_emulator_is_onnxruntimes_alone(target: Target, refused: Refused) -> None:
    model = emit(product(Residual()), SHAPE, target=target).model
    with refused(ExportError, "model.other-target"):
        emulate(model, images(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runtimes")
    student = {**TINY["student"], "quantize": "w4a4"}
    tiny = {**TINY, "method": {"name": "qat"}, "teachers": {}, "match": [], "student": student}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    made = Run.create(folder / "run")
    train_recipe(recipes.load(folder / "tiny.yaml", ("train.epochs=1",)), made, Machine("cpu", threads=1))
    return made


@pytest.mark.parametrize("target", ["tensorrt", "litert"])
def test_a_run_is_exported_run_and_reported(run: Run, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", str(run.folder), "--target", target])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "not run there" in out and "top-1 agreement" in out
    file = run.folder / f"student.{target}.onnx"
    report = json.loads(file.with_suffix(".export.json").read_text())
    assert report["target"] == target and report["agreement"] > 93 and report["bytes"] == file.stat().st_size
    assert bool(report["coarsened"]) == (target == "tensorrt") and report["file"] == str(file)
    assert {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}["target"] == target


def test_a_file_that_is_another_network_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    real = export_targets._reference
    monkeypatch.setattr(export_targets, "_reference", lambda *given: -real(*given))
    with refused(GateError, "gate.top1-agreement"):
        export_run(run, target="tensorrt", output=tmp_path / "s.onnx")
    assert list(tmp_path.iterdir()) == []


def test_openvino_that_is_missing_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with refused(ExportError, "extra.not-installed"):
        export_run(run, target="openvino", output=tmp_path / "s.onnx")
    assert list(tmp_path.iterdir()) == []


class Pretended:
    """A package that computes what onnxruntime does, as OpenVINO's does from afar."""

    __version__ = "0"

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path

    def logits(self, name: str, given: np.ndarray) -> np.ndarray:
        from qkd.export import predict

        return predict(self.path, given)


def test_a_second_runtime_is_compared_with_onnxruntime(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second, "require_openvino", lambda: Pretended)
    monkeypatch.setattr(second, "OpenVino", Pretended)
    report = export_run(run, target="openvino", output=tmp_path / "s.onnx")
    assert isinstance(report, ExportReport)
    assert report.openvino == SecondRuntime("0", report.top1_onnxruntime, 100.0)
    assert report.target == "openvino" and report.equal_fraction == 1
    keys = list(report.to_json())
    assert keys[keys.index("openvino") - 1 :][:3] == ["same_as_reference", "openvino", "float_bytes"]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is an extra")
def test_openvino_itself_agrees(tmp_path: Path) -> None:
    from qkd.export import OpenVino

    trained = product(Residual(), "w8a8")
    for model in (emit(trained, SHAPE).model, emit_float(trained, SHAPE)):
        path = save(model, tmp_path / "m.onnx")
        found = OpenVino(path, 1).logits("images", images(16))
        assert np.abs(found - reference_logits(path, images(16))).max() < 0.2 * found.std()
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ExportError, match=r"text\.onnx") as error:  # the rest is OpenVINO's wording
        OpenVino(tmp_path / "text.onnx", 1)
    assert error.value.key == "openvino.refused"
