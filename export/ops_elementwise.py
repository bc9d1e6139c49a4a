"""Sums, products, concatenations and activation functions: integer where onnxruntime has a kernel, else float, and named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from qkd.errors import ExportError
from qkd.export import emulator_kernels
from qkd.export.converter import Converter, Handler, Value
from qkd.export.emulator_nodes import Emulation, Node, Operand, all_quantized, by_table, in_float
from qkd.export.emulator_nodes import binary as emulated_binary
from qkd.export.fx_nodes import label, scalar
from qkd.export.node_arguments import arguments


def binary(kind: str, *, integer: bool) -> Handler:
    """A handler for Add, Mul, Sub or Div; with ``integer`` onnxruntime has an integer kernel for two quantized operands.

    With a number as operand it stays float. The handler raises ExportError for other arguments, such as ``alpha``.
    """

    def handler(converter: Converter, node: fx.Node) -> Value:
        name = label(node)
        operands = [converter.value(argument) for argument in node.args[:2]]
        if len(operands) < 2 or scalar(node.kwargs.get("alpha", 1), name) != 1:
            raise ExportError(
                f"{name}: {kind} with the arguments {dict(node.kwargs)} has no ONNX form here; write it out",
                key="export.scaled-operand",
            )
        tensors = [_operand(converter, operand, name) for operand in operands]
        reason = "" if integer else f"onnxruntime has no integer {kind}"
        if not reason and any(tensor.grid is None for tensor in tensors):
            reason = "one of its operands is not quantized"
        converter.note(name, reason or converter.no_quantizer_behind(node))
        return Value(converter.graph.node(kind, [tensor.name for tensor in tensors], name))

    return handler


def concatenation(converter: Converter, node: fx.Node) -> Value:
    """Concat, in integers where all operands are quantized; of one grid its result lies on it, without a quantizer behind.

    One tensor alone is the result itself. Raises ExportError for the batch axis.
    """
    name, axis = label(node), arguments(converter, node, {"dim": 0})["dim"]
    rank = len(converter.shape(node))
    if axis % rank == 0:
        raise ExportError(
            f"{name}: a concatenation along the batch axis mixes images; possible are the other axes",
            key="export.batch-axis",
        )
    tensors = [converter.value(each) for each in converter.value(node.args[0])]  # a list, or a node that gives one
    if len(tensors) == 1:
        only: Value = tensors[0]
        return only
    missing = "one of its operands is not quantized" if any(tensor.grid is None for tensor in tensors) else ""
    not_rounded = converter.no_quantizer_behind(node)
    moves = bool(not_rounded) and not missing and len({tensor.grid for tensor in tensors}) == 1
    converter.note(name, "" if moves else missing or not_rounded)
    joined = converter.graph.node("Concat", [tensor.name for tensor in tensors], name, axis=axis % rank)
    return converter.on_grid_of(tensors[0], joined) if moves else Value(joined)


def unary(kind: str, *, integer: bool = False, **fixed: float) -> Handler:
    """A handler for an activation function that is one ONNX operator; ``integer`` as for `binary`."""

    def handler(converter: Converter, node: fx.Node) -> Value:
        value, name = converter.value(node.args[0]), label(node)
        reason = "" if integer else f"onnxruntime has no integer {kind}"
        if not reason and value.grid is None:
            reason = "its input is not quantized"
        converter.note(name, reason or converter.no_quantizer_behind(node))
        return Value(converter.graph.node(kind, [value.name], name, **fixed))

    return handler


def leaky_relu(converter: Converter, node: fx.Node) -> Value:
    """LeakyRelu with the node's slope."""
    slope = arguments(converter, node, {"negative_slope": 0.01})["negative_slope"]
    return unary("LeakyRelu", integer=True, alpha=float(slope))(converter, node)


def silu(converter: Converter, node: fx.Node) -> Value:
    """x * sigmoid(x), in float."""
    value, name = converter.value(node.args[0]), label(node)
    converter.note(name, "onnxruntime has no integer SiLU")
    gate = converter.graph.node("Sigmoid", [value.name], f"{name}.sigmoid")
    return Value(converter.graph.node("Mul", [value.name, gate], name))


def gelu(converter: Converter, node: fx.Node) -> Value:
    """x/2 * (1 + erf(x / sqrt 2)), in float; opset 17 has no Gelu. Raises ExportError for the tanh approximation."""
    value, name = converter.value(node.args[0]), label(node)
    if arguments(converter, node, {"approximate": "none"})["approximate"] != "none":
        raise ExportError(
            f"{name}: GELU with approximate='tanh' has no ONNX form here; use approximate='none'",
            key="export.gelu-tanh",
        )
    converter.note(name, "onnxruntime has no integer GELU")
    root, one, half = (converter.graph.constant(np.float32(c)) for c in (2**-0.5, 1.0, 0.5))
    scaled = converter.graph.node("Mul", [value.name, root], f"{name}.scaled")
    raised = converter.graph.node("Add", [converter.graph.node("Erf", [scaled], f"{name}.erf"), one], f"{name}.raised")
    halved = converter.graph.node("Mul", [value.name, half], f"{name}.half")
    return Value(converter.graph.node("Mul", [halved, raised], name))


def clip(low: float, high: float) -> Handler:
    """A handler for ReLU6 and Hardtanh that are no quantizers but float layers."""

    def handler(converter: Converter, node: fx.Node) -> Value:
        ends = arguments(converter, node, {"min_val": low, "max_val": high})
        value, name = converter.value(node.args[0]), label(node)
        converter.note(name, "it is not a quantizer")
        numbers = [converter.graph.constant(np.float32(end)) for end in ends.values()]
        return Value(converter.graph.node("Clip", [value.name, *numbers], name))

    return handler


def softmax(converter: Converter, node: fx.Node) -> Value:
    """Softmax, in float. Raises ExportError for the batch axis."""
    axis = arguments(converter, node, {"dim": None})["dim"]
    if axis is None or axis % len(converter.shape(node)) == 0:
        raise ExportError(f"{label(node)}: softmax over axis {axis}; give dim=1", key="export.batch-axis")
    converter.note(label(node), "a softmax is not rounded")
    return Value(converter.graph.node("Softmax", [converter.value(node.args[0]).name], label(node), axis=axis))


def _operand(converter: Converter, operand: Any, name: str) -> Value:
    if isinstance(operand, Value):
        return operand
    number = scalar(operand, name)
    return Value(converter.graph.constant(np.float32(number)))


HANDLERS: Mapping[str, Handler] = {
    "add": binary("Add", integer=True),
    "mul": binary("Mul", integer=True),
    "mul_in_place": binary("Mul", integer=True),
    "sub": binary("Sub", integer=False),
    "div": binary("Div", integer=False),
    "cat": concatenation,
    "relu": unary("Relu"),
    "relu6": clip(0.0, 6.0),
    "hardtanh": clip(-1.0, 1.0),
    "sigmoid": unary("Sigmoid", integer=True),
    "hardsigmoid": unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": unary("HardSwish"),
    "tanh": unary("Tanh"),
    "leaky_relu": leaky_relu,
    "silu": silu,
    "gelu": gelu,
    "softmax": softmax,
}


def _emulated_concatenation(node: Node, operands: list[Operand]) -> Operand:
    if not all_quantized(operands):
        return in_float(node, operands)
    return emulator_kernels.concatenated(operands, node.attributes["axis"])


EMULATIONS: Mapping[str, Emulation] = {
    "Add": Emulation(emulated_binary(emulator_kernels.added, torch.add)),
    "Mul": Emulation(emulated_binary(emulator_kernels.multiplied, torch.mul)),
    "Concat": Emulation(_emulated_concatenation),
    "Sigmoid": Emulation(by_table),
    "LeakyRelu": Emulation(by_table),
}
