"""Every family at every number of bits it has."""

from __future__ import annotations

from qkd.quantizers import FAMILIES
from qkd.quantizers.scheme import ONLY, WITHOUT_ZERO

BITS = range(1, 9)


def weights_have(family: str, bits: int) -> bool:
    return bits == ONLY[family] if family in ONLY else bits > 1 or family in WITHOUT_ZERO


WEIGHTS = [(family, bits) for family in FAMILIES for bits in BITS if weights_have(family, bits)]
