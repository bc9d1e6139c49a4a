"""Forms that make onnxruntime take a better kernel, and change no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qkd.export import Uint8Input, count_operators, emit, emulate, first_divergence, ops_layers, predict
from qkd.quantizers import Scheme, calibrate, insert
from tests.support.tiny_products import Head, block, images, with_trained_norms


class Wide(nn.Module):
    """A stem of 16 channels on images of any number of channels, and layers whose channels need no company."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.next, self.head = block(channels, 16, stride=2), block(16, 16), Head(16)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.next(self.stem(inputs)))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels_of_zeros_complete_a_four_and_change_nothing(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (channels, 9, 9)
    network = insert(with_trained_norms(Wide(channels)), Scheme.parse("w4a4", calibration="minmax"))
    calibrate(network, [torch.from_numpy(images(8, shape))])
    wide = emit(network.eval(), shape)
    monkeypatch.setattr(ops_layers, "TOGETHER", 1)
    plain = emit(network, shape)
    complete = channels + -channels % 4
    stored, unwidened = (
        {t.name: numpy_helper.to_array(t) for t in each.model.graph.initializer} for each in (wide, plain)
    )
    assert stored["stem.0.weight"].shape == (16, complete, 3, 3) and not stored["stem.0.weight"][:, channels:].any()
    assert np.array_equal(stored["stem.0.weight"][:, :channels], unwidened["stem.0.weight"])
    assert [node.name for node in wide.model.graph.node if node.op_type == "Pad"] == ["stem.0.fours"]
    assert np.array_equal(predict(wide.model, images(6, shape)), predict(plain.model, images(6, shape)))
    assert np.array_equal(emulate(wide.model, images(6, shape)), predict(plain.model, images(6, shape)))
    assert count_operators(wide.model)["QLinearConv"] == 2 and wide.resolution == plain.resolution


def test_a_file_is_its_weights_and_eight_bytes_for_a_channel_and_little_else() -> None:
    """A scale and a bias for each channel; the unit of the bias is multiplied from two scales, names and defaults are few."""
    network = with_trained_norms(Wide())
    layers_in = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    quantized = insert(network, Scheme.parse("w8a8", calibration="minmax"))
    calibrate(quantized, [torch.from_numpy(images(8))])
    size = emit(quantized.eval(), (3, 12, 12)).model.ByteSize()
    weights = sum(layer.weight.numel() for layer in layers_in)
    channels = sum(len(layer.weight) for layer in layers_in)
    assert 0 < size - weights - 8 * channels < 700 * len(layers_in)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_files_with_uint8_input_get_them_too(layout: Any) -> None:
    network = insert(with_trained_norms(Wide()), Scheme.parse("w4a4", calibration="minmax"))
    calibrate(network, [torch.from_numpy(images(8, (3, 9, 9)))])
    uint8_input = Uint8Input(np.full(3, 0.02, np.float32), np.full(3, -2.5, np.float32), layout)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 9, 9), dtype=np.uint8)
    as_bytes, as_floats = emit(network.eval(), (3, 9, 9), raw=uint8_input).model, emit(network, (3, 9, 9)).model
    expected = predict(as_floats, uint8_input.normalized(pixels))
    assert np.array_equal(predict(as_bytes, uint8_input.arranged(pixels)), expected)
    assert np.array_equal(emulate(as_bytes, uint8_input.arranged(pixels)), expected)
    assert first_divergence(as_bytes, uint8_input.arranged(pixels)) is None
