"""How onnxruntime's integer kernels on x86-64 round: one function for each kernel, every float32 rounding in its place.

Read from the kernels' source and confirmed by equality of every value in the tests. Scales multiply and divide in
float32, in this order, and rounding is half to even. ARM's kernels for sums and global averages round in fixed point
instead, and may differ there by one where a value falls on a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

EXACT = 2**24
"""Up to here every integer is a float32, so sums of products below it are exact in any order."""


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor: ``(integers - zero) * scale``; scale and zero are scalars, or run along axis 0."""

    integers: Tensor
    scale: np.ndarray
    zero: np.ndarray

    def centred(self) -> Tensor:
        """``integers - zero`` as float32, exact."""
        return self.integers.float() - _along_axis_0(self.zero, self.integers.dim())

    @cached_property
    def divisors(self) -> Tensor:
        """For each entry of axis 0 the greatest common divisor of its integers, 1 where all are zero."""
        found = np.gcd.reduce(self.integers.reshape(len(self.integers), -1).to(torch.int64).numpy(), axis=1)
        return torch.from_numpy(np.maximum(found, 1).astype(np.float32))

    def real(self) -> Tensor:
        """The floats that the integers stand for."""
        return self.centred() * _along_axis_0(self.scale, self.integers.dim())


Product = Callable[[Tensor, Tensor], Tensor]
"""Of inputs and weights: a convolution or a matrix product."""
Onto = Callable[[np.float32, int], Tensor]
"""The integers (not yet clamped to uint8) for an output scale and zero point."""


@dataclass(frozen=True)
class Pending:
    """A kernel's result before it is rounded; ``real`` gives floats, where no quantizer reads it."""

    onto: Onto
    real: Callable[[], Tensor]


def accumulated(product: Product, inputs: Quantized, weights: Quantized, bias: Quantized | None) -> Tensor:
    """The int32 accumulator rounded once to float32, as the kernels do before they scale it; output channels on axis 1."""
    x, w = inputs.centred(), weights.centred()
    largest = float(x.abs().max())
    total = exact_product(product, x, w, weights.divisors, largest)
    if bias is None:
        return total.float()
    offset = bias.integers.double().reshape(1, -1, *[1] * (total.dim() - 2))
    if total.dtype == torch.float32 and largest * _reach(w) + float(offset.abs().max()) < EXACT:
        return total + offset.float()
    return (total.double() + offset).float()


def exact_product(product: Product, inputs: Tensor, weights: Tensor, divisors: Tensor, largest: float) -> Tensor:
    """A product of integers held in float32, without any rounding; float64 where float32 cannot hold it.

    inputs reach ``largest``; ``divisors`` divide all weights of a channel and go behind the product. Where sums could
    still pass 2^24, weights are split into two digits, 16 * high + low: twice the work, but half of what float64 costs,
    which is the last resort.
    """
    if largest * _reach(weights) < EXACT:
        return product(inputs, weights)
    behind = divisors.double().reshape(1, -1, *[1] * (weights.dim() - 2))
    small = weights / divisors.reshape(-1, *[1] * (weights.dim() - 1))
    if largest * _reach(small) < EXACT:
        return product(inputs, small).double() * behind
    high = torch.floor(small / 16)
    low = small - 16 * high
    if largest * max(_reach(high), _reach(low)) < EXACT:
        return (16 * product(inputs, high).double() + product(inputs, low).double()) * behind
    return product(inputs.double(), weights.double())


def weighted(total: Tensor, input_scale: np.ndarray, weight_scale: np.ndarray) -> Pending:
    """QLinearConv and QGemm: ``round(float32(sum) * ((s_x * s_w) / s_y)) + zero``."""
    unit = np.asarray(np.float32(input_scale) * weight_scale, np.float32)

    def onto(scale: np.float32, zero: int) -> Tensor:
        return torch.round(total * _along_axis_1((unit / scale).astype(np.float32), total.dim())) + zero

    return Pending(onto, lambda: total * _along_axis_1(unit, total.dim()))


def added(a: Quantized, b: Quantized) -> Pending:
    """QLinearAdd: ratios to the output scale, zero points gathered in one number, then two fused multiply-adds."""

    def onto(scale: np.float32, zero: int) -> Tensor:
        ratio_a, ratio_b = np.float32(a.scale) / scale, np.float32(b.scale) / scale
        fixed = np.float32(zero) - (ratio_a * np.float32(a.zero) + ratio_b * np.float32(b.zero))
        # a product of 8 and 24 bits is exact in float64, so rounding its sum once to float32 is a fused multiply-add
        partial = (b.integers.double() * float(ratio_b) + float(fixed)).float()
        return torch.round((a.integers.double() * float(ratio_a) + partial.double()).float())

    return Pending(onto, lambda: a.real() + b.real())


def multiplied(a: Quantized, b: Quantized) -> Pending:
    """QLinearMul: ``round(float32(product) * (s_a * s_b / s_y) + zero)``."""

    def onto(scale: np.float32, zero: int) -> Tensor:
        ratio = np.float32(np.float32(a.scale) * np.float32(b.scale)) / scale
        return torch.round(a.centred() * b.centred() * float(ratio) + zero)

    return Pending(onto, lambda: a.real() * b.real())


def globally_averaged(x: Quantized) -> Onto:
    """QLinearGlobalAveragePool: ``round(float32(sum) * (s_x / (s_y * float32(pixels)))) + zero``."""
    total = x.centred().double().sum((2, 3), keepdim=True).float()
    pixels = np.float32(x.integers.shape[2] * x.integers.shape[3])

    def onto(scale: np.float32, zero: int) -> Tensor:
        ratio = np.float32(x.scale) / np.float32(scale * pixels)
        return torch.round(total * float(ratio)) + zero

    return onto


def averaged(x: Quantized, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], with_pads: bool) -> Onto:
    """QLinearAveragePool: dequantized, added one by one in float32 along rows, divided, and rounded with the zero point."""
    total = _summed_windows(x.real(), kernel, strides, pads)
    count = torch.tensor(float(kernel[0] * kernel[1]))
    if not with_pads:
        count = _summed_windows(torch.ones_like(x.integers[:1, :1], dtype=torch.float32), kernel, strides, pads)
    return lambda scale, zero: torch.round(total / count / torch.tensor(scale) + zero)


def concatenated(parts: Sequence[Quantized], axis: int) -> Pending:
    """QLinearConcat: integers on the output's grid are copied, others go through a table: ``round(value / s_y) + zero``."""

    def onto(scale: np.float32, zero: int) -> Tensor:
        return torch.cat([_moved(part, scale, zero) for part in parts], axis)

    return Pending(onto, lambda: torch.cat([part.real() for part in parts], axis))


def quantized(values: Tensor, scale: np.float32, zero: int) -> Tensor:
    """QuantizeLinear of floats: divided, not multiplied by the inverse."""
    return torch.round(values / torch.tensor(scale)) + zero


def _moved(part: Quantized, scale: np.float32, zero: int) -> Tensor:
    if np.float32(part.scale) == scale and int(part.zero) == zero:
        return part.integers.float()
    return quantized(part.real(), scale, zero)


def _summed_windows(values: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> Tensor:
    top, left, bottom, right = pads
    padded = F.pad(values, (left, right, top, bottom))
    height = (padded.shape[2] - kernel[0]) // strides[0] + 1
    width = (padded.shape[3] - kernel[1]) // strides[1] + 1
    total = torch.zeros(*values.shape[:2], height, width)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            rows = slice(row, row + (height - 1) * strides[0] + 1, strides[0])
            columns = slice(column, column + (width - 1) * strides[1] + 1, strides[1])
            total = total + padded[:, :, rows, columns]
    return total


def _reach(weights: Tensor) -> float:
    return float(weights.abs().reshape(len(weights), -1).double().sum(1).max())


def _along_axis_0(values: np.ndarray, axes: int) -> Tensor:
    tensor = torch.from_numpy(np.asarray(values, np.float32))
    return tensor.reshape(-1, *[1] * (axes - 1)) if tensor.dim() and axes else tensor.reshape(())


def _along_axis_1(values: np.ndarray, axes: int) -> Tensor:
    tensor = torch.from_numpy(np.asarray(values, np.float32))
    return tensor.reshape(1, -1, *[1] * (axes - 2)) if tensor.dim() else tensor
