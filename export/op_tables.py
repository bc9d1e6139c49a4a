"""All operators of exported files: the handlers that write them, and how the emulator computes them.

Each ``export/ops_*.py`` holds both for its own operators, so that a new one needs a record in `qkd.quantizers.operators` and
entries in one of these files.
"""

from __future__ import annotations

from qkd.export import ops_elementwise, ops_layer_norm, ops_layers, ops_pool, ops_quantizers, ops_shape
from qkd.export.converter import Handler
from qkd.export.emulator_nodes import Emulation, Node, Operation, in_float

FILES = (ops_layers, ops_quantizers, ops_layer_norm, ops_pool, ops_elementwise, ops_shape)

HANDLERS: dict[str, Handler] = {name: handler for file in FILES for name, handler in file.HANDLERS.items()}
"""By the names of `qkd.quantizers.operators`."""
EMULATIONS: dict[str, Emulation] = {kind: each for file in FILES for kind, each in file.EMULATIONS.items()}
"""By ONNX operator."""


def operation_of(node: Node) -> Operation:
    """What computes a node; an operator that is not in the table has no integer form and is computed in float."""
    return EMULATIONS[node.kind].compute if node.kind in EMULATIONS else in_float


def counts_as_layer(kind: str) -> bool:
    """Whether a node of an ONNX operator is a layer, and not one that only rounds, casts or moves values."""
    return kind not in EMULATIONS or EMULATIONS[kind].is_layer
