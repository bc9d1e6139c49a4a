"""What each node of a graph does to a grid, which tensors need a quantizer, and which of them are never negative.

What is known of each operator stands in `operators`; here it is applied to the nodes of a traced float network.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from torch import fx, nn

from qkd.networks.tracing import ByMode
from qkd.quantizers.operators import (
    Kind,
    Operator,
    modules_where,
    operator_called,
    operator_named,
    operator_of_class,
    operators_of_class,
)


def function_name(node: fx.Node) -> str:
    """The bare name of the function or method that a node calls, such as ``cat``; for a module, its path."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def kinds(module: fx.GraphModule) -> dict[fx.Node, Kind]:
    """The kind of every node of a traced float network."""
    found: dict[fx.Node, Kind] = {}
    for node in module.graph.nodes:
        found[node] = _kind(module, node, found)
    return found


def _kind(module: fx.GraphModule, node: fx.Node, before: dict[fx.Node, Kind]) -> Kind:
    """The kind of a node, given those of the nodes before it."""
    if node.op in ("placeholder", "output", "get_attr"):
        return {"placeholder": "input", "output": "output", "get_attr": "constant"}[node.op]  # type: ignore[return-value]
    if node.op == "call_module":
        return _kind_of_module(module.get_submodule(str(node.target)))
    sources = node.all_input_nodes
    if sources and all(before[source] in ("scalar", "constant") for source in sources):
        return "constant" if any(before[source] == "constant" for source in sources) else "scalar"
    return _kind_of_call(node, before)


def _kind_of_module(module: nn.Module) -> Kind:
    if isinstance(module, ByMode):
        return _kind_of(operator_named(getattr(module.function, "__name__", "")))
    if any(each.kind == "pool" for each in operators_of_class(type(module))):
        return "pool"  # also where the class is derived from a pool; any other derived class may compute something else
    return _kind_of(operator_of_class(type(module)))


def _kind_of_call(node: fx.Node, before: dict[fx.Node, Kind]) -> Kind:
    if function_name(node) == "getattr":
        return "scalar" if node.args[1] in ("shape", "dtype", "device", "ndim") else "other"
    if node.target is operator.getitem:
        source = node.args[0]
        called = operator_named(function_name(source)) if isinstance(source, fx.Node) else None
        return "pass" if called is not None and called.in_parts else "other"
    found = operator_called(node.target)
    if found is not None and found.between_two and not _joins_two_tensors(node, before):
        return "other"
    return _kind_of(found)


def _kind_of(found: Operator | None) -> Kind:
    return "other" if found is None else found.kind


def _joins_two_tensors(node: fx.Node, before: dict[fx.Node, Kind]) -> bool:
    operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and before[a] not in ("scalar", "constant")]
    return len(operands) == 2 and "alpha" not in node.kwargs


def folded(node: fx.Node, kind: dict[fx.Node, Kind]) -> bool:
    """Whether a node is a batch norm directly and solely behind a layer, into which export folds it."""
    source = node.args[0] if node.args else None
    return kind[node] == "norm" and isinstance(source, fx.Node) and kind[source] == "layer" and len(source.users) == 1


def readers(node: fx.Node, kind: dict[fx.Node, Kind]) -> Iterator[fx.Node]:
    """The nodes that need this tensor on a grid, also those behind nodes that only move or pick its elements."""
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
        called = operator_named(function_name(node))
        inherits = kind[node] in ("add", "cat", "pool", "max", "pass") or (called is not None and called.keeps_sign)
        if kind[node] == "relu" or _squashes(module, node) or (inherits and sources and found.issuperset(sources)):
            found.add(node)
    return found


def _squashes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's operator gives no negative values by itself, as a sigmoid does."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), modules_where(lambda each: each.never_negative))
    called = operator_named(function_name(node)) if node.op in ("call_function", "call_method") else None
    return called is not None and called.never_negative


def ends(nodes: Iterable[fx.Node], kind: dict[fx.Node, Kind]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The layers that no layer comes before, and the layers that no layer comes after."""
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
