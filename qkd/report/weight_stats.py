"""The quantization error of the weights of each layer of the product."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from qkd.errors import QkdError

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.report.run_data import RunData

FLOAT_BITS = 32
QUANTIZED = ("conv", "linear")  # the kinds of layers with quantized weights


class Row(NamedTuple):
    """A layer. ``levels``: those of its weights, where they are of 2 bits. ``error``: ``|w - q| / |w|``; ``ends``, ``zeros``:
    shares of weights on the outermost levels and on zero.

    The last three are 0..1, and None for a layer that stays float.
    """

    name: str
    kind: str
    bits: int
    levels: int | None
    shape: str
    parameters: int
    error: float | None = None
    ends: float | None = None
    zeros: float | None = None


class Weights(NamedTuple):
    """Layers with weights, in the order of the network, and (bits, number) of activation quantizers."""

    rows: list[Row]
    activations: list[tuple[int, int]]


def weights(run_data: RunData, assembly: Assembly) -> Weights | None:
    """The quantization error of the trained weights; None where the product is missing or does not fit the networks."""
    from qkd.quantizers import describe

    product = assembly.product()
    try:
        product.load_state_dict(run_data.run.load_product())
    except (QkdError, RuntimeError, OSError):
        return None
    layers = describe(product.eval())
    weighed = [layer for layer in layers if len(layer.shape) > 1]
    rows = [_row(layer, product.get_submodule(layer.name)) for layer in weighed]
    others = Counter(layer.bits for layer in layers if layer.bits < FLOAT_BITS and layer.kind not in QUANTIZED)
    return Weights(rows, sorted(others.items()))


def _row(layer: Any, module: Any) -> Row:
    shape = "x".join(map(str, layer.shape))
    row = Row(layer.name, layer.kind, layer.bits, None, shape, layer.parameters)
    if not hasattr(module, "quant_weight"):
        return row
    error, ends, zeros = _rounding(module)
    levels = module.weight_quant.tensor_quant.num_levels if layer.bits == 2 else None
    return row._replace(levels=levels, error=error, ends=ends, zeros=zeros)


@torch.no_grad()
def _rounding(module: Any) -> tuple[float, float, float]:
    quantized, core = module.quant_weight(), module.weight_quant.tensor_quant
    levels: Tensor = torch.round(quantized.value / quantized.scale)
    ends = (levels <= core.low) | (levels >= core.high)
    error = (module.weight - quantized.value).norm() / module.weight.norm().clamp_min(1e-12)
    return float(error), float(ends.float().mean()), float((levels == 0).float().mean())
