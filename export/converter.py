"""The conversion of a traced network into an ONNX graph, node by node; a handler for each operator writes its nodes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import fx, nn

from qkd.errors import ExportError, nearest
from qkd.export.fold import IntegerWeight
from qkd.export.fx_nodes import BATCH, constants, is_tensor, label, measure_nodes, passes_through, target_name, traced
from qkd.export.grid import Grid, is_on, read_grid, require_calibrated
from qkd.export.onnx_graph import INPUT, Graph
from qkd.export.quantizer_map import QuantizerMap
from qkd.export.targets import ONNXRUNTIME, Storage, Target, coarsened
from qkd.export.uint8_input import Uint8Input, normalise_bytes
from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.operators import OPERATORS, modules_where, operator_called, operators_of_class

QUANTIZERS = OPERATORS["quantizer"].modules


@dataclass(frozen=True)
class Value:
    """A float tensor of the ONNX graph, by name.

    With a ``grid`` it is the result of a DequantizeLinear, and ``integers`` is the name of the 8-bit tensor in front of it.
    """

    name: str
    grid: Grid | None = None
    integers: str = ""


Handler = Callable[["Converter", fx.Node], Any]
"""Writes a node into the graph and returns its Value, or a tuple of them for a node with several results."""


@final
class Converter:
    """The state of one conversion. Without ``integer`` it writes the float network: master weights and no quantizers.

    product: the network. shape: (channels, height, width) of its images. headroom: the largest integer weight that
    low-bit weights are multiplied up to. uint8_input: how uint8 images are normalised, None for a file with float input.
    """

    def __init__(
        self,
        product: nn.Module,
        shape: tuple[int, ...],
        *,
        integer: bool,
        storage: Storage,
        headroom: int,
        uint8_input: Uint8Input | None = None,
        target: Target = ONNXRUNTIME,
    ) -> None:
        self.module = traced(product)
        if integer:
            require_calibrated(self.module)
        self.results, self.constants = measure_nodes(self.module, shape), constants(self.module)
        self.integer, self.storage, self.headroom = integer, storage, headroom
        self.target, self.coarsened = target, dict[str, None]()
        self.graph = Graph()
        self.images = Value(INPUT if uint8_input is None else normalise_bytes(self.graph, shape, uint8_input))
        self.weights: dict[str, IntegerWeight] = {}
        self.values: dict[fx.Node, Any] = {}
        self.folded: set[fx.Node] = set()
        self.kept_float: dict[str, str] = {}
        self.in_integers: list[str] = []
        self.averaged: dict[str, int] = {}
        self.quantizers = QuantizerMap(self.weights)
        self._calls: Counter[str] = Counter()

    def run(self, handlers: Mapping[str, Handler]) -> Value:
        """Converts every node, with the handler of its operator's name, and returns the network's output.

        Raises ExportError for an operator without a handler, and for a network that does not return one tensor.
        """
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
        raise ExportError(
            f"{type(self.module).__name__}: the network returns nothing; return its logits", key="export.no-output"
        )

    def value(self, argument: Any) -> Any:
        """What an argument of a node stands for: a Value for a tensor, the number itself for a number."""
        return self.values[argument] if isinstance(argument, fx.Node) else argument

    def shape(self, node: Any) -> tuple[int, ...]:
        """The shape of a node's tensor, batch axis first (``BATCH`` images)."""
        return tuple(self.results[node].shape)

    def submodule(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.module.get_submodule(str(node.target))

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a node's result, at once or behind nodes that pass it on unchanged."""
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if self.passes(user) else [user]
        return found

    def passes(self, node: fx.Node) -> bool:
        """Whether a node's result is its input: in evaluation mode, or because the node was folded into a layer."""
        return node in self.folded or (node.op == "call_module" and passes_through(self.submodule(node)))

    def sole_reader(self, node: fx.Node, kinds: tuple[type, ...]) -> fx.Node | None:
        """The only reader of a node's result, if it is a layer of one of these classes."""
        readers = self.readers(node)
        if len(readers) == 1 and readers[0].op == "call_module" and isinstance(self.submodule(readers[0]), kinds):
            return readers[0]
        return None

    def grid_behind(self, node: fx.Node) -> Grid | None:
        """The grid of the only quantizer that reads a node's result, at once or behind nodes that only move values.

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
        """The grid of a quantizer, as the target has it. Raises ExportError for one that the target does not have."""
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
        """Whether a node only moves or picks values or adds zeros, so that a quantizer behind it may act before it."""
        if node.op == "call_module":
            return isinstance(self.submodule(node), modules_where(lambda each: each.moves))
        if node.target is operator.getitem:
            return isinstance(self.results[node.args[0]], torch.Tensor)  # type: ignore[index]
        called = operator_called(node.target) if node.op in ("call_function", "call_method") else None
        if called is OPERATORS["cat"]:
            return len(node.all_input_nodes) == 1
        return called is not None and called.moves

    def _rounded_early(self, node: fx.Node, value: Any) -> Any:
        """A result that is only moved before it is quantized is quantized first, so that integers are moved."""
        if not self.integer or not isinstance(value, Value) or value.grid is not None:
            return value
        readers = self.readers(node)
        grid = self.grid_behind(node) if len(readers) == 1 and self._moves(readers[0]) else None
        return value if grid is None else self.quantize(value, grid)

    def note(self, name: str, reason: str) -> bool:
        """Records that a layer runs in integers (no reason against it) or stays float, and returns true for integers."""
        self._calls[name] += 1
        called = name if self._calls[name] == 1 else f"{name}.call{self._calls[name]}"
        if self.integer and reason:
            self.kept_float[called] = reason
        elif self.integer:
            self.in_integers.append(called)
        return self.integer and not reason

    def quantize(self, value: Value, grid: Grid) -> Value:
        """QuantizeLinear, Clip for fewer than 8 bits, DequantizeLinear; for a symmetric target the Clip comes first."""
        name = value.name
        if grid.clips and self.target.symmetric:
            ends = [self.graph.constant(grid.value(end)) for end in (grid.low, grid.high)]
            name = self.graph.unnamed("Clip", [name, *ends])
        integers = self.graph.unnamed("QuantizeLinear", [name, *self._constants(grid)])
        if grid.clips and not self.target.symmetric:
            ends = [self.graph.constant(grid.integer(end)) for end in (grid.low, grid.high)]
            integers = self.graph.unnamed("Clip", [integers, *ends])
        self.quantizers.rounded(value.name, integers, grid)
        return self.dequantize(integers, grid)

    def _record(self, node: fx.Node, value: Any) -> None:
        if self.integer and node.op == "call_module" and isinstance(self.submodule(node), QUANTIZERS) and value.grid:
            self.quantizers.record(node.name, label(node), value.integers, value.grid)

    def dequantize(self, integers: str, grid: Grid) -> Value:
        """The float form of a tensor of integers."""
        return Value(self.graph.unnamed("DequantizeLinear", [integers, *self._constants(grid)]), grid, integers)

    def move(self, value: Value, kind: str, name: str, *more: str, **attributes: Any) -> Value:
        """A node that only moves or picks values; on a grid the same grid stands behind it too, so integers are moved."""
        moved = self.graph.node(kind, [value.name, *more], name, **attributes)
        return Value(moved) if value.grid is None else self.on_grid_of(value, moved)

    def on_grid_of(self, value: Value, moved: str) -> Value:
        """A float tensor, by name, that holds only values of another one's grid: its integers, and their float form."""
        assert value.grid is not None
        integers = self.graph.unnamed("QuantizeLinear", [moved, *self._constants(value.grid)])
        self.quantizers.moved(value.integers, integers)
        return self.dequantize(integers, value.grid)

    def _constants(self, grid: Grid) -> tuple[str, str]:
        return self.graph.constant(np.float32(grid.scale)), self.graph.constant(grid.integer(grid.zero_point))

    def _handler(self, node: fx.Node, handlers: Mapping[str, Handler]) -> Handler:
        if self.passes(node):
            return _input_unchanged
        if node.op == "call_module":
            operators = list(operators_of_class(type(self.submodule(node))))
        else:
            called = operator_called(node.target)
            operators = [] if called is None or node.target in called.unexported else [called]
        found = next((handlers[each.name] for each in operators if each.name in handlers), None)
        if found is None:
            raise self._no_form(node, handlers)
        return found

    def _constant(self, node: fx.Node) -> Value:
        name = str(node.target) if node.op == "get_attr" else label(node)
        return Value(self.graph.constant(self.constants[node].cpu().float().numpy(), name))

    def _no_form(self, node: fx.Node, handlers: Mapping[str, Handler]) -> ExportError:
        kind = type(self.submodule(node)).__name__ if node.op == "call_module" else target_name(node.target)
        possible = sorted({target_name(each) for name in handlers for each in OPERATORS[name].spellings})
        return ExportError(
            f"{label(node)}: {kind} has no ONNX form here{nearest(kind, possible)}; possible are {', '.join(possible)}",
            key="export.no-onnx-form",
        )

    def _output(self, node: fx.Node) -> Value:
        result = self.value(node.args[0])
        if not isinstance(result, Value) or self.shape(node.args[0])[0] != BATCH:
            raise ExportError(
                f"{type(self.module).__name__}: a deployed model returns one tensor of logits, one row for each image",
                key="export.not-logits",
            )
        return result


def _input_unchanged(converter: Converter, node: fx.Node) -> Any:
    return converter.value(next(argument for argument in node.args if argument not in converter.constants))
