"""Grids of odd integers, from ``-(2 ** bits - 1)`` to ``2 ** bits - 1``: ``2 ** bits`` levels, none of them zero.

Two neighbouring levels lie two integers apart, so the integers need one bit more than the levels: at most 7 bits fit int8.
"""

from __future__ import annotations

from qkd.errors import SchemeError

MOST_BITS = 7
"""Odd integers of 8 bits do not fit int8."""
POSSIBLE_BITS = range(1, MOST_BITS + 1)


def odd_levels(bits: int) -> tuple[int, int, int]:
    """The lowest integer, the highest, and the bits that hold both. Raises SchemeError for more bits than int8 holds."""
    if bits not in POSSIBLE_BITS:
        raise SchemeError(
            f"weights: {bits} bits have no grid of odd integers in int8; possible are 1 to {MOST_BITS}",
            key="scheme.no-odd-grid",
        )
    top = 2**bits - 1
    return -top, top, bits + 1
