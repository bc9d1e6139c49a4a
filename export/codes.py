"""Integer weights as codes of few bits: each channel of a layer is its codes times a number, plus a number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qkd.export.fold import across


class Codes(NamedTuple):
    """``numbers * times + plus`` for each output channel.

    numbers: two's complement integers (int64), output channels first. times, plus: int64 (O,), within int8 together with
    every product.
    """

    numbers: np.ndarray
    times: np.ndarray
    plus: np.ndarray


def codes(trained: np.ndarray, factors: np.ndarray, bits: int) -> Codes | None:
    """The integers ``trained * factors`` as codes of so many bits; None where they need more, or products exceed int8.

    A channel is taken as it is where it fits; with its sign changed where a batch norm inverted an asymmetric grid; or as
    ``2 k + 1`` where it has odd integers alone, as on a mid-rise grid, which would else need one bit more.
    """
    channels, scaled = trained.reshape(len(trained), -1).astype(np.int64), factors.astype(np.int64)
    half = 2 ** (bits - 1)
    inside = (channels >= -half) & (channels < half)
    inverted = (-channels >= -half) & (-channels < half)
    odd = (channels % 2 == 1) & (channels >= -2 * half) & (channels < 2 * half)
    plain, turned, halved = (part.all(axis=1) for part in (inside, inverted, odd))
    halved &= 2 * half * scaled <= -np.iinfo(np.int8).min  # the product, before one is added
    if not (plain | turned | halved).all():
        return None
    times = np.where(plain, scaled, np.where(turned, -scaled, 2 * scaled))
    plus = np.where(plain | turned, 0, scaled)
    integers = trained.astype(np.int64) * across(scaled, trained)
    return Codes((integers - across(plus, integers)) // across(times, integers), times, plus)


def narrowest(trained: np.ndarray) -> tuple[int, Codes]:
    """The fewest bits whose codes hold the integers of a layer, and the codes."""
    ones = np.ones(len(trained), np.int64)
    return next((bits, found) for bits in range(1, 10) if (found := codes(trained, ones, bits)) is not None)
