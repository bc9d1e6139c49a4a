"""Tracing a network with torch.fx into one graph that holds for training and evaluation, with layers as its leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from qkd.errors import NetworkError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one node of the graph: layers of torch and Brevitas, and classes with ``is_leaf = True``."""
    if isinstance(module, (*CONTAINERS, fx.GraphModule)):
        return False
    package = type(module).__module__
    is_layer = package.startswith(("torch.nn.", "brevitas.", "torchvision.ops.stochastic_depth"))
    return is_layer or bool(getattr(module, "is_leaf", False))


class ByMode(nn.Module):
    """A call of a function with a ``training`` argument, to which it passes the current mode of this module.

    Tracing freezes that argument to a constant; without this class, dropout and stochastic depth written as functions would
    keep the mode in which the network was traced. ``argument`` is the position or the name of the argument.
    """

    is_leaf = True

    def __init__(self, function: Any, argument: int | str) -> None:
        super().__init__()
        self.function, self.argument = function, argument

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.argument, str):
            kwargs[self.argument] = self.training
        else:
            args = (*args[: self.argument], self.training, *args[self.argument + 1 :])
        return self.function(*args, **kwargs)


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.open_modules: list[str] = []  # paths, outermost first

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.open_modules.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.open_modules.pop()  # not in a `finally`: after an error the last entry is the module that failed
        return result


def trace(network: nn.Module) -> fx.GraphModule:
    """The network as one graph that shares its layers and computes the same, in training and in evaluation mode.

    Nodes keep ``meta["nn_module_stack"]``, the module paths they came from. Raises NetworkError naming the module
    that cannot be traced, or the first place where the two modes differ by more than a ``training`` flag.
    """
    mode = network.training
    try:
        training, evaluation = (_graph(network.train(on)) for on in (True, False))
    finally:
        network.train(mode)
    module = fx.GraphModule(network, training, class_name=type(network).__name__)
    _join_modes(module, evaluation)
    module.train(mode)
    return module


def _graph(network: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(network)
    except Exception as error:
        path = tracer.open_modules[-1] if tracer.open_modules else ""
        kind = type(network.get_submodule(path)).__name__
        reason = str(error).strip().splitlines()[0]
        raise NetworkError(
            f"{type(network).__name__}: cannot trace {path or 'its forward'} ({kind}): {reason}; write the part that "
            f"depends on values as an nn.Module of its own with the class attribute `is_leaf = True`",
            key="network.cannot-be-traced",
        ) from error


def _join_modes(module: fx.GraphModule, evaluation: fx.Graph) -> None:
    """Replace nodes that differ only by a ``training`` flag by ByMode modules. Raises NetworkError for other differences."""
    pairs = list(zip(module.graph.nodes, evaluation.nodes, strict=False))
    same_length = len(module.graph.nodes) == len(evaluation.nodes)
    for node, other in pairs:
        if (node.op, str(node.target)) != (other.op, str(other.target)):
            raise _modes_differ(module, node)
        training, evaluated = ({**dict(enumerate(n.args)), **n.kwargs} for n in (node, other))
        flags = [at for at in training if training[at] is True and evaluated.get(at) is False]
        if not flags:
            continue
        if node.op != "call_function" or len(flags) > 1:
            raise _modes_differ(module, node)
        path = f"{node.name}_by_mode"
        module.add_submodule(path, ByMode(node.target, flags[0]))
        node.op, node.target = "call_module", path
    if not same_length:
        raise _modes_differ(module, pairs[-1][0])
    module.recompile()


def _modes_differ(module: fx.GraphModule, node: fx.Node) -> NetworkError:
    where = next(reversed(where_from(node)), "its forward")
    return NetworkError(
        f"{type(module).__name__}: training and evaluation take different paths in {where} (at {node.name}); write the "
        f"part that depends on the mode as an nn.Module of its own with the class attribute `is_leaf = True`",
        key="network.modes-differ",
    )


def where_from(node: fx.Node) -> list[str]:
    """The module paths a node came from, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(entry[0] if isinstance(entry, tuple) else key) for key, entry in stack.items()]


def record_shapes(module: fx.GraphModule, images: Tensor) -> None:
    """Run the graph once in evaluation mode and store ``meta["tensor_meta"]`` (shape, dtype) on every node."""
    mode = module.training
    module.eval()
    try:
        with torch.no_grad():
            ShapeProp(module).propagate(images)
    finally:
        module.train(mode)
