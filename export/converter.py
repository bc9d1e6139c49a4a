"""A traced network, node by node, into an ONNX graph; what each kind of node becomes is decided by handlers."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from qkd.errors import ExportError, nearest
from qkd.export.fold import IntegerWeight
from qkd.export.fx_nodes import BATCH, constants, is_tensor, label, measure_nodes, passes_through, target_name, traced
from qkd.export.grid import Grid, is_on, read_grid, require_calibrated
from qkd.export.onnx_graph import INPUT, Graph
from qkd.export.pack import Storage
from qkd.export.quantizer_map import QuantizerMap
from qkd.export.targets import ONNXRUNTIME, Target, coarsened
from qkd.export.uint8_input import Uint8Input, normalise_bytes
from qkd.quantizers.brevitas_imports import qnn

MOVING_LAYERS = (nn.Flatten, nn.Unflatten, nn.MaxPool2d, nn.ChannelShuffle)
MOVING = {
    *(torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze),
    *(F.max_pool2d, F.pad, F.channel_shuffle),
    *("flatten", "unflatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze"),
}
"""What only moves or picks values or adds zeros, between a result and the quantizer that rounds it."""
QUANTIZERS = (qnn.QuantReLU, qnn.QuantIdentity)


@dataclass(frozen=True)
class Value:
    """A float tensor of the ONNX graph; with a grid it is the DequantizeLinear of the uint8 tensor ``codes``."""

    name: str
    grid: Grid | None = None
    codes: str = ""


Handler = Callable[["Converter", fx.Node], Any]
"""From a node to its value: a Value, or a tuple of them for a node with several results."""


@final
class Converter:
    """The state of one emission. ``integer`` false emits the float network: master weights, no quantizers."""

    def __init__(
        self,
        product: nn.Module,
        shape: tuple[int, ...],
        *,
        integer: bool,
        storage: Storage,
        headroom: int,
        raw: Uint8Input | None = None,
        target: Target = ONNXRUNTIME,
    ) -> None:
        self.module = traced(product)
        if integer:
            require_calibrated(self.module)
        self.results, self.constants = measure_nodes(self.module, shape), constants(self.module)
        self.integer, self.storage, self.headroom = integer, storage, headroom
        self.target, self.coarsened = target, dict[str, None]()
        self.graph = Graph()
        self.images = Value(INPUT if raw is None else normalise_bytes(self.graph, shape, raw))
        self.weights: dict[str, IntegerWeight] = {}
        self.values: dict[fx.Node, Any] = {}
        self.folded: set[fx.Node] = set()
        self.kept_float: dict[str, str] = {}
        self.in_integers: list[str] = []
        self.averaged: dict[str, int] = {}
        self.roundings = QuantizerMap(self.weights)
        self._calls: Counter[str] = Counter()

    def run(self, handlers: Mapping[Any, Handler]) -> Value:
        """Emits every node and returns the network's output."""
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.images
            elif node.op == "output":
                return self._output(node)
            elif node in self.constants:
                self.values[node] = self._constant(node)
            elif is_tensor(self.results[node]):
                self.values[node] = self._rounded_early(node, self._handler(node, handlers)(self, node))
                self._record(node, self.values[node])
            else:
                self.values[node] = self.results[node]  # a size, a number: known, since the image size is
        raise ExportError(f"{type(self.module).__name__}: the network returns nothing; return its logits")

    def value(self, argument: Any) -> Any:
        """What an argument of a node stands for: a Value for a tensor, the number itself for a number."""
        return self.values[argument] if isinstance(argument, fx.Node) else argument

    def shape(self, node: Any) -> tuple[int, ...]:
        """Shape of a node's tensor, batch axis first (``BATCH`` images)."""
        return tuple(self.results[node].shape)

    def submodule(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a node's result, looking through dropout and the like."""
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if self.passes(user) else [user]
        return found

    def passes(self, node: fx.Node) -> bool:
        """Whether a node hands its input on unchanged: in evaluation mode, or since it was folded into a layer."""
        return node in self.folded or (node.op == "call_module" and passes_through(self.submodule(node)))

    def sole_reader(self, node: fx.Node, kinds: tuple[type, ...]) -> fx.Node | None:
        """The node's only reader, if it is a layer of one of these kinds."""
        readers = self.readers(node)
        if len(readers) == 1 and readers[0].op == "call_module" and isinstance(self.submodule(readers[0]), kinds):
            return readers[0]
        return None

    def grid_behind(self, node: fx.Node) -> Grid | None:
        """The grid of the one quantizer that reads a node's result, at once or behind nodes that only move values.

        Rounding each value commutes with moving values, and with a maximum, so that grid may be applied before them.
        """
        readers = self.readers(node)
        if not self.integer or len(readers) != 1:
            return None
        if self._moves(readers[0]):
            return self.grid_behind(readers[0])
        quantizer = self.sole_reader(node, QUANTIZERS)
        if quantizer is None or not is_on(self.submodule(quantizer).act_quant):
            return None
        return self.grid_of(quantizer)

    def quantized_later(self, node: fx.Node) -> bool:
        """Whether a quantizer reads a node's result, at once or behind nodes that are no layers."""
        modules = [self.submodule(reader) if reader.op == "call_module" else None for reader in self.readers(node)]
        return any(
            isinstance(module, QUANTIZERS) or (not hasattr(module, "weight_quant") and self.quantized_later(reader))
            for reader, module in zip(self.readers(node), modules, strict=True)
        )

    def grid_of(self, quantizer: fx.Node) -> Grid:
        module, name = self.submodule(quantizer), label(quantizer)
        grid = read_grid(module.act_quant, name, at_least_zero=isinstance(module, qnn.QuantReLU))
        if self.target.symmetric and coarsened(grid):
            self.coarsened[name] = None
        return self.target.grid(grid, name)

    def no_quantizer_behind(self, node: fx.Node) -> str:
        """Why onnxruntime cannot write a node's result as integers; empty if it can."""
        if self.grid_behind(node) is not None:
            return ""
        names = ", ".join(sorted({label(reader) for reader in self.readers(node)}))
        return f"its result is read by {names} and not by one quantizer alone"

    def _moves(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.submodule(node), MOVING_LAYERS)
        if node.target is operator.getitem:
            return isinstance(self.results[node.args[0]], torch.Tensor)  # type: ignore[index]
        return node.op in ("call_function", "call_method") and node.target in MOVING

    def _rounded_early(self, node: fx.Node, value: Any) -> Any:
        """A result that is only moved before it is quantized is quantized first, so that integers are moved."""
        if not self.integer or not isinstance(value, Value) or value.grid is not None:
            return value
        readers = self.readers(node)
        grid = self.grid_behind(node) if len(readers) == 1 and self._moves(readers[0]) else None
        return value if grid is None else self.quantize(value, grid)

    def note(self, name: str, reason: str) -> bool:
        """Writes down whether a layer runs in integers (no reason against it) or stays float; true for integers."""
        self._calls[name] += 1
        called = name if self._calls[name] == 1 else f"{name}.call{self._calls[name]}"
        if self.integer and reason:
            self.kept_float[called] = reason
        elif self.integer:
            self.in_integers.append(called)
        return self.integer and not reason

    def quantize(self, value: Value, grid: Grid) -> Value:
        """QuantizeLinear, Clip for fewer than 8 bits, DequantizeLinear; for a symmetric target the Clip comes first."""
        given = value.name
        if grid.clips and self.target.symmetric:
            ends = [self.graph.constant(grid.value(end)) for end in (grid.low, grid.high)]
            given = self.graph.step("Clip", [given, *ends])
        codes = self.graph.step("QuantizeLinear", [given, *self._constants(grid)])
        if grid.clips and not self.target.symmetric:
            codes = self.graph.step(
                "Clip", [codes, *(self.graph.constant(grid.code(end)) for end in (grid.low, grid.high))]
            )
        self.roundings.follow(value.name, codes, grid)
        return self.dequantize(codes, grid)

    def _record(self, node: fx.Node, value: Any) -> None:
        if self.integer and node.op == "call_module" and isinstance(self.submodule(node), QUANTIZERS) and value.grid:
            self.roundings.record(node.name, label(node), value.codes, value.grid)

    def dequantize(self, codes: str, grid: Grid) -> Value:
        return Value(self.graph.step("DequantizeLinear", [codes, *self._constants(grid)]), grid, codes)

    def move(self, value: Value, kind: str, name: str, *more: str, **attributes: Any) -> Value:
        """A node that only moves or picks values; on a grid the same grid stands behind it too, so integers are moved."""
        moved = self.graph.node(kind, [value.name, *more], name, **attributes)
        if value.grid is None:
            return Value(moved)
        codes = self.graph.step("QuantizeLinear", [moved, *self._constants(value.grid)])
        self.roundings.move(value.codes, codes)
        return self.dequantize(codes, value.grid)

    def _constants(self, grid: Grid) -> tuple[str, str]:
        return self.graph.constant(np.float32(grid.scale)), self.graph.constant(grid.code(grid.zero_point))

    def _handler(self, node: fx.Node, handlers: Mapping[Any, Handler]) -> Handler:
        keys: Iterator[Any] = (
            iter(type(self.submodule(node)).__mro__) if node.op == "call_module" else iter([node.target])
        )
        if self.passes(node):
            return _pass
        found = next((handlers[key] for key in keys if key in handlers), None)
        if found is None:
            raise self._no_form(node, handlers)
        return found

    def _constant(self, node: fx.Node) -> Value:
        name = str(node.target) if node.op == "get_attr" else label(node)
        return Value(self.graph.constant(self.constants[node].cpu().float().numpy(), name))

    def _no_form(self, node: fx.Node, handlers: Mapping[Any, Handler]) -> ExportError:
        kind = type(self.submodule(node)).__name__ if node.op == "call_module" else target_name(node.target)
        known = sorted({target_name(key) for key in handlers})
        return ExportError(
            f"{label(node)}: {kind} has no ONNX form here{nearest(kind, known)}; possible are {', '.join(known)}"
        )

    def _output(self, node: fx.Node) -> Value:
        result = self.value(node.args[0])
        if not isinstance(result, Value) or self.shape(node.args[0])[0] != BATCH:
            raise ExportError(
                f"{type(self.module).__name__}: a product returns one tensor of logits, one row for each image"
            )
        return result


def _pass(walk: Converter, node: fx.Node) -> Any:
    return walk.value(next(argument for argument in node.args if argument not in walk.constants))
