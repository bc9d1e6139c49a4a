"""How finely each integer layer counts: the step of its bias beside the step of its output, and the headroom it used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qkd.export.fold import IntegerWeight, across

COARSE = 0.05
"""Above this share of an output step, rounding the bias moves outputs onto neighbouring codes now and then."""


@dataclass(frozen=True)
class Resolution:
    """One layer. weight_bits: what its trained codes need. headroom: the largest code in the file, of 127.

    factors: smallest and largest number its codes were multiplied with. bias_step: the coarsest channel's unit of the
    bias (input scale * weight scale) over the step of the layer's output, and bias_error: how far rounding moved a bias
    at most, in output steps; both None where the output is not rounded.
    """

    layer: str
    weight_bits: int
    headroom: int
    factors: tuple[int, int]
    bias_step: float | None
    bias_error: float | None

    @property
    def coarse(self) -> bool:
        return self.bias_step is not None and self.bias_step > COARSE

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def resolutions(model: onnx.ModelProto, weights: Mapping[str, IntegerWeight]) -> tuple[Resolution, ...]:
    """One entry for each integer layer of an emitted model, in the order of the graph; ``weights`` by the layers' names."""
    steps = _output_steps(model)
    return tuple(_of(layer, weight, steps.get(layer)) for layer, weight in weights.items())


def _of(layer: str, weight: IntegerWeight, step: float | None) -> Resolution:
    trained = weight.codes.astype(np.int64) // across(weight.factors.astype(np.int64), weight.codes)
    used = weight.bias != 0  # a bias of zero is exact at any step
    coarsest = float(weight.bias_scales[used].max(initial=0))
    return Resolution(
        layer=layer,
        weight_bits=_bits(int(trained.min(initial=0)), int(trained.max(initial=0))),
        headroom=int(np.abs(weight.codes.astype(np.int64)).max(initial=0)),
        factors=(int(weight.factors.min()), int(weight.factors.max())),
        bias_step=None if step is None else coarsest / step,
        bias_error=None if step is None else float(weight.bias_errors.max(initial=0)) / step,
    )


def _bits(low: int, high: int) -> int:
    """The fewest bits whose two's complement holds low..high."""
    return next(bits for bits in range(1, 10) if low >= -(2 ** (bits - 1)) and high <= 2 ** (bits - 1) - 1)


def _output_steps(model: onnx.ModelProto) -> dict[str, float]:
    """The scale of the quantizer directly behind each node that has one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.input[0]: float(numpy_helper.to_array(constants[node.input[1]]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
