"""What each node of a graph does to a grid, which tensors need a quantizer, and which of them are never negative.

What is known of each operator stands in `operators`; here it is applied to the nodes of a traced float network.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from qkd.networks.tracing import ByMode
from qkd.quantizers.operators import (
    OPERATORS,
    Kind,
    Operator,
    operator_called,
    operator_named,
    operator_of_class,
    operators_of_class,
)
from qkd.quantizers.signs import Call, Sign, padded


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
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if layer is not None:
        return _kind_of_module(layer, node)
    sources = node.all_input_nodes
    if sources and all(before[source] in ("scalar", "constant") for source in sources):
        return "constant" if any(before[source] == "constant" for source in sources) else "scalar"
    return _kind_of_call(node, before)


def _kind_of_module(module: nn.Module, node: fx.Node) -> Kind:
    if isinstance(module, ByMode):
        return _kind_of(operator_named(getattr(module.function, "__name__", "")))
    if any(each.kind == "pool" for each in operators_of_class(type(module))):
        return "pool"  # also where the class is derived from a pool; any other derived class may compute something else
    found = operator_of_class(type(module))
    return "pass" if found is OPERATORS["pad_layer"] and _adds_zeros(node, module) else _kind_of(found)


def _kind_of_call(node: fx.Node, before: dict[fx.Node, Kind]) -> Kind:
    if function_name(node) == "getattr":
        return "scalar" if node.args[1] in ("shape", "dtype", "device", "ndim") else "other"
    if node.target is operator.getitem:
        return "pass" if _is_tensor_item(node) else "other"
    found = operator_called(node.target)
    if found is OPERATORS["pad"] and _adds_zeros(node, None):
        return "pass"
    if found is OPERATORS["to"] and all(_keeps_values(each) for each in (*node.args[1:], *node.kwargs.values())):
        return "pass"
    if found is not None and found.kind == "cat" and len(set(_origins(node, before))) == 1:
        return "pass"
    if found is not None and found.between_two and not _joins_two_tensors(node, before):
        return "other"
    return _kind_of(found)


def _origins(node: fx.Node, before: dict[fx.Node, Kind]) -> Iterator[fx.Node]:
    """The tensors whose values a node's operands hold; parts of one tensor that are joined again lie on its grid."""
    for source in node.all_input_nodes:
        while before[source] in ("pass", "max"):
            source = source.all_input_nodes[0]
        if before[source] != "scalar":
            yield source


def _adds_zeros(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether padding puts zeros, which are on every grid, or the input's own values around it."""
    nothing = Call(node, layer, dict.fromkeys(node.all_input_nodes, Sign.ZERO))
    return padded(nothing) is Sign.ZERO and not isinstance(nothing.argument(3, "value"), fx.Node)


def _keeps_values(setting: Any) -> bool:
    """Whether a tensor still holds its values after ``to`` this type; a device, layout or another float tensor's type does."""
    return setting in (torch.float32, torch.float64) if isinstance(setting, torch.dtype) else True


def _is_tensor_item(node: fx.Node) -> bool:
    """Whether an item is a tensor on its source's grid: a slice, or one of the parts of a tensor that was split.

    A number alone may pick one of several results of any operator, of which nothing is known.
    """
    source, index = node.args[0], node.args[1]
    if isinstance(source, fx.Node) and _is_in_parts(source):
        return True
    entries = index if isinstance(index, tuple) else (index,)
    return isinstance(index, tuple) or any(each is None or each is ... or isinstance(each, slice) for each in entries)


def _is_in_parts(node: fx.Node) -> bool:
    """Whether a node's result is a tuple of parts of a tensor, or some of those parts (``parts[:2]``)."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(node.args[1], slice) and isinstance(source, fx.Node) and _is_in_parts(source)
    called = operator_called(node.target) if node.op in ("call_function", "call_method") else None
    return called is not None and called.in_parts


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


def never_negative(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose output cannot be negative, whatever the input."""
    return {node for node, sign in signs(module).items() if Sign.NEGATIVE not in sign}


def signs(module: fx.GraphModule) -> dict[fx.Node, Sign]:
    """The signs that the output of every node of a traced float network may have, whatever the input."""
    found: dict[fx.Node, Sign] = {}
    for node in module.graph.nodes:
        found[node] = _sign(module, node, found)
    return found


def _sign(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Sign]) -> Sign:
    """The sign of a node's output, given those of the nodes before it."""
    if node.op in ("placeholder", "output", "get_attr"):
        return Sign.BOTH  # parameters learn, and buffers come with a checkpoint, perhaps after quantizers were inserted
    if node.op != "call_module":
        if function_name(node) == "getattr":
            return Sign.POSITIVE if node.args[1] in ("shape", "ndim") else Sign.BOTH
        called = operator_called(node.target)
        return Sign.BOTH if called is None else called.sign_rule(Call(node, None, known))
    layer: nn.Module | None = module.get_submodule(str(node.target))
    if isinstance(layer, ByMode):
        called, layer = operator_named(getattr(layer.function, "__name__", "")), None
    else:  # of exactly this class: a class derived from it may compute something else
        called = operator_of_class(type(layer))
    return Sign.BOTH if called is None else called.sign_rule(Call(node, layer, known))


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
