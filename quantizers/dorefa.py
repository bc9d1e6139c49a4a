"""DoReFa: weights through a tanh, activations clipped to a fixed range; the quantizers have no learned parameter."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from qkd.quantizers.fake_quant import FakeQuant, StoredScaleQuant, levels
from qkd.quantizers.odd_grid import odd_levels
from qkd.quantizers.round_to_grid import SMALLEST, at_least_float32, round_to_grid
from qkd.quantizers.scale_search import search_scales
from qkd.quantizers.straight_through import straight_through
from qkd.quantizers.weight_statistics import mean_magnitude, shared_axes


@final
class TanhQuant(FakeQuant):
    """``c * (2 round(n u) / n - 1)``, ``u = tanh(w) / (2 max|tanh w|) + 1/2``, ``n = 2 ** bits - 1``. State: ``gain`` (c).

    At 1 bit ``mean|w| * sign(w)``. The gradient is that of the formula with the rounding passed straight through.
    Source: Zhou et al., DoReFa-Net, arXiv 1606.06160, eq. 7-9. As integers the levels are the odd numbers from -n to n at
    scale c / n. Departures: maximum and mean are taken per output channel unless asked for per layer; c, fixed in calibration,
    keeps the weights as large as they were in float (paper: 1, which is what ``calibration: paper`` gives).
    """

    odd = True
    gain: Tensor

    def __init__(self, bits: int, calibration: str, shape: tuple[int, ...]) -> None:
        super().__init__(bits, *odd_levels(bits), calibration)
        self.shape = shape
        self.register_buffer("gain", torch.ones(shape))

    def fit(self, values: Tensor) -> None:
        """``c`` by least squares, from values (channels, n)."""
        grouped = at_least_float32(values.detach()).reshape(self.gain.numel(), -1)
        unit = grouped.tanh()
        unit = unit / unit.abs().amax(1, keepdim=True).clamp_min(SMALLEST)
        found = (grouped * unit).sum(1) / unit.square().sum(1).clamp_min(SMALLEST)
        if self.calibration != "paper":
            self.gain.copy_(torch.where(found > 0, found, 1.0).reshape(self.gain.shape))
        self.mark_calibrated()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.bits == 1:
            scale = mean_magnitude(x, self.shape)
            return straight_through(x, (torch.where(x >= 0, 1.0, -1.0) * scale).to(x.dtype)), scale
        curved = at_least_float32(x).tanh()
        largest = curved.abs().amax(shared_axes(x, self.shape), keepdim=bool(self.shape))
        unit = curved / largest.clamp_min(SMALLEST)
        scale = (self.gain / self.high).to(curved.dtype)
        integers = 2 * ((unit.detach() + 1) * (self.high / 2)).round_() - self.high
        return straight_through((unit * self.gain).to(x.dtype), (integers * scale).to(x.dtype)), scale


@final
class RangeQuant(StoredScaleQuant):
    """``round(n clip(x / c, 0, 1)) / n * c`` with ``n = 2 ** bits - 1``; gradient 1 inside the range, else 0. State: ``top`` (c).

    Source: Zhou et al., arXiv 1606.06160, eq. 10-11, where c = 1, as with ``calibration: paper``. Departure: otherwise
    calibration chooses c, because in networks whose activations exceed 1 most gradients would die.
    """

    top: Tensor

    def __init__(self, bits: int, calibration: str) -> None:
        super().__init__(bits, *levels(bits, signed=False, narrow=False), integer_bits=bits, calibration=calibration)
        self.register_buffer("top", torch.tensor(1.0))

    def scale(self) -> Tensor:
        return self.top / self.high

    def fit(self, values: Tensor) -> None:
        if self.calibration != "paper":
            found = search_scales(values.reshape(1, -1), self.low, self.high, self.calibration)
            self.top.copy_(found[0] * self.high)
        self.mark_calibrated()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return round_to_grid(x, self.scale(), self.low, self.high, 1.0, compiled=self.compiled)
