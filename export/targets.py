"""What a runtime asks of a file: types of codes, zero points, biases. onnxruntime is the one the others depart from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from qkd.errors import ExportError, UsageError, nearest
from qkd.export.grid import Grid

SHIFT = 128
"""From the code of a uint8 to that of the int8 that stands for the same number."""
LARGEST = 127


@dataclass(frozen=True)
class Target:
    """A runtime that files are written for.

    signed: activations are int8, else uint8. symmetric: their zero point is 0, and nothing but QuantizeLinear makes
    integers of them, so that they are clipped and padded as floats. integer_bias: int32 in units of input scale * weight
    scale, else float32. direct: first layers get the channels onnxruntime's faster kernel wants. packed: the fewest bits
    in which the runtime reads stored weights.
    """

    name: str
    signed: bool = False
    symmetric: bool = False
    integer_bias: bool = True
    direct: bool = False
    packed: int = 8

    @property
    def proven(self) -> bool:
        """Whether a file for it is the one whose numbers are proven in onnxruntime."""
        return not self.signed

    def grid(self, grid: Grid, where: str) -> Grid:
        """The same numbers as the target's codes; with ``symmetric``, eight unsigned bits become seven: see `coarsened`.

        Raises ExportError, naming ``where``, for a zero point that a symmetric target does not have.
        """
        if not self.signed:
            return grid
        if not self.symmetric or grid.zero_point == SHIFT:
            ends = {name: getattr(grid, name) - SHIFT for name in ("zero_point", "low", "high")}
            return dataclasses.replace(grid, **ends, signed=True)
        if grid.zero_point:
            raise ExportError(
                f"{where}: zero point {grid.zero_point}; {self.name} takes symmetric scales only, so train with family: lsq"
            )
        scale, high = (
            (np.float32(grid.scale * grid.high / LARGEST), LARGEST) if coarsened(grid) else (grid.scale, grid.high)
        )
        return Grid(scale, 0, grid.low, high, signed=True)


def coarsened(grid: Grid) -> bool:
    """Whether numbers from zero up have more codes than the positive half of an int8."""
    return grid.zero_point == 0 and grid.high > LARGEST


ONNXRUNTIME = Target("onnxruntime", direct=True, packed=2)
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        each.name: each
        for each in (
            ONNXRUNTIME,
            Target("openvino", direct=True, packed=4),
            Target("tensorrt", signed=True, symmetric=True, integer_bias=False),
            Target("litert", signed=True),
        )
    }
)
"""openvino reads onnxruntime's file, but no 2-bit tensors.

tensorrt: "both activations and weights are mapped to values centered around zero", zero points have to be zero, biases
stay float. Source: TensorRT documentation, Working with Quantized Types; Explicit Quantization.
litert: int8 activations with any zero point, int8 weights of -127 to 127 for each output channel with zero point 0, int32
biases of input scale * weight scale, one scale for all a concatenation joins. Source: LiteRT 8-bit quantization
specification.
"""


def target_of(name: str) -> Target:
    if name not in TARGETS:
        raise UsageError(f"target {name!r}: choose one of {', '.join(TARGETS)}{nearest(name, tuple(TARGETS))}")
    return TARGETS[name]


def require_bits(target: Target, bits: int, where: str) -> None:
    """Raises ExportError for packed weights of fewer bits than the target reads."""
    if bits < target.packed:
        raise ExportError(f"{where}: {target.name} reads no weights stored in {bits} bits; use --storage int8")
