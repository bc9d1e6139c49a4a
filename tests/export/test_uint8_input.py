"""uint8 input: a file that takes uint8 images gives exactly the logits of the one that takes normalised images."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qkd.errors import ExportError, UsageError
from qkd.export import Uint8Input, emit, emit_float, emulate, first_divergence, predict, require, save, verify
from qkd.export.uint8_input import FRONT, in_layout, require_exact_floats
from tests.support.refusals import Refused
from tests.support.tiny_products import SHAPE, Residual, images, product

SCALE = np.array([0.0171, 0.01750700280112, 0.017429], np.float32)
SHIFT = np.array([-2.1179, -2.0357142857, -1.8044444], np.float32)


def uint8_input(layout: Any = "nchw") -> Uint8Input:
    return Uint8Input(SCALE, SHIFT, layout)


def bytes_of_all_values(count: int = 12) -> np.ndarray:
    """Images (N, C, H, W) in which every channel has every byte."""
    generator = np.random.default_rng(0)
    each = [generator.permutation(np.resize(np.arange(256), count * SHAPE[1] * SHAPE[2])) for _ in range(SHAPE[0])]
    return np.stack(each, 1).reshape(count, *SHAPE[1:], SHAPE[0]).transpose(0, 3, 1, 2).astype(np.uint8).copy()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("scheme", "storage"), [("w8a8", "int8"), ("w2a2", "packed")])
def test_the_same_logits_to_the_last_bit(layout: str, scheme: str, storage: Any) -> None:
    trained, pictures = product(Residual(), scheme), bytes_of_all_values()
    with_floats = emit(trained, SHAPE, storage=storage).model
    with_bytes = emit(trained, SHAPE, storage=storage, raw=uint8_input(layout)).model
    expected, given = predict(with_floats, uint8_input().normalized(pictures)), in_layout(pictures, layout)
    assert np.array_equal(predict(with_bytes, given), expected)
    assert np.array_equal(emulate(with_bytes, given), expected)
    assert first_divergence(with_bytes, given) is None


def test_the_float_file_too_can_take_bytes() -> None:
    trained, pictures = product(Residual()), bytes_of_all_values(2)
    expected = predict(emit_float(trained, SHAPE), uint8_input().normalized(pictures))
    assert np.array_equal(predict(emit_float(trained, SHAPE, raw=uint8_input()), pictures), expected)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_file_with_uint8_input_is_proven(layout: str, tmp_path: Any) -> None:
    model = emit(product(Residual()), SHAPE, raw=uint8_input(layout)).model
    verdict = verify(save(model, tmp_path / "bytes.onnx"), in_layout(bytes_of_all_values(), layout))
    require(verdict)
    assert verdict.equal_fraction == 1 and verdict.float_layers == () and verdict.same_in_batches
    assert not set(verdict.integer_layers) & set(FRONT)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["input"], metadata["layout"], json.loads(metadata["float_layers"])) == ("uint8", layout, {})


def test_a_file_that_normalises_otherwise_is_refused(refused: Refused) -> None:
    model = emit(product(Residual()), SHAPE, raw=uint8_input()).model
    assert require_exact_floats(model, uint8_input(), SHAPE) is None  # type: ignore[func-returns-value]
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "images.shifted.by")
    nudged = np.nextafter(numpy_helper.to_array(stored), np.float32(0))
    stored.CopyFrom(numpy_helper.from_array(nudged, stored.name))
    onnx.checker.check_model(model)
    with refused(ExportError, "export.inexact-normalisation"):
        require_exact_floats(model, uint8_input(), SHAPE)


def test_bytes_are_never_taken_for_normalised_images(refused: Refused) -> None:
    trained = product(Residual())
    with refused(ExportError, "images.type"):
        predict(emit(trained, SHAPE).model, bytes_of_all_values(1))
    for run in (predict, emulate):
        with refused(ExportError, "images.type"):
            run(emit(trained, SHAPE, raw=uint8_input()).model, images(1))


def test_wrong_settings_are_named(refused: Refused) -> None:
    with refused(UsageError, "export.unknown-layout"):
        emit(product(Residual()), SHAPE, raw=uint8_input("nhcw"))
    with refused(ExportError, "export.normalisation-channels"):
        emit(product(Residual()), SHAPE, raw=Uint8Input(SCALE[:1], SHIFT[:1]))


def test_resolution_names_layers_with_a_coarse_bias() -> None:
    trained = product(Residual(), "w2a2")
    fine, coarse = (emit(trained, SHAPE, headroom=headroom) for headroom in (63, 1))
    assert [each.layer for each in fine.resolution] == [each.layer for each in coarse.resolution]
    assert any(each.coarse for each in coarse.resolution)
    for one, other in zip(fine.resolution, coarse.resolution, strict=True):
        assert one.weight_bits == other.weight_bits <= 8 and other.factors == (1, 1) and one.headroom <= 127
        if one.bias_step is not None and other.bias_step is not None:
            assert one.bias_step <= other.bias_step
            assert one.bias_error is not None and one.bias_error <= 0.51 * one.bias_step
    assert {each.layer: each.weight_bits for each in fine.resolution}["body.0"] == 2
    assert [each.layer for each in fine.resolution if each.bias_step is None] == ["head.fc"]
