"""Bit-exact networks: their fake-quantized numbers are those of the integer kernels, to the last bit.

With scales that are powers of two every product and sum of quantized values is exact in float32 as it is in int32, and so
is every change of scale. Two things would still round: a batch norm folded into scales at export, and a bias in whole units
of input scale times weight scale. So the batch norm is folded into the weights before they are first rounded, and the bias
is rounded here as in the file. What it costs is in EXPERIMENTS.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from qkd.errors import SchemeError
from qkd.quantizers.node_kinds import folded, kinds

HEADROOM = 63
"""Largest integer that weights may be multiplied up to at export (its headroom), which makes a unit of the bias finer."""


@torch.no_grad()
def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold every batch norm of a traced float network into the layer before it, as in evaluation mode.

    Raises SchemeError, naming it, for a batch norm that is not directly behind a layer of its own.
    """
    kind = kinds(module)
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in [node for node in module.graph.nodes if kind[node] == "norm"]:
        source = node.all_input_nodes[0]
        if not folded(node, kind) or calls.count(str(source.target)) > 1 or calls.count(str(node.target)) > 1:
            raise SchemeError(
                f"exact: batch norm {node.target} has no layer of its own directly before it to be folded into; leave "
                f"exact out for this network",
                key="exact.batch-norm-without-layer",
            )
        _fold(module.get_submodule(str(source.target)), module.get_submodule(str(node.target)))
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        module.delete_submodule(str(node.target))


def _fold(layer: Any, norm: Any) -> None:
    weight = layer.weight.double()
    gain = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    offset = bias * gain + (0 if norm.bias is None else norm.bias.double())
    layer.weight.copy_(weight * gain.reshape(-1, *[1] * (weight.ndim - 1)))
    layer.bias = nn.Parameter(offset.to(layer.weight.dtype))


def prepare_bias_rounding(module: fx.GraphModule, layers: list[fx.Node], kind: dict[fx.Node, str]) -> None:
    """Give every layer of a quantized graph the core that rounds its input, so that it can round its bias (`round_bias`).

    Raises SchemeError for a layer whose input has no quantizer, or that is called on tensors of two quantizers.
    """
    for node in layers:
        core = _core_before(module, node.all_input_nodes[0], kind)
        layer: Any = module.get_submodule(str(node.target))
        if core is None:
            raise SchemeError(
                f"exact: {node.target} reads a tensor without a quantizer; leave exact out for this network",
                key="exact.input-without-quantizer",
            )
        if layer.input_core and layer.input_core[0] is not core:
            raise SchemeError(
                f"exact: {node.target} is called on tensors of two scales; leave exact out for this network",
                key="exact.input-of-two-scales",
            )
        layer.input_core = (core,)


def _core_before(module: fx.GraphModule, node: fx.Node, kind: dict[fx.Node, str]) -> Any:
    """The core whose grid a tensor lies on, found behind operators that only move or pick its elements; None without one."""
    while kind.get(node) in ("pass", "max"):
        node = node.all_input_nodes[0]
    quantizer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return getattr(getattr(quantizer, "act_quant", None), "core", None)


def round_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor, largest: int) -> Tensor:
    """The bias in whole units of the file; the gradient passes straight through.

    The integers of the weights, up to ``largest``, are multiplied by the largest power of two that stays in ``HEADROOM``.
    """
    multiplier = 2 ** max((HEADROOM // largest).bit_length() - 1, 0)
    unit = input_scale.detach() * weight_scale.detach().reshape(-1) / multiplier
    return bias + ((bias / unit).round() * unit - bias).detach()
