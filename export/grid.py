"""What a Brevitas activation quantizer rounds to, as onnxruntime stores it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from qkd.errors import ExportError


@dataclass(frozen=True)
class Grid:
    """The values ``(integer - zero_point) * scale`` for the integers low..high, as uint8, or int8 where ``signed``.

    Signed quantizers are shifted by 128: the values are the same, and onnxruntime's integer kernels need one type
    everywhere (int8 activations are 25 times slower on x86 and stay float where a tensor has two readers).
    """

    scale: np.float32
    zero_point: int
    low: int
    high: int
    signed: bool = False

    @property
    def clips(self) -> bool:
        """Whether saturation to 8 bits alone would not keep the integers in range."""
        ends = np.iinfo(self.kind)
        return self.low > ends.min or self.high < ends.max

    @property
    def kind(self) -> type[np.integer]:
        return np.int8 if self.signed else np.uint8

    def integer(self, number: int) -> np.integer:
        """A number in the type of the grid's integers."""
        return self.kind(number)

    def value(self, integer: int) -> np.float32:
        """The value that an integer stands for."""
        return np.float32(np.float32(integer - self.zero_point) * self.scale)


def is_on(quantizer: Any) -> bool:
    """Whether a Brevitas quantizer is there and rounds."""
    return bool(getattr(quantizer, "is_quant_enabled", False))


def read_grid(quantizer: Any, where: str, *, at_least_zero: bool = False) -> Grid:
    """The grid of an activation quantizer; with ``at_least_zero`` negative values become zero (a ReLU in front of it).

    Raises ExportError, naming ``where``, for one that uint8 cannot hold.
    """
    scale, zero, bits = (
        _scalar(value, where) for value in (quantizer.scale(), quantizer.zero_point(), quantizer.bit_width())
    )
    if not bits.is_integer() or not 1 <= bits <= 8:
        raise ExportError(
            f"{where}: activations of {bits:g} bits; onnxruntime's integer kernels read uint8, so 1 to 8 bits",
            key="export.activation-bits",
        )
    if not np.isfinite(scale) or np.float32(scale) <= 0:
        raise ExportError(
            f"{where}: activation scale is {scale:g}; it has to be positive and finite, calibrate again",
            key="export.activation-scale",
        )
    narrow, signed = bool(quantizer.is_narrow_range), bool(quantizer.is_signed)
    shift = 128 if signed else 0
    low = shift - (2 ** (int(bits) - 1) - int(narrow)) if signed else 0
    high = shift + 2 ** (int(bits) - 1) - 1 if signed else 2 ** int(bits) - 1 - int(narrow)
    zero_point = shift + round(zero)
    if not float(zero).is_integer() or not low <= zero_point <= high:
        raise ExportError(
            f"{where}: zero point {zero:g} is not one of the integers {low - shift} to {high - shift}",
            key="export.zero-point",
        )
    return Grid(np.float32(scale), zero_point, max(low, zero_point) if at_least_zero else low, high)


def _scalar(value: Any, where: str) -> float:
    if value is None or value.numel() != 1:
        found = "none" if value is None else f"{value.numel()} values"
        raise ExportError(
            f"{where}: an activation quantizer needs one scale, zero point and width, found {found}",
            key="export.several-scales",
        )
    return float(value.detach())


def require_calibrated(network: nn.Module) -> None:
    """Raises ExportError naming every quantizer that was never calibrated: it would round with an arbitrary scale."""
    names = [name for name, part in network.named_modules() if _uncalibrated(part)]
    # a quantizer is named by its layer: "layer1.relu.act_quant.fused_..." adds nothing to "layer1.relu"
    layers = dict.fromkeys(re.split(r"\.(?:act|weight|input|output)_quant\b", name)[0] for name in names)
    if layers:
        raise ExportError(
            f"never calibrated: {', '.join(layers)}; calibrate or train the network before export",
            key="export.uncalibrated",
        )


def _uncalibrated(part: nn.Module) -> bool:
    if callable(getattr(part, "is_calibrated", None)):
        return not part.is_calibrated()  # type: ignore[operator]
    return hasattr(part, "collect_stats_steps") and getattr(part, "counter", None) == 0
