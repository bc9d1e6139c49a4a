"""Quantizers between layers: QuantReLU and QuantIdentity as QuantizeLinear, Clip and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, fx, nn

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.emulator_kernels import Pending, Quantized, quantized
from qkd.export.emulator_nodes import Emulation, Node, Operand, in_float
from qkd.export.fx_nodes import label
from qkd.export.grid import is_on
from qkd.quantizers.brevitas_imports import qnn


def quantizer(converter: Converter, node: fx.Node) -> Value:
    """QuantReLU and QuantIdentity; the ReLU itself is the lower end of the grid."""
    module, name, value = converter.submodule(node), label(node), converter.value(node.args[0])
    if not converter.integer or not is_on(module.act_quant):
        return _activation(converter, module, value, name)
    grid = converter.grid_of(node)
    if value.grid == grid:
        return value
    if value.grid is not None:
        # from grid to grid: onnxruntime turns a concatenation of one into a table of 256 values, else it goes by float
        value = Value(converter.graph.node("Concat", [value.name], f"{name}.onto", axis=1))
    return converter.quantize(value, grid)


def _activation(converter: Converter, module: Any, value: Value, name: str) -> Value:
    """A quantizer without its rounding: ReLU, ReLU6 or nothing."""
    if not isinstance(module, qnn.QuantReLU):
        return value
    if any(isinstance(part, nn.ReLU6) for part in module.modules()):
        ends = [converter.graph.constant(np.float32(end)) for end in (0.0, 6.0)]
        return Value(converter.graph.node("Clip", [value.name, *ends], name))
    return Value(converter.graph.node("Relu", [value.name], name))


def _quantize(node: Node, operands: list[Operand]) -> Tensor:
    values, scale, zero = operands[0], np.float32(operands[1].numpy()), int(operands[2])
    if isinstance(values, Pending):
        integers = values.onto(scale, zero)
    elif isinstance(values, Quantized):
        same = np.float32(values.scale) == scale and int(values.zero) == zero
        integers = values.integers if same else quantized(values.real(), scale, zero)
    else:
        integers = quantized(values, scale, zero)
    return integers.clamp(0, 255).to(torch.uint8)


def _dequantize(node: Node, operands: list[Operand]) -> Quantized:
    integers, scale, *zero = operands
    return Quantized(integers, scale.numpy(), zero[0].numpy() if zero else np.zeros((), np.int32))


def _clip(node: Node, operands: list[Operand]) -> Operand:
    values, low, high = operands
    if isinstance(values, Tensor) and not values.is_floating_point():
        return values.clamp(int(low), int(high))
    return in_float(node, operands)


def _cast(node: Node, operands: list[Operand]) -> Tensor:
    wanted = _CASTS.get(node.attributes["to"])
    if wanted is None:
        raise ExportError(
            f"{node.name}: a Cast to type {node.attributes['to']}; exported files cast weights to int8, bytes to float",
            key="model.unknown-cast",
        )
    return operands[0].to(wanted)


_CASTS = {TensorProto.INT8: torch.int8, TensorProto.FLOAT: torch.float32}

HANDLERS: Mapping[str, Handler] = {"quantizer": quantizer}
EMULATIONS: Mapping[str, Emulation] = {
    "QuantizeLinear": Emulation(_quantize, is_layer=False),
    "DequantizeLinear": Emulation(_dequantize, is_layer=False),
    "Clip": Emulation(_clip, is_layer=False),
    "Cast": Emulation(_cast, is_layer=False),
    "Identity": Emulation(lambda node, operands: operands[0], is_layer=False),
}
