"""The graph of a deployed model: tracing it, the shapes of its tensors, its constants, and the names of its nodes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from qkd.errors import ExportError
from qkd.networks.tracing import ByMode, trace, where_from
from qkd.quantizers import disabled
from qkd.quantizers.operators import OPERATORS, modules_where

BATCH = 3
"""Batch size of the forward pass that measures shapes; more than one, so that a lost batch axis is noticed."""


def traced(product: nn.Module) -> fx.GraphModule:
    """The model as a graph of layers, in evaluation mode; one that is such a graph already keeps its node names."""
    product.eval()
    if isinstance(product, fx.GraphModule):
        called = [product.get_submodule(str(n.target)) for n in product.graph.nodes if n.op == "call_module"]
        if not any(isinstance(module, fx.GraphModule) for module in called):
            return product
    return trace(product)


def measure_nodes(module: fx.GraphModule, shape: tuple[int, ...]) -> dict[fx.Node, Any]:
    """The result of every node for ``BATCH`` images of zeros: a meta tensor for a tensor, else the value itself.

    ``shape`` is (channels, height, width). Raises ExportError where the network does not take images of that shape.
    """
    found: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            found[n] = fx.node.map_aggregate(result, lambda r: r.to("meta") if isinstance(r, Tensor) else r)
            return result

    first = next(module.parameters(), torch.zeros(()))
    with torch.no_grad(), disabled(module):  # rounding changes no shape, and a float file needs no calibration
        try:
            Recorder(module).run(torch.zeros(BATCH, *shape, dtype=first.dtype, device=first.device))
        except RuntimeError as error:
            size = "x".join(map(str, shape))
            reason = str(error).strip().splitlines()[0]
            raise ExportError(
                f"{type(module).__name__}: does not take images of {size}: {reason}", key="export.wrong-image-size"
            ) from error
    return found


@torch.no_grad()
def constants(module: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Parameters and buffers that the graph reads directly (a learned scale), and what is computed from them alone."""
    found: dict[fx.Node, Tensor] = {}
    interpreter = fx.Interpreter(module)
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        made = node.op in ("call_function", "call_method") and sources and all(source in found for source in sources)
        if node.op == "get_attr" or made:
            interpreter.env.update(found)
            value = interpreter.run_node(node)
            if isinstance(value, Tensor):
                found[node] = value.detach()
    return found


def is_tensor(result: Any) -> bool:
    """Whether a node's result is a tensor, or a tuple or list that has one in it."""
    return isinstance(result, Tensor) or (isinstance(result, (tuple, list)) and any(map(is_tensor, result)))


def passes_through(module: nn.Module) -> bool:
    """Whether the output of a module in evaluation mode is its input: an identity, dropout, stochastic depth."""
    dropout = OPERATORS["dropout"]
    if isinstance(module, ByMode):
        return any(name in target_name(module.function) for name in dropout.names)
    return isinstance(module, modules_where(lambda each: each.passes)) or type(module).__name__ in dropout.elsewhere


def label(node: fx.Node) -> str:
    """The name of a node in messages and in the file: its module path, or where a function was called."""
    if node.op == "call_module":
        return str(node.target)
    if node.op == "output":
        return "the output"
    inside = where_from(node)
    return f"{inside[-1]}.{node.name}" if inside and inside[-1] else node.name


def scalar(value: Any, where: str) -> float:
    """A finite number among a node's arguments; raises ExportError, naming ``where``, for anything else."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ExportError(f"{where}: expected a number, found {value!r}", key="export.not-a-number")
    return float(value)


def target_name(target: Any) -> str:
    """The bare name of a function, a class, or a method that is given by its name."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
