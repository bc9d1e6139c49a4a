"""The integers that stand for the levels of weights with a learned scale, and the choice that two bits leave.

Around zero two bits hold three levels that are symmetric (narrow range), four that are not, or four without a zero
(mid-rise). From three bits on the loss of one level is small, and integer kernels want a symmetric grid with a zero.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from qkd.quantizers.fake_quant import levels
from qkd.quantizers.odd_grid import odd_levels

WeightLevels = Literal["auto", "mid_rise", "narrow", "full"]
"""Levels of 2-bit weights: ``mid_rise`` -3, -1, 1, 3 times half the step; ``narrow`` -1, 0, 1 and ``full`` -2, -1, 0, 1 times
the step; ``auto`` is mid_rise."""
CHOSEN_AT = 2
"""The bits at which there is a choice; weights of more bits have a narrow range."""


class Grid(NamedTuple):
    """The integers from low to high, the bits that hold them, and how many integers a step is.

    ``per_step`` is 2 for a mid-rise grid, whose levels are the odd integers alone, so that two levels are a step apart; else 1.
    """

    low: int
    high: int
    integer_bits: int
    per_step: int = 1


def grid_of_weights(bits: int, chosen: WeightLevels) -> Grid:
    """The grid of weights with a learned scale. Raises SchemeError for 1 bit."""
    if bits == CHOSEN_AT and chosen in ("auto", "mid_rise"):
        return Grid(*odd_levels(bits), per_step=2)
    narrow = bits != CHOSEN_AT or chosen != "full"
    return Grid(*levels(bits, signed=True, narrow=narrow), bits)


def grid_of_activations(bits: int, signed: bool) -> Grid:
    """The grid of activations: from zero up, or of both signs. Raises SchemeError for one signed bit."""
    return Grid(*levels(bits, signed, narrow=False), bits)
