"""What the emulator knows of one node of an ONNX file, and the building blocks of its operators.

The operators themselves stand beside the handlers that write them, in ``export/ops_*.py``, as entries of ``EMULATIONS``. They
share no code with those handlers: a handler reads the network, an emulation reads ONNX nodes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from qkd.export.emulator_kernels import Pending, Quantized
from qkd.export.session import open_session

Operand = Any
"""A Tensor (floats, or integers before DequantizeLinear), Quantized, or Pending."""


@dataclass(frozen=True)
class Node:
    """A node of an ONNX file: its operator, its name, and its inputs without those that are left out."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    proto: onnx.NodeProto
    opset: int


Operation = Callable[[Node, list[Operand]], Operand]
"""Computes a node from its operands."""


@dataclass(frozen=True)
class Emulation:
    """How the emulator computes an ONNX operator, as onnxruntime's kernel does.

    is_layer: whether a node of it counts as a layer; what only rounds, casts or moves values does not.
    """

    compute: Operation
    is_layer: bool = True


def read_node(proto: onnx.NodeProto, opset: int) -> Node:
    """A node of a file with this version of the operator set."""
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    return Node(proto.op_type, proto.name, tuple(filter(None, proto.input)), proto.output[0], attributes, proto, opset)


def real(operand: Operand) -> Tensor:
    """An operand as a tensor: the floats that stand for integers on a grid, else the tensor itself."""
    return operand if isinstance(operand, Tensor) else operand.real()


def all_quantized(operands: list[Operand]) -> bool:
    """Whether an integer kernel can take these operands."""
    return all(isinstance(operand, Quantized) for operand in operands)


def in_float(node: Node, operands: list[Operand]) -> Tensor:
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


def exact_in_float(compute: Callable[..., Tensor]) -> Operation:
    """An operator that IEEE 754 rounds in one way only, or a sum of integers: the same values wherever it is computed."""
    return lambda node, operands: compute(*map(real, operands))


def binary(
    kernel: Callable[[Quantized, Quantized], Pending], on_tensors: Callable[[Tensor, Tensor], Tensor]
) -> Operation:
    """An operator of two operands. ``on_tensors`` computes it for tensors without a grid.

    Those are packed weights that are multiplied by factors and shifted, and uint8 images that are normalised.
    """

    def compute(node: Node, operands: list[Operand]) -> Operand:
        a, b = operands
        if isinstance(a, Quantized) and isinstance(b, Quantized):
            return kernel(a, b)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return on_tensors(a, b)
        return in_float(node, operands)

    return compute


def by_table(node: Node, operands: list[Operand]) -> Operand:
    """QLinearSigmoid, QLinearLeakyRelu: a table of 256 values, made with the float operator."""
    x = operands[0]
    if not isinstance(x, Quantized):
        return in_float(node, operands)
    every = Quantized(torch.arange(256, dtype=torch.uint8), x.scale, x.zero)
    table = in_float(node, [every.real()])
    return table[x.integers.long()]


def moving(move: Callable[..., Tensor]) -> Operation:
    """An operator that moves integers without changing them: ``move(integers, node, *other operands)``."""

    def compute(node: Node, operands: list[Operand]) -> Operand:
        first, *others = operands
        if isinstance(first, Quantized):
            return Quantized(move(first.integers, node, *others), first.scale, first.zero)
        return in_float(node, operands)

    return compute
