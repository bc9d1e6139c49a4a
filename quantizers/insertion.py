"""Insertion of quantizers into a float network: Brevitas layers, and a quantizer on every tensor that an integer kernel
reads or writes.
"""

from __future__ import annotations

import fnmatch
import operator
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from qkd.errors import SchemeError, nearest
from qkd.networks.batch_norm import copied_module
from qkd.networks.tracing import trace, where_from
from qkd.quantizers.exact import fold_batch_norms, prepare_bias_rounding
from qkd.quantizers.fake_quant import cores_of
from qkd.quantizers.fused_batch_norm import pair_batch_norms
from qkd.quantizers.hessian import prepare_deltas
from qkd.quantizers.layers import identity_quantizer, quantized_layer, relu_quantizer
from qkd.quantizers.node_kinds import ends, function_name, kinds, never_negative, readers
from qkd.quantizers.operators import Kind
from qkd.quantizers.progressive import prepare_bit_schedule
from qkd.quantizers.scheme import Scheme, bits_of

_PLAIN = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
}


def insert(network: nn.Module, scheme: Scheme) -> fx.GraphModule:
    """A quantized copy of a float network as one graph; the network itself stays as it is.

    * Conv and linear layers become Brevitas layers with the same names and weights. Batch norm stays behind them.
    * Every call of a ReLU or ReLU6 becomes its own quantizer; a module called twice keeps its name for the first call.
    * Every other tensor that a layer, an addition, a concatenation or a pool reads gets a quantizer where it is made:
      the network's input, conv + batch norm without a ReLU, the results of additions, products, concatenations, pools.
      What only moves or drops values (flatten, slices, chunks, clones, padding with zeros, dropout, max pools) passes the
      grid of its input on. The logits get none.
    * Bits: a tensor that feeds a layer takes that layer's activation bits, a tensor that feeds none takes
      ``scheme.sums``. First and last layers (those no layer comes before or after) take ``first`` and ``last``.
    * In-place additions become plain ones, because the tensor they would overwrite is still needed.

    Other activation functions (Hardswish, SiLU, ...) read and write grids too, though most have no integer kernel and are
    computed in float between them. Unknown operators stay float (softmax, functional convolutions, layers of other
    classes), with quantized neighbours. So does a batch norm that does not follow a layer directly, as in DenseNet: what
    it reads is quantized, and so is the ReLU behind it. Quantizers raise SchemeError until they are calibrated; call
    `calibrate`.

    Raises NetworkError where the network cannot be traced, SchemeError where the scheme does not fit it.
    """
    if any(True for _ in cores_of(network)):
        raise SchemeError(
            f"{type(network).__name__} is already quantized; insert takes the float network",
            key="scheme.already-quantized",
        )
    own = copied_module(network)
    module = own if isinstance(own, fx.GraphModule) else trace(own)
    if scheme.exact:
        fold_batch_norms(module)
    _Insertion(module, scheme).run()
    prepare_bit_schedule(module, scheme.progressive)
    prepare_deltas(module, scheme.delta)
    pair_batch_norms(module)
    _move_quantizers(module, next(network.parameters(), None))
    module.graph.lint()
    module.recompile()
    return module


class _Insertion:
    """The state of one insertion: what the graph is like before it is changed, and the names in use."""

    def __init__(self, module: fx.GraphModule, scheme: Scheme) -> None:
        self.module, self.scheme = module, scheme
        self.kind: dict[fx.Node, Kind] = kinds(module)
        self.positive = never_negative(module)
        self.first, self.last = ends(module.graph.nodes, self.kind)
        self.layers = [node for node in module.graph.nodes if self.kind[node] == "layer"]
        self.overrides = self._overrides()
        self.calls: dict[str, int] = defaultdict(int)

    def run(self) -> None:
        wanted = {node: self._bits(node) for node in self.module.graph.nodes}
        for node, bits in wanted.items():
            kind = self.kind[node]
            if kind == "relu":
                self._replace_relu(node, bits or self.scheme.sums)
            elif kind in ("input", "layer", "norm", "curve", "add", "cat", "pool", "other") and bits:
                self._quantize(node, bits)
        self._swap_layers()
        if self.scheme.exact:
            prepare_bias_rounding(self.module, self.layers, dict(self.kind))
        _forbid_overwriting(self.module)

    def _overrides(self) -> dict[str, tuple[int, int]]:
        names = [str(node.target) for node in self.layers]
        found: dict[str, tuple[int, int]] = {}
        for pattern, shorthand in self.scheme.overrides.items():
            matches = fnmatch.filter(names, pattern)
            if not matches:
                near = nearest_layer(pattern, names)
                raise SchemeError(
                    f"overrides: no layer is called {pattern!r}{near}; layers are {', '.join(names)}",
                    key="scheme.no-such-layer",
                )
            found |= dict.fromkeys(matches, bits_of(shorthand))
        return found

    def _bits_of_layer(self, node: fx.Node) -> tuple[int, int]:
        """Bits of the weights and of the input."""
        if str(node.target) in self.overrides:
            return self.overrides[str(node.target)]
        for group, bits in ((self.first, self.scheme.first), (self.last, self.scheme.last)):
            if node in group:
                return bits, bits
        return self.scheme.weights, self.scheme.activations

    def _bits(self, node: fx.Node) -> int | None:
        """Bits of a tensor, or None where no node reads it on a grid."""
        reading = list(readers(node, self.kind))
        of_layers = [self._bits_of_layer(reader)[1] for reader in reading if self.kind[reader] == "layer"]
        return min(of_layers) if of_layers else self.scheme.sums if reading else None

    def _swap_layers(self) -> None:
        for path in dict.fromkeys(str(node.target) for node in self.layers):
            bits = min(self._bits_of_layer(node)[0] for node in self.layers if node.target == path)
            made = quantized_layer(self.module.get_submodule(path), bits, self.scheme)
            made.weight_quant.tensor_quant.name = path  # type: ignore[union-attr]
            self.module.set_submodule(path, made)

    def _replace_relu(self, node: fx.Node, bits: int) -> None:
        six = "6" in function_name(node)
        if node.op == "call_module":
            old = str(node.target)
            six = isinstance(self.module.get_submodule(old), nn.ReLU6)
            self.calls[old] += 1
            path = old if self.calls[old] == 1 else self._free(f"{old}_{self.calls[old] - 1}")
        else:
            path = self._free(_join(_scope(node), "relu"))
        self.module.add_submodule(path, relu_quantizer(path, bits, self.scheme, six).train(self.module.training))
        node.args, node.kwargs = (node.all_input_nodes[0],), {}
        node.op, node.target = "call_module", path

    def _quantize(self, node: fx.Node, bits: int) -> None:
        name = (
            str(node.target) if node.op in ("call_module", "placeholder") else _join(_scope(node), function_name(node))
        )
        path = self._free(f"{name}_quant")
        made = identity_quantizer(path, bits, self.scheme, signed=node not in self.positive)
        self.module.add_submodule(path, made.train(self.module.training))
        with self.module.graph.inserting_after(node):
            new = self.module.graph.call_module(path, (node,))
        new.meta = dict(node.meta)  # the same module paths: a cut behind this module is a cut behind its quantizer
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)

    def _free(self, path: str) -> str:
        """The path itself, or with the first number that makes it unused."""
        parent, _, leaf = path.rpartition(".")
        try:
            home: nn.Module = self.module.get_submodule(parent)
        except AttributeError:
            return path
        number, name = 0, leaf
        while hasattr(home, name):
            number += 1
            name = f"{leaf}_{number}"
        return _join(parent, name)


def _move_quantizers(module: nn.Module, like: Tensor | None) -> None:
    """Move quantizers to the device of the network's parameters; in float64 if they are, else in float32."""
    if like is not None:
        for core in cores_of(module):
            core.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


def _forbid_overwriting(module: fx.GraphModule) -> None:
    """Replace in-place operations: what they would overwrite is a quantizer's output, needed for its gradient."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    for node in module.graph.nodes:
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_function" and node.target in _PLAIN:
            node.target = _PLAIN[node.target]
        if node.op == "call_method" and node.target in ("add_", "mul_", "sub_", "div_"):
            node.target = node.target.rstrip("_")


def nearest_layer(pattern: str, names: Sequence[str]) -> str:
    """The suggestion for a pattern that matches no layer: a layer, or a group of layers (``layer1.*``)."""
    groups = [f"{'.'.join(words[:i])}.*" for words in map(_words, names) for i in range(1, len(words))]
    return nearest(pattern, [*names, *dict.fromkeys(groups)])


def _words(path: str) -> list[str]:
    return path.split(".")


def _scope(node: fx.Node) -> str:
    inside = where_from(node)
    return inside[-1] if inside else ""


def _join(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name
