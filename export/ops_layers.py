"""Layers with weights, batch norm and quantizers: from module to ONNX nodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from torch import fx, nn

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.fold import Affine, IntegerWeight, across, array, fold, normalization, to_integers, trained_codes
from qkd.export.fx_nodes import label
from qkd.export.grid import is_on
from qkd.export.ops_shape import factors_behind, padded
from qkd.export.pack import store
from qkd.quantizers.brevitas_imports import qnn

NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)
TOGETHER, LEAST_OUTPUTS = 4, 16
"""onnxruntime's direct convolution wants input and output channels by fours, and 16 outputs; any other copies every
patch first (im2col)."""


def convolution(walk: Converter, node: fx.Node) -> Value:
    module, name, value, norm = _layer(walk, node, axis=1)
    if module.padding_mode != "zeros":
        raise ExportError(f"{name}: padding mode {module.padding_mode!r} has no integer form; use 'zeros'")
    left, right, top, bottom = module._reversed_padding_repeated_twice
    attributes = {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "pads": [top, left, bottom, right],
        "group": module.groups,
    }
    reason = _not_integer(module, value) or walk.no_quantizer_behind(node)
    return _weighted(walk, node, "Conv", value, norm, reason, **attributes)


def linear(walk: Converter, node: fx.Node) -> Value:
    """Gemm: in integers with or without a quantizer behind it (the logits have none); of more axes, on all its rows."""
    *outer, features = walk.shape(node)
    module, name, value, norm = _layer(walk, node, axis=len(outer))
    reason = _not_integer(module, value)
    if len(outer) == 1:
        return _weighted(walk, node, "Gemm", value, norm, reason, transB=1)
    value = walk.move(value, "Reshape", f"{name}.rows", walk.graph.constant(np.array([-1, module.in_features])))
    result = _weighted(walk, node, "Gemm", value, norm, reason, transB=1)
    grid = walk.grid_behind(node)
    result = result if grid is None else walk.quantize(result, grid)
    return walk.move(result, "Reshape", f"{name}.back", walk.graph.constant(np.array([-1, *outer[1:], features])))


def batch_norm(walk: Converter, node: fx.Node) -> Value:
    """Folded into the layer before it, else a depthwise 1x1 convolution in integers, else in float."""
    value: Value = walk.value(node.args[0])
    name, module = label(node), walk.submodule(node)
    norm = normalization(module, name)
    reason = "its input is not quantized" if value.grid is None else walk.no_quantizer_behind(node)
    if len(walk.shape(node.args[0])) != 4:
        reason = "it normalizes a vector and no linear layer stands directly before it"
    if walk.note(name, reason):
        return _norm_as_convolution(walk, value, norm, name)
    ones, zeros = np.ones(len(norm.offset), np.float32), np.zeros(len(norm.offset), np.float32)
    parts = ((norm.multiplier, "weight"), (norm.offset, "bias"), (zeros, "mean"), (ones, "variance"))
    constants = [walk.graph.constant(part.astype(np.float32), f"{name}.{what}") for part, what in parts]
    return Value(walk.graph.node("BatchNormalization", [value.name, *constants], name, epsilon=0.0))


def quantizer(walk: Converter, node: fx.Node) -> Value:
    """QuantReLU and QuantIdentity; the ReLU itself is the lower end of the grid."""
    module, name, value = walk.submodule(node), label(node), walk.value(node.args[0])
    if not walk.integer or not is_on(module.act_quant):
        return _activation(walk, module, value, name)
    grid = walk.grid_of(node)
    if value.grid == grid:
        return value
    if value.grid is not None:
        # from grid to grid: onnxruntime turns a concatenation of one into a table of 256 codes, else it goes by float
        value = Value(walk.graph.node("Concat", [value.name], f"{name}.onto", axis=1))
    return walk.quantize(value, grid)


def _activation(walk: Converter, module: Any, value: Value, name: str) -> Value:
    """What a quantizer is without its rounding: ReLU, ReLU6 or nothing."""
    if not isinstance(module, qnn.QuantReLU):
        return value
    if any(isinstance(part, nn.ReLU6) for part in module.modules()):
        ends = [walk.graph.constant(np.float32(end)) for end in (0.0, 6.0)]
        return Value(walk.graph.node("Clip", [value.name, *ends], name))
    return Value(walk.graph.node("Relu", [value.name], name))


def _layer(walk: Converter, node: fx.Node, axis: int) -> tuple[Any, str, Value, Affine | None]:
    """The layer, its name, its input, and what folds into it: a batch norm, and a factor for each entry of ``axis``."""
    module, name = walk.submodule(node), label(node)
    for which in ("input_quant", "output_quant"):
        if is_on(getattr(module, which, None)):
            raise ExportError(f"{name}: has an {which} of its own; use a QuantIdentity beside the layer instead")
    norm, behind = None, walk.sole_reader(node, NORMS)
    if behind is not None:
        walk.folded.add(behind)
        norm = normalization(walk.submodule(behind), label(behind))
    product, factors = factors_behind(walk, node, axis)
    if product is not None:
        walk.folded.add(product)
        one = norm or Affine(np.ones_like(factors), np.zeros_like(factors))
        norm = Affine(one.multiplier * factors, one.offset * factors)
    return module, name, walk.value(node.args[0]), norm


def _not_integer(module: Any, value: Value) -> str:
    if not is_on(getattr(module, "weight_quant", None)):
        return "its weights are not quantized"
    return "its input is not quantized" if value.grid is None else ""


def _weighted(
    walk: Converter, node: fx.Node, kind: str, value: Value, norm: Affine | None, reason: str, **attributes: Any
) -> Value:
    module: Any = walk.submodule(node)
    name = label(node)
    if walk.note(name, reason) and value.grid is not None:
        weight = fold(module, norm, value.grid.scale, walk.headroom, name)
        if kind == "Conv" and module.groups == 1 and walk.target.direct:
            value, weight = _by_fours(walk, value, weight, name)
        return _integer(walk, kind, value, weight, name, **attributes)
    norm = norm or Affine(np.ones(len(module.weight)), np.zeros(len(module.weight)))
    bias = norm.offset if module.bias is None else array(module.bias) * norm.multiplier + norm.offset
    weights = _float_weights(walk, node, norm), walk.graph.constant(bias.astype(np.float32), f"{name}.bias")
    return Value(walk.graph.node(kind, [value.name, *weights], name, **attributes))


def _float_weights(walk: Converter, node: fx.Node, norm: Affine) -> str:
    """The master weights, or for a layer that only has to stay float the values its weight quantizer gives.

    Those are in the file as codes where a quantizer follows: onnxruntime would round floats to int8 anew, with one scale
    for all channels, wherever it finds or makes a quantizer directly behind such a layer.
    """
    module: Any = walk.submodule(node)
    name = label(node)
    if not walk.integer or not is_on(getattr(module, "weight_quant", None)):
        weights = array(module.weight)
        return walk.graph.constant((weights * across(norm.multiplier, weights)).astype(np.float32), f"{name}.weight")
    codes, scales = trained_codes(module, name)
    if not walk.quantized_later(node):
        weights = codes * across(scales * norm.multiplier, codes)
        return walk.graph.constant(weights.astype(np.float32), f"{name}.weight")
    codes = codes * across(np.where(norm.multiplier < 0, -1, 1), codes)
    parts = (scales * np.abs(norm.multiplier)).astype(np.float32), np.zeros(len(scales), np.int8)
    kept = walk.graph.constant(codes.astype(np.int8), f"{name}.weight")
    return walk.graph.step("DequantizeLinear", [kept, *map(walk.graph.constant, parts)], axis=0)


def _integer(walk: Converter, kind: str, value: Value, weight: IntegerWeight, name: str, **attributes: Any) -> Value:
    assert value.grid is not None
    graph = walk.graph
    scales = graph.constant(weight.scales)
    codes = store(graph, weight, name, walk.storage, walk.target)
    zeros = graph.constant(np.zeros(len(weight.scales), np.int8))
    weights = graph.step("DequantizeLinear", [codes, scales, zeros], axis=0)
    if walk.target.integer_bias:
        # the unit of the bias: onnxruntime multiplies while it loads, to the very numbers of ``weight.bias_scales``
        units = graph.step("Mul", [graph.constant(np.float32(value.grid.scale)), scales])
        biases = graph.step("DequantizeLinear", [graph.constant(weight.bias, f"{name}.bias"), units], axis=0)
    else:
        biases = graph.constant(weight.bias.astype(np.float32) * weight.bias_scales, f"{name}.bias")
    result = graph.node(kind, [value.name, weights, biases], name, **attributes)
    walk.weights[result] = weight
    return Value(result)


def _by_fours(walk: Converter, value: Value, weight: IntegerWeight, name: str) -> tuple[Value, IntegerWeight]:
    """Channels of zeros for a first layer on 3 colours or on grey, where onnxruntime then has a better kernel.

    They change no sum. Measured on the stem of MobileNet-v2 (224 px, VNNI): 0.31 ms without them, 0.14 ms with.
    """
    outputs, inputs, *kernel = weight.codes.shape
    missing = -inputs % TOGETHER
    if not missing or outputs < LEAST_OUTPUTS or outputs % TOGETHER or max(kernel) == 1:
        return value, weight
    codes = np.pad(weight.codes, [(0, 0), (0, missing), (0, 0), (0, 0)])
    wider = padded(walk, value, [(0, 0), (0, missing), (0, 0), (0, 0)], f"{name}.fours")
    return wider, dataclasses.replace(weight, codes=codes)


def _norm_as_convolution(walk: Converter, value: Value, norm: Affine, name: str) -> Value:
    """``multiplier * x + offset`` is a depthwise 1x1 convolution with the weights +1 and -1 and scales |multiplier|."""
    assert value.grid is not None
    codes = np.where(norm.multiplier < 0, -1, 1).reshape(-1, 1, 1, 1)
    weight = to_integers(codes, np.abs(norm.multiplier), norm.offset, value.grid.scale, walk.headroom)
    return _integer(walk, "Conv", value, weight, name, kernel_shape=[1, 1], group=len(codes))


LAYERS: dict[Any, Handler] = {
    nn.Conv2d: convolution,
    nn.Linear: linear,
    **dict.fromkeys(NORMS, batch_norm),
    qnn.QuantReLU: quantizer,
    qnn.QuantIdentity: quantizer,
}
