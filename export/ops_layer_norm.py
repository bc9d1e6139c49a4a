"""Layer norm: no integer kernel, but a form in float whose every value is the same in onnxruntime and in the emulator.

A layer norm does not see a shift of its input, and its scale only through epsilon. So it is computed from the codes: their
sums and sums of squares are integers that float32 holds, whatever the order they are added in, and what follows is one
correctly rounded operation on each element. onnxruntime's own LayerNormalization adds in an order of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx, nn
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.emulator_kernels import EXACT
from qkd.export.fx_nodes import label
from qkd.export.grid import Grid
from qkd.export.node_arguments import arguments

REASON = "onnxruntime has no integer LayerNorm"


def layer_norm(walk: Converter, node: fx.Node) -> Value:
    """Over the last axis. In float, named; from the codes of its input where their sums are exact."""
    name, value = label(node), walk.value(node.args[0])
    given = arguments(walk, node, {"normalized_shape": None, "weight": None, "bias": None, "eps": 1e-5})
    if len(given["normalized_shape"]) != 1:
        raise ExportError(
            f"{name}: a layer norm over {len(given['normalized_shape'])} axes has no ONNX form here; normalise the last"
        )
    walk.note(name, REASON)
    count = int(given["normalized_shape"][0])
    affine = [_numbers(walk, given[which], name, which) for which in ("weight", "bias")]
    if value.grid is None or count * _middle(value.grid)[1] ** 2 > EXACT:
        scale = affine[0] or walk.graph.constant(np.ones(count, np.float32))
        inputs = [value.name, scale, *([affine[1]] if affine[1] else [])]
        return Value(walk.graph.node("LayerNormalization", inputs, name, epsilon=float(given["eps"])))
    return _from_codes(walk, value, count, float(given["eps"]), affine, name)


def _middle(grid: Grid) -> tuple[int, int]:
    """The code in the middle of a grid, and how far the others are from it at most."""
    middle = (grid.low + grid.high + 1) // 2
    return middle, max(middle - grid.low, grid.high - middle)


def _from_codes(walk: Converter, value: Value, count: int, eps: float, affine: list[str], name: str) -> Value:
    """``(c - mean) / sqrt(variance + eps / s^2) * weight + bias`` for codes c, counted from the middle of their grid."""
    assert value.grid is not None
    graph = walk.graph
    share, tiny = np.float32(1 / count), np.float32(eps / float(value.grid.scale) ** 2)
    axis = graph.constant(np.array([-1], np.int64))

    def numbered(kind: str, inputs: list[str], what: str, **attributes: Any) -> str:
        return graph.node(kind, inputs, f"{name}.{what}", **attributes)

    middle = graph.constant(value.grid.code(_middle(value.grid)[0]))
    codes = graph.step("DequantizeLinear", [value.codes, graph.constant(np.float32(1)), middle])
    total = numbered("ReduceSum", [codes, axis], "sum")
    squares = numbered("ReduceSum", [numbered("Mul", [codes, codes], "square"), axis], "squares")
    mean = numbered("Mul", [total, graph.constant(share)], "mean")
    spread = numbered("Sub", [squares, numbered("Mul", [total, mean], "part")], "spread")
    spread = numbered("Mul", [numbered("Relu", [spread], "positive"), graph.constant(share)], "variance")
    root = numbered("Sqrt", [numbered("Add", [spread, graph.constant(tiny)], "raised")], "root")
    inverse = numbered("Div", [graph.constant(np.float32(1)), root], "inverse")
    result = numbered("Sub", [codes, mean], "centred")
    last = [("Mul", inverse, "normal"), ("Mul", affine[0], "weighed"), ("Add", affine[1], "shifted")]
    steps = [step for step in last if step[1]]
    for kind, operand, what in steps[:-1]:
        result = numbered(kind, [result, operand], what)
    return Value(graph.node(steps[-1][0], [result, steps[-1][1]], name))


def _numbers(walk: Converter, given: Any, name: str, which: str) -> str:
    """The constant of a weight or bias, from a module's parameter or a value of the graph; empty where there is none."""
    if given is None:
        return ""
    if isinstance(given, Value):
        return given.name
    return walk.graph.constant(given.detach().cpu().float().numpy(), f"{name}.{which}")


NORMS: dict[Any, Handler] = dict.fromkeys((nn.LayerNorm, F.layer_norm), layer_norm)
