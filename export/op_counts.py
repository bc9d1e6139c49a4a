"""Operator counts, and which layers onnxruntime runs in integers: both read from the graph that it optimized."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import onnx

from qkd.export.op_tables import counts_as_layer
from qkd.export.session import Source, optimized, read_metadata
from qkd.export.uint8_input import FRONT

POOLS = {"MaxPool", "NhwcMaxPool"}
INTEGER_CONVS = {"QLinearConv", "ConvInteger"}


@dataclass(frozen=True)
class Layers:
    """Names of layers, in the order of the graph, that run in integers and in float. What only moves values is neither.

    reasons: why, for those the export announced; a float layer without a reason was meant to be integer.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]
    reasons: dict[str, str]


def count_operators(source: Source) -> dict[str, int]:
    """How often each operator occurs in the graph that onnxruntime really runs, most frequent first."""
    return count_operators_of(optimized(source))


def count_operators_of(graph: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs in a model, most frequent first."""
    return dict(Counter(node.op_type for node in graph.graph.node).most_common())


def convolutions(source: Source) -> tuple[int, int]:
    """How many convolutions run as integer kernels, and how many there are, in any ONNX file."""
    kinds = [node.op_type for node in optimized(source).graph.node]
    integer = sum(kind in INTEGER_CONVS for kind in kinds)
    return integer, integer + sum(kind.endswith("Conv") and kind not in INTEGER_CONVS for kind in kinds)


def layers_of(model: onnx.ModelProto, graph: onnx.ModelProto) -> Layers:
    """Splits the layers of an exported model by what they became in the graph onnxruntime made of it."""
    reasons = dict(json.loads(read_metadata(model).get("float_layers", "{}")))
    run_in_integers = _integer_nodes(graph)
    names = [name for name in _layers(model) if not any(name.startswith(f"{other}.") for other in reasons)]
    floating = tuple(name for name in names if name not in run_in_integers)
    return Layers(tuple(name for name in names if name in run_in_integers), floating, reasons)


def _layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that compute with activations."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = []
    for node in model.graph.node:
        if all(name in constants for name in node.input):
            constants.update(node.output)
        elif counts_as_layer(node.op_type) and node.name not in FRONT:
            names.append(node.name)
    return names


def _integer_nodes(graph: onnx.ModelProto) -> set[str]:
    """Names of nodes that are integer kernels, or pools of integers."""
    integers: set[str] = set()
    names = set()
    for node in graph.graph.node:
        kernel = node.op_type.startswith("QLinear") or node.op_type == "QGemm"
        reads_integers = any(name in integers for name in node.input) and node.op_type != "DequantizeLinear"
        if kernel or reads_integers or node.op_type == "QuantizeLinear":
            integers.update(node.output)
        if kernel or (reads_integers and node.op_type in POOLS):
            names.add(node.name)
    return names
