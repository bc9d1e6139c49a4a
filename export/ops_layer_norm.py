"""Layer norm: no integer kernel, but a form in float whose every value is the same in onnxruntime and in the emulator.

A layer norm does not depend on a shift of its input, and on its scale only through epsilon. So it is computed from the
integers: their sums and sums of squares are integers that float32 holds, whatever the order in which they are added, and
what follows is one correctly rounded operation on each element. onnxruntime's own LayerNormalization adds in an order of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.emulator_kernels import EXACT
from qkd.export.emulator_nodes import Emulation, exact_in_float
from qkd.export.fx_nodes import label
from qkd.export.grid import Grid
from qkd.export.node_arguments import arguments

REASON = "onnxruntime has no integer LayerNorm"


def layer_norm(converter: Converter, node: fx.Node) -> Value:
    """A layer norm over the last axis: in float, computed from the integers of its input where their sums are exact.

    Raises ExportError for one over several axes.
    """
    name, value = label(node), converter.value(node.args[0])
    given = arguments(converter, node, {"normalized_shape": None, "weight": None, "bias": None, "eps": 1e-5})
    if len(given["normalized_shape"]) != 1:
        raise ExportError(
            f"{name}: a layer norm over {len(given['normalized_shape'])} axes has no ONNX form here; normalise the last",
            key="export.layer-norm-axes",
        )
    converter.note(name, REASON)
    count = int(given["normalized_shape"][0])
    affine = [_numbers(converter, given[which], name, which) for which in ("weight", "bias")]
    if value.grid is None or count * _middle(value.grid)[1] ** 2 > EXACT:
        scale = affine[0] or converter.graph.constant(np.ones(count, np.float32))
        inputs = [value.name, scale, *([affine[1]] if affine[1] else [])]
        return Value(converter.graph.node("LayerNormalization", inputs, name, epsilon=float(given["eps"])))
    return _from_integers(converter, value, count, float(given["eps"]), affine, name)


def _middle(grid: Grid) -> tuple[int, int]:
    """The integer in the middle of a grid, and how far the others are from it at most."""
    middle = (grid.low + grid.high + 1) // 2
    return middle, max(middle - grid.low, grid.high - middle)


def _from_integers(converter: Converter, value: Value, count: int, eps: float, affine: list[str], name: str) -> Value:
    """``(c - mean) / sqrt(variance + eps / s^2) * weight + bias`` for integers c, counted from the middle of their grid."""
    assert value.grid is not None
    graph = converter.graph
    share, tiny = np.float32(1 / count), np.float32(eps / float(value.grid.scale) ** 2)
    axis = graph.constant(np.array([-1], np.int64))

    def named(kind: str, inputs: list[str], what: str, **attributes: Any) -> str:
        return graph.node(kind, inputs, f"{name}.{what}", **attributes)

    middle = graph.constant(value.grid.integer(_middle(value.grid)[0]))
    integers = graph.unnamed("DequantizeLinear", [value.integers, graph.constant(np.float32(1)), middle])
    total = named("ReduceSum", [integers, axis], "sum")
    squares = named("ReduceSum", [named("Mul", [integers, integers], "square"), axis], "squares")
    mean = named("Mul", [total, graph.constant(share)], "mean")
    spread = named("Sub", [squares, named("Mul", [total, mean], "part")], "spread")
    spread = named("Mul", [named("Relu", [spread], "positive"), graph.constant(share)], "variance")
    root = named("Sqrt", [named("Add", [spread, graph.constant(tiny)], "raised")], "root")
    inverse = named("Div", [graph.constant(np.float32(1)), root], "inverse")
    result = named("Sub", [integers, mean], "centred")
    last = [("Mul", inverse, "normal"), ("Mul", affine[0], "weighed"), ("Add", affine[1], "shifted")]
    *before, (kind, operand, _) = [each for each in last if each[1]]
    for earlier, other, what in before:
        result = named(earlier, [result, other], what)
    return Value(graph.node(kind, [result, operand], name))


def _numbers(converter: Converter, given: Any, name: str, which: str) -> str:
    """The constant of a weight or bias, from a module's parameter or a value of the graph; empty where there is none."""
    if given is None:
        return ""
    if isinstance(given, Value):
        return given.name
    return converter.graph.constant(given.detach().cpu().float().numpy(), f"{name}.{which}")


HANDLERS: Mapping[str, Handler] = {"layer_norm": layer_norm}
EMULATIONS: Mapping[str, Emulation] = {
    "Sub": Emulation(exact_in_float(torch.sub)),
    "Div": Emulation(exact_in_float(torch.div)),
    "Sqrt": Emulation(exact_in_float(torch.sqrt)),
    "Relu": Emulation(exact_in_float(torch.relu)),
    "ReduceSum": Emulation(exact_in_float(lambda values, axes: values.sum(axes.tolist(), keepdim=True))),
}
