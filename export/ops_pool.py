"""Pools: as ONNX nodes that stay integer between quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.emulator_kernels import Pending, Quantized, averaged, globally_averaged
from qkd.export.emulator_nodes import Emulation, Node, Operand, in_float, moving
from qkd.export.fx_nodes import label
from qkd.export.node_arguments import arguments, pair


def max_pool(converter: Converter, node: fx.Node) -> Value:
    """A ceil_mode is written as padding at the end: -infinity changes no maximum."""
    wanted = {
        "kernel_size": None,
        "stride": None,
        "padding": 0,
        "dilation": 1,
        "ceil_mode": False,
        "return_indices": False,
    }
    given = arguments(converter, node, wanted)
    kernel, dilation, padding = pair(given["kernel_size"]), pair(given["dilation"]), pair(given["padding"])
    stride = pair(given["stride"] or kernel)
    size, result = converter.shape(node.args[0])[2:], converter.shape(node)[2:]
    ends = [
        max(padding[i], (result[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size[i] - padding[i])
        for i in range(2)
    ]
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *ends], "dilations": dilation}
    name, value = label(node), converter.value(node.args[0])
    converter.note(name, "" if value.grid else "its input is not quantized")
    return converter.move(value, "MaxPool", name, **attributes)


def average_pool(converter: Converter, node: fx.Node) -> Value:
    """AveragePool. Raises ExportError for a ceil_mode that enlarges the result, and for a divisor_override."""
    wanted = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    given = arguments(converter, node, {**wanted, "divisor_override": None})
    kernel, padding = pair(given["kernel_size"]), pair(given["padding"])
    stride = pair(given["stride"] or kernel)
    size, result = converter.shape(node.args[0])[2:], converter.shape(node)[2:]
    floor = tuple((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    if floor != result or given["divisor_override"] is not None:
        what = "divisor_override" if floor == result else "ceil_mode"
        raise ExportError(
            f"{label(node)}: an average pool with {what} has no ONNX form here; leave it out", key="export.average-pool"
        )
    count = int(bool(given["count_include_pad"]))
    return _average(converter, node, kernel, strides=stride, pads=[*padding, *padding], count_include_pad=count)


def adaptive_average_pool(converter: Converter, node: fx.Node) -> Value:
    """AveragePool with windows of equal size, for which the input has to divide; else it raises ExportError."""
    size, result = converter.shape(node.args[0])[2:], converter.shape(node)[2:]
    if size == result:
        return converter.value(node.args[0])
    if any(size[i] % result[i] for i in range(2)):
        raise ExportError(
            f"{label(node)}: an adaptive pool from {size[0]}x{size[1]} to {result[0]}x{result[1]} has windows of unequal "
            f"size; choose an image size for which the input divides, or a pool to 1x1",
            key="export.unequal-windows",
        )
    kernel = [size[i] // result[i] for i in range(2)]
    return _average(converter, node, kernel, strides=kernel)


def mean(converter: Converter, node: fx.Node) -> Value:
    """``x.mean((2, 3))``: a global average pool, and Flatten where the axes are dropped. Raises ExportError for other axes."""
    given = arguments(converter, node, {"dim": None, "keepdim": False})
    shape = converter.shape(node.args[0])
    axes = given["dim"] if isinstance(given["dim"], (tuple, list)) else (given["dim"],)
    if len(shape) != 4 or sorted(axis % 4 if axis is not None else 0 for axis in axes) != [2, 3]:
        raise ExportError(
            f"{label(node)}: a mean over axes {given['dim']} has no integer form; possible is (2, 3) of an image",
            key="export.mean-axes",
        )
    if given["keepdim"]:
        return _average(converter, node, list(shape[2:]))
    value, grid = _average(converter, node, list(shape[2:])), converter.grid_behind(node)
    if converter.integer and grid is not None:
        value = converter.quantize(value, grid)
    return converter.move(value, "Flatten", f"{label(node)}.flatten", axis=1)


def _average(converter: Converter, node: fx.Node, kernel: list[int], **attributes: Any) -> Value:
    name, value = label(node), converter.value(node.args[0])
    converter.note(name, "its input is not quantized" if value.grid is None else converter.no_quantizer_behind(node))
    converter.averaged[name] = kernel[0] * kernel[1]
    if tuple(kernel) == converter.shape(node.args[0])[2:] and not any(attributes.get("pads", [])):
        return Value(converter.graph.node("GlobalAveragePool", [value.name], name))
    return Value(converter.graph.node("AveragePool", [value.name], name, kernel_shape=kernel, **attributes))


def _emulated_average(node: Node, operands: list[Operand]) -> Operand:
    """GlobalAveragePool and AveragePool; without a quantizer behind them onnxruntime averages floats."""
    inputs = operands[0]
    if not isinstance(inputs, Quantized):
        return in_float(node, operands)
    size = tuple(inputs.integers.shape[2:])
    kernel, pads = node.attributes.get("kernel_shape", size), node.attributes.get("pads", (0, 0, 0, 0))
    if tuple(kernel) == size and not any(pads):
        onto = globally_averaged(inputs)  # also for an AveragePool over the whole image
    else:
        strides, with_pads = node.attributes.get("strides", (1, 1)), bool(node.attributes.get("count_include_pad", 0))
        onto = averaged(inputs, kernel, strides, pads, with_pads)
    return Pending(onto, lambda: in_float(node, operands))


def _emulated_max_pool(integers: Tensor, node: Node) -> Tensor:
    top, left, bottom, right = node.attributes.get("pads", (0, 0, 0, 0))
    padded = F.pad(integers.float(), (left, right, top, bottom), value=-1.0)
    kernel, strides = node.attributes["kernel_shape"], node.attributes.get("strides", (1, 1))
    dilations = node.attributes.get("dilations", (1, 1))
    return F.max_pool2d(padded, tuple(kernel), tuple(strides), 0, tuple(dilations)).to(integers.dtype)


HANDLERS: Mapping[str, Handler] = {
    "max_pool2d": max_pool,
    "avg_pool2d": average_pool,
    "adaptive_avg_pool2d": adaptive_average_pool,
    "mean": mean,
}
EMULATIONS: Mapping[str, Emulation] = {
    "GlobalAveragePool": Emulation(_emulated_average),
    "AveragePool": Emulation(_emulated_average),
    "MaxPool": Emulation(moving(_emulated_max_pool)),
}
