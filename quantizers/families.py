"""The families of quantizers: which core is for weights, which for tensors from zero up, which for tensors of both signs.

The table `FAMILIES` is the only list of them: schemes, the recipe's schema and ``qkd ls schemes`` read it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Protocol

from qkd.quantizers.dorefa import RangeQuant, TanhQuant
from qkd.quantizers.ewgs import EwgsQuant, EwgsWeight
from qkd.quantizers.fake_quant import FakeQuant, StoredScaleQuant
from qkd.quantizers.hwgq import HalfWave, MidRise
from qkd.quantizers.lsq import LsqQuant
from qkd.quantizers.lsq_plus import ShiftedQuant
from qkd.quantizers.odd_grid import POSSIBLE_BITS
from qkd.quantizers.pact import ClippedQuant
from qkd.quantizers.pot import PowerOfTwo
from qkd.quantizers.ternary import BinaryQuant, TernaryQuant
from qkd.quantizers.weight_grid import CHOSEN_AT, WeightLevels, grid_of_weights

Shape = tuple[int, ...]
MakeActivationCore = Callable[[int, str], StoredScaleQuant]
"""From bits and calibration method."""


class MakeWeightCore(Protocol):
    """Makes a core from bits, calibration method and the shape of the scales, (channels, 1, ...) or () for one scale.

    ``levels`` chooses those of 2 bits where a family leaves the choice (`Family.fixed_levels`).
    """

    def __call__(self, bits: int, calibration: str, shape: Shape, levels: WeightLevels = "auto") -> FakeQuant: ...


@dataclass(frozen=True)
class Family:
    """What one family is made of. Its first line of description is what listings show.

    Where a paper has no form for a tensor (both signs, 8 bits), the core is that of LSQ, so that every network runs
    in integers.

    Args:
        description: the method, its source, and departures from it.
        weights: makes the core of weights.
        unsigned: makes the core of tensors from zero up.
        signed: makes the core of tensors of both signs.
        only_bits: the one number of bits that weights of this family have, if there is only one; first and last layers
            and those of overrides take LSQ's grid at any other.
        weights_without_zero: whether no level of the weights is zero, so that 1 bit is a grid: -1 and 1 times a scale.
        fixed_levels: how many levels 2-bit weights have where the family's own grid decides; None where there is a choice
            (see `weight_grid`).
    """

    description: str
    weights: MakeWeightCore
    unsigned: MakeActivationCore
    signed: MakeActivationCore
    only_bits: int | None = None
    weights_without_zero: bool = False
    fixed_levels: int | None = None

    def levels_at_two_bits(self, chosen: WeightLevels) -> int:
        """How many levels 2-bit weights have."""
        grid = grid_of_weights(CHOSEN_AT, chosen)
        return self.fixed_levels or (grid.high - grid.low) // grid.per_step + 1


def _lsq_weights(bits: int, calibration: str, shape: Shape, levels: WeightLevels = "auto") -> FakeQuant:
    return LsqQuant(bits, True, calibration, shape, of_weights=True, weight_levels=levels)


def _lsq_unsigned(bits: int, calibration: str) -> StoredScaleQuant:
    return LsqQuant(bits, False, calibration)


def _lsq_signed(bits: int, calibration: str) -> StoredScaleQuant:
    return LsqQuant(bits, True, calibration)


def _lsq_plus_weights(bits: int, calibration: str, shape: Shape, levels: WeightLevels = "auto") -> FakeQuant:
    return _lsq_weights(bits, "sigmas" if calibration == "paper" else calibration, shape, levels)


def _pot_weights(bits: int, calibration: str, shape: Shape, levels: WeightLevels = "auto") -> FakeQuant:
    return PowerOfTwo(bits, True, calibration, shape, of_weights=True, weight_levels=levels)


def _or_lsq(make: Callable[[int, str, Shape], FakeQuant], possible: Container[int]) -> MakeWeightCore:
    """The weights of a paper that has a form for these numbers of bits only, with LSQ's grid at any other."""

    def weights(bits: int, calibration: str, shape: Shape, levels: WeightLevels = "auto") -> FakeQuant:
        return make(bits, calibration, shape) if bits in possible else _lsq_weights(bits, calibration, shape, levels)

    return weights


FAMILIES: dict[str, Family] = {
    "lsq": Family(
        "Learned step sizes for weights and activations (Esser et al., ICLR 2020).",
        weights=_lsq_weights,
        unsigned=_lsq_unsigned,
        signed=_lsq_signed,
    ),
    "lsq_plus": Family(
        "LSQ with a learned zero point for tensors of both signs (Bhalgat et al., CVPR workshops 2020).",
        weights=_lsq_plus_weights,
        unsigned=_lsq_unsigned,
        signed=ShiftedQuant,
    ),
    "pact": Family(
        "Learned clipping of activations; weights as in DoReFa (Choi et al., 2018). Tensors of both signs: LSQ.",
        weights=_or_lsq(TanhQuant, POSSIBLE_BITS),
        unsigned=ClippedQuant,
        signed=_lsq_signed,
        weights_without_zero=True,
        fixed_levels=4,
    ),
    "dorefa": Family(
        "Weights through a tanh, activations of a fixed range (Zhou et al., 2016). "
        "Tensors of both signs, 8-bit weights: LSQ.",
        weights=_or_lsq(TanhQuant, POSSIBLE_BITS),
        unsigned=RangeQuant,
        signed=_lsq_signed,
        weights_without_zero=True,
        fixed_levels=4,
    ),
    "hwgq": Family(
        "Fixed Gaussian grids for weights and half-wave activations (Cai et al., CVPR 2017).\n\n"
        "The paper leaves tensors of both signs in float (the network's input, what an addition reads); here they take "
        "the learned scale of LSQ, so that the network still runs in integers. So do 8-bit weights, whose odd integers "
        "exceed int8.",
        weights=_or_lsq(MidRise, POSSIBLE_BITS),
        unsigned=HalfWave,
        signed=_lsq_signed,
        weights_without_zero=True,
        fixed_levels=4,
    ),
    "pot": Family(
        "Learned scales that are powers of two (after Jain et al., MLSys 2020).",
        weights=_pot_weights,
        unsigned=lambda bits, calibration: PowerOfTwo(bits, False, calibration),
        signed=lambda bits, calibration: PowerOfTwo(bits, True, calibration),
    ),
    "ternary": Family(
        "Weights -1, 0, 1 times a scale that follows them (Li et al., 2016): w2 only. Activations and ends: LSQ.",
        weights=_or_lsq(TernaryQuant, (2,)),
        unsigned=_lsq_unsigned,
        signed=_lsq_signed,
        only_bits=2,
        fixed_levels=3,
    ),
    "binary": Family(
        "Weights -1, 1 times mean|W| (Rastegari et al., ECCV 2016): w1 only. Activations and ends: LSQ.",
        weights=_or_lsq(BinaryQuant, (1,)),
        unsigned=_lsq_unsigned,
        signed=_lsq_signed,
        only_bits=1,
    ),
    "ewgs": Family(
        "Element-wise gradient scaling (Lee et al., CVPR 2021); weights at odd codes, 8-bit ones as in LSQ.",
        weights=_or_lsq(EwgsWeight, POSSIBLE_BITS),
        unsigned=lambda bits, calibration: EwgsQuant(bits, False, calibration),
        signed=lambda bits, calibration: EwgsQuant(bits, True, calibration),
        weights_without_zero=True,
        fixed_levels=4,
    ),
}
