"""Choosing a step from observed values: the calibration methods, pure functions of a (channels, values) tensor."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SAMPLE = 1024
"""Values per channel the error search looks at; the rest of a large layer changes its minimum by noise."""
BINS = 4096
PERCENTILE = 0.9999


def mse(values: Tensor, low: int, high: int) -> Tensor:
    """Steps (channels,) that minimise the mean squared rounding error, by a coarse and then a fine search."""
    values, counts = _reduced(values)
    most = values.abs().amax(1) / high
    coarse = torch.linspace(1 / 64, 1, 64)
    best = _best(values, counts, most, coarse.expand(len(values), -1), low, high)
    fine = best[:, None] + torch.linspace(-1 / 64, 1 / 64, 17)
    return most * _best(values, counts, most, fine.clamp_min(1 / 256), low, high)


def _best(values: Tensor, counts: Tensor | None, most: Tensor, fractions: Tensor, low: int, high: int) -> Tensor:
    errors = []
    for fraction in fractions.unbind(1):
        step = (most * fraction.to(most)).clamp_min(torch.finfo(most.dtype).tiny)[:, None]
        error = ((values / step).round_().clamp_(low, high).mul_(step) - values).square_()
        errors.append((error if counts is None else error * counts).sum(1))
    return fractions.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True).cpu())[:, 0].to(most)


def _reduced(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Few values that stand for many: a histogram of a single channel, a random draw from the columns of several."""
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


def lsq(values: Tensor, low: int, high: int) -> Tensor:
    """``2 * mean|x| / sqrt(high)``. Source: Esser et al., ICLR 2020, section 2.1."""
    return 2 * values.abs().mean(1) / math.sqrt(high)


def minmax(values: Tensor, low: int, high: int) -> Tensor:
    """The largest magnitude lies on the last level: nothing is clipped."""
    return values.abs().amax(1) / high


def percentile(values: Tensor, low: int, high: int) -> Tensor:
    """One magnitude in ten thousand is clipped."""
    ordered = values.abs().sort(1).values
    return ordered[:, math.ceil(PERCENTILE * (values.shape[1] - 1))] / high


def sigmas(values: Tensor, low: int, high: int) -> Tensor:
    """``max(|mean - 3 std|, |mean + 3 std|) / -low``. Source: Bhalgat et al., LSQ+, section 3.3; low as without narrow range."""
    return (values.mean(1).abs() + 3 * values.std(1, correction=0)) / (high + 1)


def offsets(values: Tensor, levels: int, method: str) -> tuple[Tensor, Tensor]:
    """Step and lowest value of a grid of ``levels`` steps for values (n,), a whole number of steps around zero.

    minmax takes the extremes, percentile leaves out one in ten thousand on both sides; mse, lsq and paper (LSQ+ section 3.3)
    search for the two ends with the least squared error. All zeros give a step of ordinary size.
    """
    values = values.detach().float() if values.dtype != torch.float64 else values.detach()
    if not values.any():
        return torch.tensor(1 / levels), torch.tensor(0.0)
    bottom, top = values.min().clamp_max(0), values.max().clamp_min(0)
    if method == "percentile":
        ordered = values.sort().values
        cut = int((1 - PERCENTILE) * (len(values) - 1))
        bottom, top = ordered[cut].clamp_max(0), ordered[-1 - cut].clamp_min(0)
    if method in ("mse", "lsq", "paper"):
        bottom, top = _best_ends(values[None], bottom, top, levels)
    return (top - bottom).clamp_min(torch.finfo(values.dtype).tiny) / levels, bottom


def _best_ends(values: Tensor, bottom: Tensor, top: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Shares of both extremes, in turns until none is better."""
    seen, counts = _reduced(values)
    weights = torch.ones_like(seen) if counts is None else counts

    def error(ends: tuple[float, float]) -> float:
        step = ((top * ends[1] - bottom * ends[0]) / levels).clamp_min(torch.finfo(seen.dtype).tiny)
        zero = (-bottom * ends[0] / step).round()
        rounded = ((seen / step).round() + zero).clamp_(0, levels).sub_(zero).mul_(step)
        return float(((rounded - seen).square_() * weights).sum())

    shares = [index / 32 for index in range(2, 34)]
    best = (1.0, 1.0)
    for _ in range(3):
        best = min(((share, best[1]) for share in shares), key=error)
        best = min(((best[0], share) for share in shares), key=error)
    return bottom * best[0], top * best[1]


METHODS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "mse": mse,
    "lsq": lsq,
    "minmax": minmax,
    "percentile": percentile,
    "paper": lsq,
    "sigmas": sigmas,
}


def steps(values: Tensor, low: int, high: int, method: str) -> Tensor:
    """Positive steps (channels,) for values (channels, n).

    A channel that is zero everywhere has no scale of its own: it gets the median of the others, or ``1 / high``
    where all are zero, so that an exporter finds a number of ordinary size.
    """
    values = values.detach().float() if values.dtype != torch.float64 else values.detach()
    found = METHODS[method](values, low, high)
    alive = values.abs().amax(1) > 0
    ordinary = found[alive].median() if alive.any() else torch.tensor(1 / high)
    return torch.where(alive, found, ordinary.to(found))
