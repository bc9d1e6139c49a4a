"""What each runtime requires of a file: types of integers, zero points, biases. The others depart from onnxruntime.

Importable without torch, numpy, onnx and onnxruntime, since the command line takes its choices from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

from qkd.errors import ExportError, UsageError, nearest

if TYPE_CHECKING:
    import numpy as np

    from qkd.export.grid import Grid

Storage = Literal["int8", "packed"]
"""How integer weights are stored: one byte each, or weights of 4 and 2 bits in as many bits."""
Layout = Literal["nchw", "nhwc"]
"""Where the channels of uint8 images are: before the rows, or after the columns."""
InputKind = Literal["float", "uint8"]
"""The images a file takes: normalised float32 images, or uint8 images that it normalises itself."""

SHIFT = 128
"""From a uint8 value to the int8 value that stands for the same number."""
LARGEST = 127


class OpenedFile(Protocol):
    """A file that a runtime has opened."""

    def run(self, outputs: None, feed: Mapping[str, np.ndarray], /) -> list[np.ndarray]:
        """The first output, alone in a list, for inputs by name."""

    def logits(self, name: str, images: np.ndarray, /) -> np.ndarray:
        """Logits (N, classes) for images as the file takes them; ``name`` is that of the file's input."""


@dataclass(frozen=True)
class Runtime:
    """A program beside onnxruntime that runs files on this machine.

    open: opens a file for a number of threads; raises ExportError for a file that it cannot read.
    """

    name: str
    version: str
    open: Callable[[Path, int], OpenedFile]


@dataclass(frozen=True)
class Target:
    """A runtime that files are written for.

    signed: activations are int8, else uint8. symmetric: their zero point is 0, and no operator but QuantizeLinear makes
    integers of them, so that they are clipped and padded as floats. integer_bias: int32 in units of input scale * weight
    scale, else float32. direct: first layers get the channels that onnxruntime's faster kernel needs. packed: the fewest
    bits in which the runtime reads stored weights. joins_one_scale: a concatenation takes tensors of one scale and zero
    point only. runtime: loads the runtime itself, for targets that can run files here; raises ExportError where it is not
    installed.
    """

    name: str
    signed: bool = False
    symmetric: bool = False
    integer_bias: bool = True
    direct: bool = False
    packed: int = 8
    joins_one_scale: bool = False
    runtime: Callable[[], Runtime] | None = None

    @property
    def proven(self) -> bool:
        """Whether the numbers of a file for this target are proven in onnxruntime."""
        return not self.signed

    def grid(self, grid: Grid, where: str) -> Grid:
        """The same numbers as the target's integers; with ``symmetric``, eight unsigned bits become seven: see `coarsened`.

        Raises ExportError, naming ``where``, for a zero point that a symmetric target does not have.
        """
        if not self.signed:
            return grid
        if not self.symmetric or grid.zero_point == SHIFT:
            ends = {name: getattr(grid, name) - SHIFT for name in ("zero_point", "low", "high")}
            return dataclasses.replace(grid, **ends, signed=True)
        if grid.zero_point:
            raise ExportError(
                f"{where}: zero point {grid.zero_point}; {self.name} takes symmetric scales only, so train with family: lsq",
                key="target.zero-point",
            )
        return _from_zero(grid)


def _from_zero(grid: Grid) -> Grid:
    """An unsigned grid as the positive half of a signed one."""
    import numpy as np

    if not coarsened(grid):
        return dataclasses.replace(grid, signed=True)
    return dataclasses.replace(grid, scale=np.float32(grid.scale * grid.high / LARGEST), high=LARGEST, signed=True)


def coarsened(grid: Grid) -> bool:
    """Whether numbers from zero up have more values than the positive half of an int8."""
    return grid.zero_point == 0 and grid.high > LARGEST


def _openvino() -> Runtime:
    from qkd.export.openvino import load_openvino

    return load_openvino()


ONNXRUNTIME = Target("onnxruntime", direct=True, packed=2)
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        each.name: each
        for each in (
            ONNXRUNTIME,
            Target("openvino", direct=True, packed=4, runtime=_openvino),
            Target("tensorrt", signed=True, symmetric=True, integer_bias=False),
            Target("litert", signed=True, joins_one_scale=True),
        )
    }
)
"""openvino reads onnxruntime's file, but no 2-bit tensors.

tensorrt: "both activations and weights are mapped to values centered around zero", zero points have to be zero, biases
stay float. Source: TensorRT documentation, Working with Quantized Types; Explicit Quantization.
litert: int8 activations with any zero point, int8 weights of -127 to 127 for each output channel with zero point 0, int32
biases of input scale * weight scale, one scale for all tensors that a concatenation joins. Source: LiteRT 8-bit
quantization specification.
"""


def target_of(name: str) -> Target:
    """The target of a name. Raises UsageError for a name that no target has."""
    if name not in TARGETS:
        raise UsageError(
            f"target {name!r}: choose one of {', '.join(TARGETS)}{nearest(name, tuple(TARGETS))}", key="target.unknown"
        )
    return TARGETS[name]


def require_bits(target: Target, bits: int, where: str) -> None:
    """Raises ExportError for packed weights of fewer bits than the target reads."""
    if bits < target.packed:
        raise ExportError(
            f"{where}: {target.name} reads no weights stored in {bits} bits; use --storage int8",
            key="target.packed-bits",
        )
