"""Sums, products, concatenations and activation functions: integer where onnxruntime has a kernel, else float, and named."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.fx_nodes import label, scalar
from qkd.export.node_arguments import arguments


def binary(kind: str, *, integer: bool) -> Handler:
    """Add or Mul have integer kernels, for two quantized operands; with a number, or Sub and Div, it stays float."""

    def handler(walk: Converter, node: fx.Node) -> Value:
        name = label(node)
        operands = [walk.value(argument) for argument in node.args[:2]]
        if len(operands) < 2 or scalar(node.kwargs.get("alpha", 1), name) != 1:
            raise ExportError(
                f"{name}: {kind} with the arguments {dict(node.kwargs)} has no ONNX form here; write it out"
            )
        tensors = [_operand(walk, operand, name) for operand in operands]
        reason = "" if integer else f"onnxruntime has no integer {kind}"
        if not reason and any(tensor.grid is None for tensor in tensors):
            reason = "one of its operands is not quantized"
        walk.note(name, reason or walk.no_quantizer_behind(node))
        return Value(walk.graph.node(kind, [tensor.name for tensor in tensors], name))

    return handler


def concatenation(walk: Converter, node: fx.Node) -> Value:
    name, axis = label(node), arguments(walk, node, {"dim": 0})["dim"]
    rank = len(walk.shape(node))
    if axis % rank == 0:
        raise ExportError(f"{name}: a concatenation along the batch axis mixes images; possible are the other axes")
    tensors = [walk.value(argument) for argument in node.args[0]]  # type: ignore[union-attr]
    missing = "one of its operands is not quantized" if any(tensor.grid is None for tensor in tensors) else ""
    walk.note(name, missing or walk.no_quantizer_behind(node))
    return Value(walk.graph.node("Concat", [tensor.name for tensor in tensors], name, axis=axis % rank))


def unary(kind: str, *, integer: bool = False, **fixed: float) -> Handler:
    """An activation function that is one ONNX operator."""

    def handler(walk: Converter, node: fx.Node) -> Value:
        value, name = walk.value(node.args[0]), label(node)
        reason = "" if integer else f"onnxruntime has no integer {kind}"
        if not reason and value.grid is None:
            reason = "its input is not quantized"
        walk.note(name, reason or walk.no_quantizer_behind(node))
        return Value(walk.graph.node(kind, [value.name], name, **fixed))

    return handler


def leaky_relu(walk: Converter, node: fx.Node) -> Value:
    slope = arguments(walk, node, {"negative_slope": 0.01})["negative_slope"]
    return unary("LeakyRelu", integer=True, alpha=float(slope))(walk, node)


def silu(walk: Converter, node: fx.Node) -> Value:
    value, name = walk.value(node.args[0]), label(node)
    walk.note(name, "onnxruntime has no integer SiLU")
    gate = walk.graph.node("Sigmoid", [value.name], f"{name}.sigmoid")
    return Value(walk.graph.node("Mul", [value.name, gate], name))


def gelu(walk: Converter, node: fx.Node) -> Value:
    """x/2 * (1 + erf(x / sqrt 2)); opset 17 has no Gelu."""
    value, name = walk.value(node.args[0]), label(node)
    if arguments(walk, node, {"approximate": "none"})["approximate"] != "none":
        raise ExportError(f"{name}: GELU with approximate='tanh' has no ONNX form here; use approximate='none'")
    walk.note(name, "onnxruntime has no integer GELU")
    root, one, half = (walk.graph.constant(np.float32(c)) for c in (2**-0.5, 1.0, 0.5))
    scaled = walk.graph.node("Mul", [value.name, root], f"{name}.scaled")
    raised = walk.graph.node("Add", [walk.graph.node("Erf", [scaled], f"{name}.erf"), one], f"{name}.raised")
    halved = walk.graph.node("Mul", [value.name, half], f"{name}.half")
    return Value(walk.graph.node("Mul", [halved, raised], name))


def clip(low: float, high: float) -> Handler:
    """ReLU6 and Hardtanh that stayed float layers."""

    def handler(walk: Converter, node: fx.Node) -> Value:
        ends = arguments(walk, node, {"min_val": low, "max_val": high})
        value, name = walk.value(node.args[0]), label(node)
        walk.note(name, "it is not a quantizer")
        numbers = [walk.graph.constant(np.float32(end)) for end in ends.values()]
        return Value(walk.graph.node("Clip", [value.name, *numbers], name))

    return handler


def softmax(walk: Converter, node: fx.Node) -> Value:
    axis = arguments(walk, node, {"dim": None})["dim"]
    if axis is None or axis % len(walk.shape(node)) == 0:
        raise ExportError(f"{label(node)}: softmax over axis {axis}; give dim=1")
    walk.note(label(node), "a softmax is not rounded")
    return Value(walk.graph.node("Softmax", [walk.value(node.args[0]).name], label(node), axis=axis))


def _operand(walk: Converter, operand: Any, name: str) -> Value:
    if isinstance(operand, Value):
        return operand
    number = scalar(operand, name)
    return Value(walk.graph.constant(np.float32(number)))


def _table(*entries: tuple[Handler, tuple[Any, ...]]) -> dict[Any, Handler]:
    return {key: handler for handler, keys in entries for key in keys}


_relu: Callable[..., Any] = unary("Relu")

ARITHMETIC: dict[Any, Handler] = _table(
    (binary("Add", integer=True), (operator.add, operator.iadd, torch.add, "add", "add_")),
    (binary("Mul", integer=True), (operator.mul, operator.imul, torch.mul, "mul", "mul_")),
    (binary("Sub", integer=False), (operator.sub, torch.sub, "sub")),
    (binary("Div", integer=False), (operator.truediv, torch.div, "div")),
    (concatenation, (torch.cat, torch.concat)),
    (_relu, (nn.ReLU, F.relu, torch.relu, "relu", "relu_")),
    (clip(0.0, 6.0), (nn.ReLU6, F.relu6)),
    (clip(-1.0, 1.0), (nn.Hardtanh, F.hardtanh)),
    (unary("Sigmoid", integer=True), (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid")),
    (unary("HardSigmoid", alpha=1 / 6, beta=0.5), (nn.Hardsigmoid, F.hardsigmoid)),
    (unary("HardSwish"), (nn.Hardswish, F.hardswish)),
    (unary("Tanh"), (nn.Tanh, torch.tanh, F.tanh, "tanh")),
    (leaky_relu, (nn.LeakyReLU, F.leaky_relu)),
    (silu, (nn.SiLU, F.silu)),
    (gelu, (nn.GELU, F.gelu)),
    (softmax, (nn.Softmax, F.softmax, torch.softmax, "softmax")),
)
