"""The resolution of each integer layer: the unit of its bias beside the scale of its output, and the headroom it used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qkd.export.codes import narrowest
from qkd.export.fold import IntegerWeight, across

COARSE = 0.05
"""Above this share of the output's scale, rounding the bias moves outputs onto neighbouring integers now and then."""


@dataclass(frozen=True)
class Resolution:
    """One layer.

    weight_bits: what the codes of its trained integers need (see `codes`). weight_levels: how many codes occur, None beyond 2
    bits. headroom: the largest integer weight in the file, of 127. factors: smallest and largest number that its integers
    were multiplied by. bias_step: the coarsest channel's unit of the bias
    (input scale * weight scale) over the scale of the layer's output, and bias_error: how far rounding moved a bias at
    most, in units of that scale; both None where the output is not rounded. The names are the keys of ``export.json``.
    """

    layer: str
    weight_bits: int
    weight_levels: int | None
    headroom: int
    factors: tuple[int, int]
    bias_step: float | None
    bias_error: float | None

    @property
    def coarse(self) -> bool:
        """Whether rounding the bias may change outputs."""
        return self.bias_step is not None and self.bias_step > COARSE

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return dataclasses.asdict(self)


def resolutions(model: onnx.ModelProto, weights: Mapping[str, IntegerWeight]) -> tuple[Resolution, ...]:
    """One entry for each integer layer of an exported model, in the order of the graph; ``weights`` by the layers' names."""
    scales = _output_scales(model)
    return tuple(_of(layer, weight, scales.get(layer)) for layer, weight in weights.items())


def _of(layer: str, weight: IntegerWeight, scale: float | None) -> Resolution:
    trained = weight.integers.astype(np.int64) // across(weight.factors.astype(np.int64), weight.integers)
    bits, codes = narrowest(trained)
    used = weight.bias != 0  # a bias of zero is exact at any scale
    coarsest = float(weight.bias_scales[used].max(initial=0))
    return Resolution(
        layer=layer,
        weight_bits=bits,
        weight_levels=len(np.unique(codes.numbers)) if bits <= 2 else None,
        headroom=int(np.abs(weight.integers.astype(np.int64)).max(initial=0)),
        factors=(int(weight.factors.min()), int(weight.factors.max())),
        bias_step=None if scale is None else coarsest / scale,
        bias_error=None if scale is None else float(weight.bias_errors.max(initial=0)) / scale,
    )


def _output_scales(model: onnx.ModelProto) -> dict[str, float]:
    """The scale of the quantizer directly behind each node that has one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.input[0]: float(numpy_helper.to_array(constants[node.input[1]]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
