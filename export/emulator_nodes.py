"""One function for each operator of an emitted file: what it does to codes, as onnxruntime's integer kernel does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export import emulator_kernels
from qkd.export.emulator_kernels import Codes, Pending
from qkd.export.session import open_session

Operand = Any
"""A Tensor (floats, or codes before DequantizeLinear), Codes, or Pending."""


@dataclass(frozen=True)
class Node:
    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    proto: onnx.NodeProto
    opset: int


Operation = Callable[[Node, list[Operand]], Operand]


def read_node(proto: onnx.NodeProto, opset: int) -> Node:
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    return Node(proto.op_type, proto.name, tuple(filter(None, proto.input)), proto.output[0], attributes, proto, opset)


def _quantize(node: Node, operands: list[Operand]) -> Tensor:
    values, scale, zero = operands[0], np.float32(operands[1].numpy()), int(operands[2])
    if isinstance(values, Pending):
        codes = values.onto(scale, zero)
    elif isinstance(values, Codes):
        same = np.float32(values.scale) == scale and int(values.zero) == zero
        codes = values.codes if same else emulator_kernels.quantized(values.real(), scale, zero)
    else:
        codes = emulator_kernels.quantized(values, scale, zero)
    return codes.clamp(0, 255).to(torch.uint8)


def _dequantize(node: Node, operands: list[Operand]) -> Codes:
    codes, scale, *zero = operands
    return Codes(codes, scale.numpy(), zero[0].numpy() if zero else np.zeros((), np.int32))


def _conv(node: Node, operands: list[Operand]) -> Operand:
    if not all(isinstance(operand, Codes) for operand in operands):
        return _in_float(node, operands)
    inputs, weights, bias = _three(operands)
    top, left, bottom, right = node.attributes.get("pads", (0, 0, 0, 0))
    settings = {name: node.attributes.get(given, 1) for name, given in _CONV.items()}

    def product(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, **settings)

    return emulator_kernels.weighted(
        emulator_kernels.accumulated(product, inputs, weights, bias), inputs.scale, weights.scale
    )


def _gemm(node: Node, operands: list[Operand]) -> Operand:
    if not all(isinstance(operand, Codes) for operand in operands) or node.attributes.get("transB") != 1:
        return _in_float(node, operands)
    inputs, weights, bias = _three(operands)
    total = emulator_kernels.accumulated(lambda x, w: x @ w.T, inputs, weights, bias)
    return emulator_kernels.weighted(total, inputs.scale, weights.scale)


def _binary(kernel: Callable[[Codes, Codes], Pending], plain: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    """``plain`` for tensors that are no codes: packed weights raised by factors, and bytes that are normalised."""

    def operation(node: Node, operands: list[Operand]) -> Operand:
        a, b = operands
        if isinstance(a, Codes) and isinstance(b, Codes):
            return kernel(a, b)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return plain(a, b)
        return _in_float(node, operands)

    return operation


def _plain(compute: Callable[..., Tensor]) -> Operation:
    """What IEEE 754 rounds in one way only, and sums of integers: the same numbers wherever they are computed."""
    return lambda node, operands: compute(*map(real, operands))


def _average(node: Node, operands: list[Operand]) -> Operand:
    """GlobalAveragePool and AveragePool; without a quantizer behind them onnxruntime averages floats."""
    inputs = operands[0]
    if not isinstance(inputs, Codes):
        return _in_float(node, operands)
    size = tuple(inputs.codes.shape[2:])
    kernel, pads = node.attributes.get("kernel_shape", size), node.attributes.get("pads", (0, 0, 0, 0))
    if tuple(kernel) == size and not any(pads):
        onto = emulator_kernels.globally_averaged(inputs)  # also for an AveragePool over the whole image
    else:
        strides, with_pads = node.attributes.get("strides", (1, 1)), bool(node.attributes.get("count_include_pad", 0))
        onto = emulator_kernels.averaged(inputs, kernel, strides, pads, with_pads)
    return Pending(onto, lambda: _in_float(node, operands))


def _concat(node: Node, operands: list[Operand]) -> Operand:
    if not all(isinstance(operand, Codes) for operand in operands):
        return _in_float(node, operands)
    return emulator_kernels.concatenated(operands, node.attributes["axis"])


def _max_pool(codes: Tensor, node: Node) -> Tensor:
    top, left, bottom, right = node.attributes.get("pads", (0, 0, 0, 0))
    padded = F.pad(codes.float(), (left, right, top, bottom), value=-1.0)
    kernel, strides = node.attributes["kernel_shape"], node.attributes.get("strides", (1, 1))
    dilations = node.attributes.get("dilations", (1, 1))
    return F.max_pool2d(padded, tuple(kernel), tuple(strides), 0, tuple(dilations)).to(codes.dtype)


def _slice(codes: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor) -> Tensor:
    where = [slice(None)] * codes.dim()
    for start, end, axis, step in zip(*(part.tolist() for part in (starts, ends, axes, steps)), strict=True):
        where[axis] = slice(start, end, step)
    return codes[tuple(where)]


def _moving(move: Callable[..., Tensor]) -> Operation:
    """What moves codes without changing them; ``move(codes, node, *other operands)``."""

    def operation(node: Node, operands: list[Operand]) -> Operand:
        first, *rest = operands
        if isinstance(first, Codes):
            return Codes(move(first.codes, node, *rest), first.scale, first.zero)
        return _in_float(node, operands)

    return operation


def _pad(node: Node, operands: list[Operand]) -> Operand:
    first, sizes, *zero = operands
    if not isinstance(first, Tensor) or first.is_floating_point():
        return _in_float(node, operands)
    half = sizes.tolist()[: len(sizes) // 2], sizes.tolist()[len(sizes) // 2 :]
    around = [size for pair in reversed([*zip(*half, strict=True)]) for size in pair]
    return F.pad(first, around, value=int(zero[0]))


def _clip(node: Node, operands: list[Operand]) -> Operand:
    values, low, high = operands
    if isinstance(values, Tensor) and not values.is_floating_point():
        return values.clamp(int(low), int(high))
    return _in_float(node, operands)


def _cast(node: Node, operands: list[Operand]) -> Tensor:
    wanted = _CASTS.get(node.attributes["to"])
    if wanted is None:
        raise ExportError(
            f"{node.name}: a Cast to type {node.attributes['to']}; emitted files cast weights to int8, bytes to float"
        )
    return operands[0].to(wanted)


def _transpose(node: Node, operands: list[Operand]) -> Operand:
    first = operands[0]
    move = tuple(node.attributes["perm"])
    if isinstance(first, Codes):
        return Codes(first.codes.permute(*move), first.scale, first.zero)
    return real(first).permute(*move)


def _by_table(node: Node, operands: list[Operand]) -> Operand:
    """QLinearSigmoid, QLinearLeakyRelu: a table of 256 values, made with the float operator."""
    if not isinstance(operands[0], Codes):
        return _in_float(node, operands)
    x = operands[0]
    every = Codes(torch.arange(256, dtype=torch.uint8), x.scale, x.zero)
    table = _in_float(node, [every.real()])
    return table[x.codes.long()]


def _in_float(node: Node, operands: list[Operand]) -> Tensor:
    """A float operator on its own, computed by onnxruntime."""
    arrays = {f"x{i}": real(operand).numpy() for i, operand in enumerate(operands)}
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.input[:], proto.output[:] = arrays, ["y"]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in arrays.items()
    ]
    graph = helper.make_graph([proto], "one", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)], ir_version=8)
    return torch.from_numpy(open_session(model).run(None, arrays)[0])


def operation_of(node: Node) -> Operation:
    """What computes a node; an operator that is not in the table has no integer form and is computed in float."""
    return OPERATIONS.get(node.kind, _in_float)


def _three(operands: list[Operand]) -> tuple[Codes, Codes, Codes | None]:
    return operands[0], operands[1], operands[2] if len(operands) > 2 else None


def real(operand: Operand) -> Tensor:
    return operand if isinstance(operand, Tensor) else operand.real()


_CASTS = {TensorProto.INT8: torch.int8, TensorProto.FLOAT: torch.float32}
_CONV = {"stride": "strides", "dilation": "dilations", "groups": "group"}

OPERATIONS: Mapping[str, Operation] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Clip": _clip,
    "Cast": _cast,
    "Conv": _conv,
    "Gemm": _gemm,
    "Add": _binary(emulator_kernels.added, torch.add),
    "Mul": _binary(emulator_kernels.multiplied, torch.mul),
    "GlobalAveragePool": _average,
    "AveragePool": _average,
    "Concat": _concat,
    "MaxPool": _moving(_max_pool),
    "Flatten": _moving(lambda codes, node: codes.flatten(1)),
    "Reshape": _moving(lambda codes, node, shape: codes.reshape(shape.tolist()[0] or len(codes), *shape.tolist()[1:])),
    "Transpose": _transpose,
    "Slice": _moving(lambda codes, node, *parts: _slice(codes, *parts)),
    "Pad": _pad,
    "Identity": lambda node, operands: operands[0],
    "Sub": _plain(torch.sub),
    "Div": _plain(torch.div),
    "Sqrt": _plain(torch.sqrt),
    "Relu": _plain(torch.relu),
    "ReduceSum": _plain(lambda values, axes: values.sum(axes.tolist(), keepdim=True)),
    "Sigmoid": _by_table,
    "LeakyRelu": _by_table,
}
