"""Another road to the same file: PyTorch's own exporter writes the rounded network, a pass behind it makes integers of it.

It shares the reading of grids and of trained integers with the emitter, and nothing else: tracing, operators, their order and
settings, the folding of batch norms and the biases are another program's.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any, final

import brevitas.nn as qnn
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from qkd.export import count_operators, emit, predict
from qkd.export.fold import trained_integers
from qkd.export.grid import Grid, read_grid
from tests.support.tiny_products import SHAPE, Residual, images, product, stored

Product = Any


class Rounded(nn.Module):
    """A quantizer in PyTorch's own words; its exporter knows them as QuantizeLinear and DequantizeLinear."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.scale, self.zero = float(grid.scale), grid.zero_point
        self.ends = float(grid.value(grid.low)), float(grid.value(grid.high))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(inputs.clamp(*self.ends), self.scale, self.zero, 0, 255)


def plain(trained: Product) -> nn.Module:
    """The trained network in layers of PyTorch, the weights already rounded."""
    network = copy.deepcopy(trained)
    for name, module in list(network.named_modules()):
        if isinstance(module, (qnn.QuantReLU, qnn.QuantIdentity)):
            relu = isinstance(module, qnn.QuantReLU)
            network.set_submodule(name, Rounded(read_grid(module.act_quant, name, at_least_zero=relu)))
        elif isinstance(module, (qnn.QuantConv2d, qnn.QuantLinear)):
            kind: Any = nn.Conv2d if isinstance(module, qnn.QuantConv2d) else nn.Linear
            sizes = {each: getattr(module, each) for each in kind.__constants__ if hasattr(module, each)}
            sizes = {each: value for each, value in sizes.items() if each not in ("output_padding", "padding_mode")}
            layer = kind(**sizes, bias=module.bias is not None)
            layer.weight, layer.bias = nn.Parameter(module.quant_weight().value.detach()), module.bias
            network.set_submodule(name, layer)
    network.recompile()
    return network.eval()


def by_torchscript(trained: Product) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain(trained),
            (torch.zeros(1, *SHAPE),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
        )
    return onnx.load_from_string(buffer.getvalue())


@final
class Pass:
    """The pass behind PyTorch's exporter, over one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.stored = {each.name: each for each in model.graph.initializer}
        self.makers = {node.output[0]: node for node in self.nodes}

    def of_kind(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def constant(self, name: str) -> np.ndarray:
        """An initialiser, or what a Constant node holds."""
        tensor = self.stored[name] if name in self.stored else self.makers[name].attribute[0].t
        return np.asarray(numpy_helper.to_array(tensor))

    def keep(self, name: str, value: np.ndarray) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        return name

    def integer_layer(self, node: onnx.NodeProto, trained: np.ndarray) -> None:
        """Quantized and scales out of float weights, and a bias in units of input scale * weight scale."""
        grid = self.makers[node.input[0]]
        while grid.op_type in ("MaxPool", "Flatten", "GlobalAveragePool"):
            grid = self.makers[grid.input[0]]
        weights, bias = (self.constant(name).astype(np.float64) for name in node.input[1:3])
        flat, whole = weights.reshape(len(weights), -1), trained.reshape(len(trained), -1)
        scales = (np.abs(flat).max(1) / np.abs(whole).max(1)).astype(np.float32)
        units = self.constant(grid.input[1]).astype(np.float32) * scales
        integers = np.rint(flat / scales[:, None]).reshape(weights.shape).astype(np.int8)
        self.dequantized(node, 1, integers, scales)
        self.dequantized(node, 2, np.rint(bias / units).astype(np.int32), units)

    def dequantized(self, node: onnx.NodeProto, position: int, integers: np.ndarray, scales: np.ndarray) -> None:
        made = f"{node.name}.{position}"
        parts = (integers, scales, np.zeros(len(scales), integers.dtype))
        read = [self.keep(f"{made}.{i}", part) for i, part in enumerate(parts)]
        self.nodes.insert(self.nodes.index(node), helper.make_node("DequantizeLinear", read, [made], axis=0))
        node.input[position] = made

    def grid_behind(self, node: onnx.NodeProto) -> None:
        """The grid again behind what only moves integers."""
        grid, moved = list(self.makers[node.input[0]].input[1:]), node.output[0]
        node.output[0] = f"{moved}.moved"
        place = self.nodes.index(node) + 1
        quantize = helper.make_node("QuantizeLinear", [node.output[0], *grid], [f"{moved}.integers"])
        dequantize = helper.make_node("DequantizeLinear", [f"{moved}.integers", *grid], [moved])
        self.nodes[place:place] = [quantize, dequantize]

    def clip_integers(self, node: onnx.NodeProto) -> None:
        """A Clip of floats before a quantizer becomes one of integers behind it."""
        clip = self.makers.get(node.input[0])
        if clip is None or clip.op_type != "Clip":
            return
        scale, zero, *ends = (self.constant(name) for name in (*node.input[1:], *clip.input[1:]))
        integers = [np.array(round(float(end) / float(scale)) + int(zero), np.uint8) for end in ends]
        made, names = node.output[0], [self.keep(f"{node.output[0]}.{i}", code) for i, code in enumerate(integers)]
        node.input[0], node.output[0] = clip.input[0], f"{made}.unclipped"
        self.nodes.insert(self.nodes.index(node) + 1, helper.make_node("Clip", [node.output[0], *names], [made]))
        self.nodes.remove(clip)


def in_integers(model: onnx.ModelProto, trained: Product) -> onnx.ModelProto:
    layers = [module for module in trained.modules() if isinstance(module, (qnn.QuantConv2d, qnn.QuantLinear))]
    run = Pass(model)
    for layer, node in zip(layers, run.of_kind("Conv", "Gemm"), strict=True):
        run.integer_layer(node, trained_integers(layer, node.name)[0])
    for node in run.of_kind("MaxPool", "Flatten"):
        run.grid_behind(node)
    for node in run.of_kind("QuantizeLinear"):
        run.clip_integers(node)
    del model.graph.node[:]
    model.graph.node.extend(run.nodes)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w2a2"])
def test_both_roads_lead_to_the_same_integers(scheme: str) -> None:
    trained = product(Residual(), scheme)
    theirs, ours = in_integers(by_torchscript(trained), trained), emit(trained, SHAPE, headroom=0).model
    counts = [count_operators(model) for model in (theirs, ours)]
    for kernel in ("QLinearConv", "QLinearAdd", "QGemm", "QLinearGlobalAveragePool"):
        assert counts[0][kernel] == counts[1][kernel]
    named = {node.name: node for node in ours.graph.node if node.op_type in ("Conv", "Gemm")}
    weighted = [node for node in theirs.graph.node if node.op_type in ("Conv", "Gemm")]
    for node, name in zip(weighted, named, strict=True):
        held, found = stored(ours, name), stored(theirs, node.name)
        assert np.array_equal(found.integers, held.integers) and np.allclose(found.scales, held.scales, rtol=1e-5)
        assert np.abs(found.bias.astype(np.int64) - held.bias).max() <= 1 + 1e-5 * np.abs(held.bias).max()
        assert attributes(node) == attributes(named[name])
    a, b = predict(theirs, images(64)), predict(ours, images(64))
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.95 and np.abs(a - b).mean() < 0.02 * b.std()


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """What differs from ONNX's defaults."""
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    plain_values: dict[str, Any] = {
        "dilations": [1, 1],
        "group": 1,
        "strides": [1, 1],
        "pads": [0] * 4,
        "alpha": 1,
        "beta": 1,
    }
    return {name: value for name, value in found.items() if value != plain_values.get(name)}
