"""A product as a graph of layers: tracing it, the shapes in it, and the names of its nodes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from qkd.errors import ExportError
from qkd.networks.tracing import ByMode, trace, where_from
from qkd.quantizers import disabled

BATCH = 3
"""Images in the run that measures shapes; more than one, so that a batch axis that was lost is noticed."""
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def traced(product: nn.Module) -> fx.GraphModule:
    """The product as a graph of layers; one that is such a graph already keeps its node names."""
    product.eval()
    if isinstance(product, fx.GraphModule):
        called = [product.get_submodule(str(n.target)) for n in product.graph.nodes if n.op == "call_module"]
        if not any(isinstance(module, fx.GraphModule) for module in called):
            return product
    return trace(product)


def measure_nodes(module: fx.GraphModule, shape: tuple[int, ...]) -> dict[fx.Node, Any]:
    """What every node gives for ``BATCH`` black images: a meta tensor for a tensor, else the value itself."""
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
            raise ExportError(f"{type(module).__name__}: does not take images of {size}: {reason}") from error
    return found


@torch.no_grad()
def constants(module: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Parameters and buffers that the network reads by itself (a learned scale), and what is made of them alone."""
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
    return isinstance(result, Tensor) or (isinstance(result, (tuple, list)) and any(map(is_tensor, result)))


def passes_through(module: nn.Module) -> bool:
    if isinstance(module, ByMode):
        return "dropout" in target_name(module.function) or "stochastic_depth" in target_name(module.function)
    return isinstance(module, PASSING) or type(module).__name__ in ("StochasticDepth", "DropPath")


def label(node: fx.Node) -> str:
    """The name of a node in messages and in the file: its module path, or where a function was called."""
    if node.op == "call_module":
        return str(node.target)
    if node.op == "output":
        return "the output"
    inside = where_from(node)
    return f"{inside[-1]}.{node.name}" if inside and inside[-1] else node.name


def scalar(value: Any, where: str) -> float:
    """A Python number among a node's arguments; raises ExportError for anything else."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ExportError(f"{where}: expected a number, found {value!r}")
    return float(value)


def target_name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
