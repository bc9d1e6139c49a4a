"""Pools: from module or function to ONNX nodes that stay integer between quantizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.fx_nodes import label
from qkd.export.node_arguments import arguments, pair


def max_pool(walk: Converter, node: fx.Node) -> Value:
    """A ceil_mode is written as padding at the end: -infinity changes no maximum."""
    wanted = {
        "kernel_size": None,
        "stride": None,
        "padding": 0,
        "dilation": 1,
        "ceil_mode": False,
        "return_indices": False,
    }
    given = arguments(walk, node, wanted)
    kernel, dilation, padding = pair(given["kernel_size"]), pair(given["dilation"]), pair(given["padding"])
    stride = pair(given["stride"] or kernel)
    size, result = walk.shape(node.args[0])[2:], walk.shape(node)[2:]
    ends = [
        max(padding[i], (result[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size[i] - padding[i])
        for i in range(2)
    ]
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *ends], "dilations": dilation}
    name, value = label(node), walk.value(node.args[0])
    walk.note(name, "" if value.grid else "its input is not quantized")
    return walk.move(value, "MaxPool", name, **attributes)


def average_pool(walk: Converter, node: fx.Node) -> Value:
    wanted = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    given = arguments(walk, node, {**wanted, "divisor_override": None})
    kernel, padding = pair(given["kernel_size"]), pair(given["padding"])
    stride = pair(given["stride"] or kernel)
    size, result = walk.shape(node.args[0])[2:], walk.shape(node)[2:]
    floor = tuple((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    if floor != result or given["divisor_override"] is not None:
        what = "divisor_override" if floor == result else "ceil_mode"
        raise ExportError(f"{label(node)}: an average pool with {what} has no ONNX form here; leave it out")
    count = int(bool(given["count_include_pad"]))
    return _average(walk, node, kernel, strides=stride, pads=[*padding, *padding], count_include_pad=count)


def adaptive_average_pool(walk: Converter, node: fx.Node) -> Value:
    size, result = walk.shape(node.args[0])[2:], walk.shape(node)[2:]
    if size == result:
        return walk.value(node.args[0])
    if any(size[i] % result[i] for i in range(2)):
        raise ExportError(
            f"{label(node)}: an adaptive pool from {size[0]}x{size[1]} to {result[0]}x{result[1]} has windows of unequal "
            f"size; choose an image size for which the input divides, or a pool to 1x1"
        )
    kernel = [size[i] // result[i] for i in range(2)]
    return _average(walk, node, kernel, strides=kernel)


def mean(walk: Converter, node: fx.Node) -> Value:
    """``x.mean((2, 3))``: a global average pool, and Flatten where the axes go."""
    given = arguments(walk, node, {"dim": None, "keepdim": False})
    shape = walk.shape(node.args[0])
    axes = given["dim"] if isinstance(given["dim"], (tuple, list)) else (given["dim"],)
    if len(shape) != 4 or sorted(axis % 4 if axis is not None else 0 for axis in axes) != [2, 3]:
        raise ExportError(
            f"{label(node)}: a mean over axes {given['dim']} has no integer form; possible is (2, 3) of an image"
        )
    if given["keepdim"]:
        return _average(walk, node, list(shape[2:]))
    value, grid = _average(walk, node, list(shape[2:])), walk.grid_behind(node)
    if walk.integer and grid is not None:
        value = walk.quantize(value, grid)
    return walk.move(value, "Flatten", f"{label(node)}.flatten", axis=1)


def _average(walk: Converter, node: fx.Node, kernel: list[int], **attributes: Any) -> Value:
    name, value = label(node), walk.value(node.args[0])
    walk.note(name, "its input is not quantized" if value.grid is None else walk.no_quantizer_behind(node))
    walk.averaged[name] = kernel[0] * kernel[1]
    if tuple(kernel) == walk.shape(node.args[0])[2:] and not any(attributes.get("pads", [])):
        return Value(walk.graph.node("GlobalAveragePool", [value.name], name))
    return Value(walk.graph.node("AveragePool", [value.name], name, kernel_shape=kernel, **attributes))


POOLS: dict[Any, Handler] = {
    nn.MaxPool2d: max_pool,
    F.max_pool2d: max_pool,
    nn.AvgPool2d: average_pool,
    F.avg_pool2d: average_pool,
    nn.AdaptiveAvgPool2d: adaptive_average_pool,
    F.adaptive_avg_pool2d: adaptive_average_pool,
    torch.mean: mean,
    "mean": mean,
}
