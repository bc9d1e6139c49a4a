"""What each node of a graph does to a grid, which tensors need a quantizer, and which of them are never negative."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from qkd.networks.tracing import ByMode

Kind = Literal[
    "input", "output", "constant", "scalar", "layer", "norm", "relu", "curve", "add", "cat", "pool", "max", "pass", "other"
]  # fmt: skip
"""
layer: a conv or linear layer that gets quantized weights; norm: batch norm; curve: an activation function other than ReLU,
a layer norm or a product of two tensors: it reads and writes grids, though most are computed in float between them; pool:
an average of elements; max: picks elements; pass: moves or drops elements, so that its output lies on the grid of its input;
scalar: not a tensor; other: anything else, which stays float.
"""

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)

_MODULES: dict[type, Kind] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6), "relu"),
    **dict.fromkeys((nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU), "curve"),
    nn.LayerNorm: "curve",
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), "norm"),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), "max"),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.Identity, nn.ChannelShuffle, nn.PixelShuffle), "pass"),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout), "pass"),
}
_FUNCTIONS: dict[str, Kind] = {
    **dict.fromkeys(("relu", "relu_", "relu6"), "relu"),
    **dict.fromkeys(("hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu"), "curve"),
    **dict.fromkeys(("mul", "imul", "mul_", "layer_norm"), "curve"),
    **dict.fromkeys(("add", "add_", "iadd"), "add"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "cat"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean"), "pool"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"), "max"),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous"), "pass"),
    **dict.fromkeys(("permute", "transpose", "chunk", "split", "channel_shuffle", "pixel_shuffle"), "pass"),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "stochastic_depth"), "pass"),
    **dict.fromkeys(("size", "dim", "numel", "len"), "scalar"),
}
_CALLS: dict[Any, Kind] = {
    getattr(home, name): kind
    for home in (torch, F, operator)
    for name, kind in _FUNCTIONS.items()
    if hasattr(home, name)
}
_PIECES = ("chunk", "split")
_NEVER_NEGATIVE = ("sigmoid", "hardsigmoid", "softmax", "sigmoid_", "abs", "square")


def function_name(node: fx.Node) -> str:
    """The bare name of the function or method a node calls, such as ``cat``; of a module, its class name."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def kinds(module: fx.GraphModule) -> dict[fx.Node, Kind]:
    """The kind of every node of a traced float network."""
    found: dict[fx.Node, Kind] = {}
    for node in module.graph.nodes:
        found[node] = _kind(module, node, found)
    return found


def _kind(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Kind]) -> Kind:
    if node.op in ("placeholder", "output", "get_attr"):
        return {"placeholder": "input", "output": "output", "get_attr": "constant"}[node.op]  # type: ignore[return-value]
    if node.op == "call_module":
        return _kind_of_module(module.get_submodule(str(node.target)))
    sources = node.all_input_nodes
    if sources and all(known[source] in ("scalar", "constant") for source in sources):
        return "constant" if any(known[source] == "constant" for source in sources) else "scalar"
    return _kind_of_call(node, known)


def _kind_of_module(module: nn.Module) -> Kind:
    if isinstance(module, ByMode):
        return _FUNCTIONS.get(getattr(module.function, "__name__", ""), "other")
    if type(module) in LAYERS:
        return "layer"
    if isinstance(module, POOLS):
        return "pool"
    if type(module).__name__ == "StochasticDepth":
        return "pass"
    return _MODULES.get(type(module), "other")


def _kind_of_call(node: fx.Node, known: dict[fx.Node, Kind]) -> Kind:
    name = function_name(node)
    if name == "getattr":
        return "scalar" if node.args[1] in ("shape", "dtype", "device", "ndim") else "other"
    if node.target is operator.getitem:
        source = node.args[0]
        return "pass" if isinstance(source, fx.Node) and function_name(source) in _PIECES else "other"
    found = _FUNCTIONS.get(name, "other") if node.op == "call_method" else _CALLS.get(node.target, "other")
    two = found == "add" or name in ("mul", "imul", "mul_")
    return "other" if two and not _adds_two_tensors(node, known) else found


def _adds_two_tensors(node: fx.Node, known: dict[fx.Node, Kind]) -> bool:
    operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and known[a] not in ("scalar", "constant")]
    return len(operands) == 2 and "alpha" not in node.kwargs


def folded(node: fx.Node, kind: dict[fx.Node, Kind]) -> bool:
    """Whether a node is a batch norm directly and solely behind a layer, into which export folds it."""
    source = node.args[0] if node.args else None
    return kind[node] == "norm" and isinstance(source, fx.Node) and kind[source] == "layer" and len(source.users) == 1


def readers(node: fx.Node, kind: dict[fx.Node, Kind]) -> Iterator[fx.Node]:
    """The nodes that want this tensor on a grid, seen through what only moves or picks its elements."""
    for user in node.users:
        what = kind[user]
        if what in ("layer", "curve", "add", "cat", "pool", "max") or (what == "norm" and not folded(user, kind)):
            yield user
        if what in ("pass", "max"):
            yield from readers(user, kind)


def never_negative(module: fx.GraphModule, kind: dict[fx.Node, Kind]) -> set[fx.Node]:
    """The nodes whose output cannot be negative, whatever the input."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        sources = [source for source in node.all_input_nodes if kind[source] != "scalar"]
        inherited = kind[node] in ("add", "cat", "pool", "max", "pass") or function_name(node) in ("mul", "imul")
        if kind[node] == "relu" or _squashes(module, node) or (inherited and sources and found.issuperset(sources)):
            found.add(node)
    return found


def _squashes(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax))
    return node.op in ("call_function", "call_method") and function_name(node) in _NEVER_NEGATIVE


def ends(nodes: Iterable[fx.Node], kind: dict[fx.Node, Kind]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The layers no layer comes before, and the layers no layer comes after."""
    ordered = list(nodes)
    before = _reached(ordered, kind, lambda node: node.all_input_nodes)
    after = _reached(ordered[::-1], kind, lambda node: list(node.users))
    layers = {node for node in ordered if kind[node] == "layer"}
    return layers - before, layers - after


def _reached(ordered: list[fx.Node], kind: dict[fx.Node, Kind], neighbours: Any) -> set[fx.Node]:
    reached: set[fx.Node] = set()
    for node in ordered:
        if any(kind[other] == "layer" or other in reached for other in neighbours(node)):
            reached.add(node)
    return reached
