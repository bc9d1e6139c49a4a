"""The calibration methods: scales chosen from observed values, as pure functions of a (channels, values) tensor.

A scale is here the distance of neighbouring levels, which are ``low, low + 1, ..., high`` times it; the two ends are integers,
or halves of odd integers for a mid-rise grid (see `round_to_grid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from qkd.quantizers.round_to_grid import SMALLEST, at_least_float32, has_zero, nearest_level

Calibration = Literal["mse", "lsq", "minmax", "percentile", "paper"]
"""The methods a scheme may name; ``paper`` is that of the family's paper."""
SAMPLE = 1024
"""Values per channel that the error search uses; the rest of a large layer changes its minimum by noise."""
BINS = 4096
"""Bins of the histogram that stands for the values of a single channel."""
PERCENTILE = 0.9999
"""Share of the magnitudes that ``percentile`` does not clip."""


def mse(values: Tensor, low: float, high: float) -> Tensor:
    """Scales (channels,) that minimise the mean squared rounding error, by a coarse and then a fine search."""
    values, counts = _reduced(values)
    most = values.abs().amax(1) / high
    coarse = torch.linspace(1 / 64, 1, 64)
    best = _best(values, counts, most, coarse.expand(len(values), -1), low, high)
    fine = best[:, None] + torch.linspace(-1 / 64, 1 / 64, 17)
    return most * _best(values, counts, most, fine.clamp_min(1 / 256), low, high)


def _best(values: Tensor, counts: Tensor | None, most: Tensor, fractions: Tensor, low: float, high: float) -> Tensor:
    """Of the fractions (channels, n) of the largest scale, that with the least squared error; (channels,)."""
    errors = []
    for fraction in fractions.unbind(1):
        scale = (most * fraction.to(most)).clamp_min(torch.finfo(most.dtype).tiny)[:, None]
        error = (nearest_level(values / scale, low, high, has_zero(low)).mul_(scale) - values).square_()
        errors.append((error if counts is None else error * counts).sum(1))
    return fractions.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True).cpu())[:, 0].to(most)


def _reduced(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Few values that stand for many, and their weights: a histogram of one channel, a random sample of columns of several."""
    channels, count = values.shape
    if channels == 1 and count > BINS:
        bottom, top = values.min().item(), values.max().item()
        if bottom == top:
            return values[:, :1], None
        counts = torch.histc(values[0], BINS, bottom, top)
        centres = torch.linspace(bottom, top, 2 * BINS + 1, dtype=values.dtype, device=values.device)[1::2]
        return centres[None], counts[None]
    if count > SAMPLE:
        chosen = torch.randint(count, (SAMPLE,), generator=torch.Generator().manual_seed(0))
        return values[:, chosen.to(values.device)], None
    return values, None


def lsq(values: Tensor, low: float, high: float) -> Tensor:
    """``2 * mean|x| / sqrt(high)``. Source: Esser et al., ICLR 2020, section 2.1."""
    return 2 * values.abs().mean(1) / math.sqrt(high)


def minmax(values: Tensor, low: float, high: float) -> Tensor:
    """The largest magnitude lies on the last level: nothing is clipped."""
    return values.abs().amax(1) / high


def percentile(values: Tensor, low: float, high: float) -> Tensor:
    """One magnitude in ten thousand is clipped."""
    ordered = values.abs().sort(1).values
    return ordered[:, math.ceil(PERCENTILE * (values.shape[1] - 1))] / high


def sigmas(values: Tensor, low: float, high: float) -> Tensor:
    """``max(|mean - 3 std|, |mean + 3 std|) / -low``. Source: Bhalgat et al., LSQ+, section 3.3; low as without narrow range."""
    return (values.mean(1).abs() + 3 * values.std(1, correction=0)) / (int(high) + 1)


def search_scale_and_offset(values: Tensor, intervals: int, method: str) -> tuple[Tensor, Tensor]:
    """Scale and lowest value (both 0-d) of a grid of ``intervals`` equal intervals for values (n,); the grid reaches zero.

    minmax takes the extremes, percentile leaves out one in ten thousand on both sides; mse, lsq and paper (LSQ+ section 3.3)
    search for the two ends with the least squared error. All zeros give a scale of ordinary size.
    """
    values = at_least_float32(values.detach())
    if not values.any():
        return torch.tensor(1 / intervals), torch.tensor(0.0)
    bottom, top = values.min().clamp_max(0), values.max().clamp_min(0)
    if method == "percentile":
        ordered = values.sort().values
        cut = int((1 - PERCENTILE) * (len(values) - 1))
        bottom, top = ordered[cut].clamp_max(0), ordered[-1 - cut].clamp_min(0)
    if method in ("mse", "lsq", "paper"):
        bottom, top = _best_ends(values[None], bottom, top, intervals)
    return (top - bottom).clamp_min(torch.finfo(values.dtype).tiny) / intervals, bottom


def _best_ends(values: Tensor, bottom: Tensor, top: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """Both ends of the grid: the shares of the two extremes with the least error, searched alternately three times."""
    sample, counts = _reduced(values)
    weights = torch.ones_like(sample) if counts is None else counts

    def error(ends: tuple[float, float]) -> float:
        scale = ((top * ends[1] - bottom * ends[0]) / intervals).clamp_min(torch.finfo(sample.dtype).tiny)
        zero = (-bottom * ends[0] / scale).round()
        rounded = ((sample / scale).round() + zero).clamp_(0, intervals).sub_(zero).mul_(scale)
        return float(((rounded - sample).square_() * weights).sum())

    shares = [index / 32 for index in range(2, 34)]
    best = (1.0, 1.0)
    for _ in range(3):
        best = min(((share, best[1]) for share in shares), key=error)
        best = min(((best[0], share) for share in shares), key=error)
    return bottom * best[0], top * best[1]


METHODS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "mse": mse,
    "lsq": lsq,
    "minmax": minmax,
    "percentile": percentile,
    "paper": lsq,
    "sigmas": sigmas,
}
"""By the names in `Calibration`; and ``sigmas``, which is ``paper`` for the weights of LSQ+."""


def search_scales(values: Tensor, low: float, high: float, method: str) -> Tensor:
    """Positive scales (channels,) for values (channels, n), by a method of `METHODS`.

    A channel that is zero everywhere has no scale of its own: it gets the median of the others, or ``1 / high``
    where all are zero, so that an exporter finds a number of ordinary size. Where no level is zero and other channels are not
    zero, it gets the smallest scale: with any other its weights would no longer be near zero.
    """
    values = at_least_float32(values.detach())
    found = METHODS[method](values, low, high)
    alive = values.abs().amax(1) > 0
    ordinary = found[alive].median() if alive.any() else torch.tensor(1 / high)
    if alive.any() and not has_zero(low):
        ordinary = torch.tensor(SMALLEST)
    return torch.where(alive, found, ordinary.to(found))
