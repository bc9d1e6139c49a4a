"""The abstract core of every quantizer: a module from a tensor to ``(dequantized, scale, zero point, bit width)``.

Brevitas' proxies call it in this form; the layers of this package take the short way, ``value``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qkd.errors import SchemeError

Quantized = tuple[Tensor, Tensor, Tensor, Tensor]


def levels(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """The lowest and highest integer of a grid with zero point 0; narrow leaves out ``-2 ** (bits - 1)``.

    Raises SchemeError for one signed bit.
    """
    if not signed:
        return 0, 2**bits - 1
    top = 2 ** (bits - 1) - 1
    if top == 0:
        raise SchemeError(
            "1 bit: a signed grid around zero has one level, zero itself; take 2 bits or more",
            key="scheme.one-signed-bit",
        )
    return (-top if narrow else -top - 1), top


class FakeQuant(nn.Module, ABC):
    """The core of a quantizer: bits, integer range, and whether it has been calibrated (kept in the state dict).

    Args:
        bits: bits of the scheme.
        low, high: the lowest and the highest integer of the grid.
        integer_bits: bits that hold every integer from low to high.
        calibration: how the scale is chosen from data, see `scale_search`.
    """

    calibrated: Tensor
    zero_point: Tensor
    bit_width: Tensor
    odd: bool = False
    """Whether only the odd integers from low to high are levels, so that none of them is zero."""

    def __init__(self, bits: int, low: int, high: int, integer_bits: int, calibration: str) -> None:
        super().__init__()
        self.bits, self.low, self.high, self.calibration = bits, low, high, calibration
        self.name = ""
        self.compiled = False
        self.bit_schedule: tuple[int, ...] = ()  # see qkd.quantizers.progressive
        self._ready = False
        self.register_buffer("calibrated", torch.tensor(False))
        self.register_buffer("zero_point", torch.tensor(0.0), persistent=False)
        self.register_buffer("bit_width", torch.tensor(float(integer_bits)), persistent=False)

    @property
    def num_levels(self) -> int:
        """How many levels the grid has."""
        return (self.high - self.low) // (2 if self.odd else 1) + 1

    @abstractmethod
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` on the grid, with the quantizer's gradient, and the positive distance between neighbouring integers."""

    @abstractmethod
    def fit(self, values: Tensor) -> None:
        """Choose the scale from values (channels, n) and mark the quantizer as calibrated."""

    def zero(self) -> Tensor:
        """The integer that stands for 0."""
        return self.zero_point

    def forward(self, x: Tensor) -> Quantized:
        self.require_calibration()
        value, scale = self.quantize(x)
        return value, scale, self.zero(), self.bit_width

    def value(self, x: Tensor) -> Tensor:
        """``x`` on the grid, and nothing else: the short way of layers, which call it for every batch."""
        if not self._ready:
            self.require_calibration()
        return self.quantize(x)[0]

    def mark_calibrated(self) -> None:
        self.calibrated.fill_(True)
        self._ready = True

    def is_calibrated(self) -> bool:
        """Whether the scale was chosen from data; reads the device only until it is true."""
        self._ready = self._ready or bool(self.calibrated)
        return self._ready

    def require_calibration(self) -> None:
        """Raises SchemeError if the scale was never chosen from data."""
        if not self._ready and not self.is_calibrated():
            raise SchemeError(
                f"quantizer {self.name or type(self).__name__} was never calibrated: call "
                f"qkd.quantizers.calibrate(network, batches), or run inside `with qkd.quantizers.disabled(network):`",
                key="quantizer.not-calibrated",
            )

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        self._ready = bool(self.calibrated)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, low={self.low}, high={self.high}"


class StoredScaleQuant(FakeQuant, ABC):
    """A core whose scale does not depend on its input: what activations need, since a file holds one scale for each."""

    @abstractmethod
    def scale(self) -> Tensor:
        """The positive distance between neighbouring integers, as it is now; detached."""


def cores_of(module: nn.Module) -> Iterator[FakeQuant]:
    """The core of every quantizer inside a module, in the order of its submodules."""
    return (core for core in module.modules() if isinstance(core, FakeQuant))
