"""The gate: a good file passes, and each way of being wrong is stopped and named."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from qkd.errors import ExportError, GateError
from qkd.export import Verdict, emit, emit_float, predict, require, save, verify
from tests.support.refusals import Refused
from tests.support.tiny_products import SHAPE, Residual, images, logits, product, with_another_unit

gate = importlib.import_module("qkd.export.verification")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(emit(product(Residual(), "w4a4"), SHAPE).model, tmp_path_factory.mktemp("run") / "student.onnx")


@pytest.fixture(scope="module")
def verdict(student: Path) -> Verdict:
    reference = logits(product(Residual(), "w4a4"), images(40))
    labels = predict(student, images(40)).argmax(1)
    labels[:10] += 1
    return verify(student, images(40), labels=labels, reference_logits=reference)


def test_a_good_file_is_proven(verdict: Verdict, student: Path) -> None:
    assert verdict.equal_fraction == 1 and verdict.largest_difference == 0 and verdict.first_divergence is None
    assert verdict.same_in_batches and verdict.float_layers == () and verdict.images == 40
    assert verdict.integer_layers == emit(product(Residual(), "w4a4"), SHAPE).integer_layers
    assert verdict.census["QLinearConv"] == 4 and verdict.bytes == student.stat().st_size
    assert verdict.top1_onnxruntime == verdict.top1_emulator == 75
    assert verdict.optimizer_difference < 0.2
    require(verdict)


def test_a_verdict_is_json(verdict: Verdict) -> None:
    found = json.loads(json.dumps(verdict.as_dict()))
    wanted = {
        "equal_fraction",
        "integer_layers",
        "float_layers",
        "top1_torch",
        "top1_onnxruntime",
        "minimum_onnxruntime",
    }
    assert wanted <= set(found) and found["equal_fraction"] == 1 and found["minimum_onnxruntime"] == "1.19"


def test_accuracy_is_left_open_without_labels(student: Path) -> None:
    found = verify(student, images(4))
    assert (found.top1_emulator, found.top1_onnxruntime, found.top1_torch, found.agreement) == (None,) * 4
    require(found)


@pytest.mark.parametrize(
    "change",
    [
        {"equal_fraction": 0.9, "first_divergence": "conv: 3 of 9"},
        {"float_layers": ("conv",)},
        {"float_layers": ("h",), "reasons": {"h": "-"}, "first_divergence": "conv: 3 of 9"},
        {"equal_fraction": 0.5, "instructions": "avx2"},
        {"same_in_batches": False},
        {"float_layers": ("h",), "reasons": {"h": "no kernel"}, "emulator_agreement": 90.0},
    ],
)
def test_each_failure_is_named(verdict: Verdict, change: dict[str, object], refused: Refused) -> None:
    on_vnni = dataclasses.replace(verdict, file="student.onnx", instructions="avx512_vnni")
    with refused(GateError, "gate.not-proven") as caught:
        require(dataclasses.replace(on_vnni, **change))  # type: ignore[arg-type]
    assert caught.value.exit_code == 3


def test_a_float_network_has_to_agree_with_pytorch(verdict: Verdict, refused: Refused) -> None:
    layers = {"integer_layers": (), "float_layers": ("fc",), "reasons": {"fc": "float"}}
    floating = dataclasses.replace(verdict, file="float.onnx", **layers)
    require(dataclasses.replace(floating, agreement=99.5))
    for agreement in (0.0, 98.0):
        with refused(GateError, "gate.not-proven"):
            require(dataclasses.replace(floating, agreement=agreement))


def test_announced_float_layers_pass(verdict: Verdict) -> None:
    require(dataclasses.replace(verdict, float_layers=("h",), reasons={"h": "no kernel"}, equal_fraction=0.5))


def test_one_wrong_logit_is_enough_to_stop_a_file(
    student: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    right = gate.emulate

    def off_by_one_bit(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
        found = right(model, inputs)
        found[3, 2] = np.nextafter(found[3, 2], np.float32(np.inf))
        return found

    monkeypatch.setattr(gate, "emulate", off_by_one_bit)
    found = verify(student, images(8))
    assert found.equal_fraction == 7 / 8 and found.first_divergence is None
    with refused(GateError, "gate.not-proven"):
        require(dataclasses.replace(found, file="student.onnx", instructions="avx512_vnni"))


def test_a_layer_that_onnxruntime_leaves_in_float_is_found(student: Path, tmp_path: Path, refused: Refused) -> None:
    model = with_another_unit(onnx.load(str(student)), "conv", 2)
    found = verify(save(model, tmp_path / "wrong.onnx"), images(4))
    assert found.float_layers == ("conv",) and "conv" not in found.integer_layers and found.first_divergence
    with refused(GateError, "gate.not-proven"):
        require(dataclasses.replace(found, first_divergence="conv: 3 of 9"))


def test_broken_and_foreign_files_are_one_clear_line(student: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "half.onnx").write_bytes(student.read_bytes()[:-200])
    foreign = emit_float(Residual().eval(), SHAPE)
    foreign.producer_name = "pytorch"
    save(foreign, tmp_path / "foreign.onnx")
    expected = {
        "missing.onnx": "model.missing-file",
        "text.onnx": "model.invalid-file",
        "half.onnx": "model.invalid-file",
        "foreign.onnx": "model.not-exported-here",
    }
    for name, key in expected.items():
        # the wording of onnx, which differs between versions, follows behind "model: "
        with pytest.raises(ExportError, match=r"no such file|not a valid ONNX model: |written by pytorch") as caught:
            verify(tmp_path / name, images(2))
        assert caught.value.key == key
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_for_a_newer_onnxruntime_is_refused_with_its_version(tmp_path: Path) -> None:
    node = helper.make_node("NotThere", ["x"], ["y"], domain="somewhere")
    values = [helper.make_tensor_value_info(name, 1, ["N", 3, 4, 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("somewhere", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    with pytest.raises(ExportError, match=r"onnxruntime .* refuses it") as refusal:
        predict(save(model, tmp_path / "odd.onnx"), images(1))
    assert refusal.value.key == "model.refused"
    helper.set_model_props(model, {"minimum_onnxruntime": "99.1"})
    with pytest.raises(ExportError, match=r"needs onnxruntime 99\.1.*export with storage int8") as newer:
        predict(save(model, tmp_path / "odd.onnx"), images(1))
    assert newer.value.key == "model.newer-onnxruntime"  # the wording holds this machine's version, so it is in no file
