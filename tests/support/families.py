"""Every family at every number of bits that its weights have."""

from __future__ import annotations

from qkd.quantizers import FAMILIES

BITS = range(1, 9)


def weights_have(family: str, bits: int) -> bool:
    only = FAMILIES[family].only_bits
    return bits == only if only is not None else bits > 1 or FAMILIES[family].weights_without_zero


def weight_bits(family: str, bits: int) -> int:
    """These bits, or those of a family whose weights have one number of bits only."""
    only = FAMILIES[family].only_bits
    return bits if only is None else only


WEIGHTS = [(family, bits) for family in FAMILIES for bits in BITS if weights_have(family, bits)]
