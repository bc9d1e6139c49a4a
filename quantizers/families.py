"""The families: which quantizer is for weights, which for tensors from zero up, which for tensors of both signs.

Each is a Brevitas quantizer: pass its members as ``weight_quant`` or ``act_quant`` to any Brevitas layer.
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import nn

from qkd.quantizers.brevitas_imports import value
from qkd.quantizers.dorefa import MOST_BITS, RangeQuant, TanhQuant
from qkd.quantizers.ewgs import EwgsQuant, EwgsWeight
from qkd.quantizers.injectors import (
    Activation,
    HwgqUnsigned,
    HwgqWeight,
    LsqSigned,
    LsqUnsigned,
    LsqWeight,
    Weight,
    lsq_of_weights,
)
from qkd.quantizers.lsq_plus import ShiftedQuant
from qkd.quantizers.pact import ClippedQuant
from qkd.quantizers.pot import PowerOfTwo
from qkd.quantizers.ternary import BinaryQuant, TernaryQuant

Shape = tuple[int, ...]


class LsqPlusWeight(Weight):
    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: Shape) -> nn.Module:
        return lsq_of_weights(bit_width, "sigmas" if calibration == "paper" else calibration, step_shape)


class LsqPlusSigned(Activation):
    signed = True

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return ShiftedQuant(bit_width, calibration)


class PactUnsigned(Activation):
    signed = False

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return ClippedQuant(bit_width, calibration)


class DorefaWeight(Weight):
    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: Shape) -> nn.Module:
        if bit_width <= MOST_BITS:
            return TanhQuant(bit_width, calibration, step_shape)
        return lsq_of_weights(bit_width, calibration, step_shape)


class DorefaUnsigned(Activation):
    signed = False

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return RangeQuant(bit_width, calibration)


class PotWeight(Weight):
    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: Shape) -> nn.Module:
        return PowerOfTwo(bit_width, True, calibration, step_shape, of_weights=True)


class PotUnsigned(Activation):
    signed = False

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return PowerOfTwo(bit_width, False, calibration)


class PotSigned(Activation):
    signed = True

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return PowerOfTwo(bit_width, True, calibration)


class TernaryWeight(Weight):
    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: Shape) -> nn.Module:
        if bit_width == 2:
            return TernaryQuant(bit_width, calibration, step_shape)
        return lsq_of_weights(bit_width, calibration, step_shape)


class BinaryWeight(Weight):
    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: Shape) -> nn.Module:
        if bit_width == 1:
            return BinaryQuant(bit_width, calibration, step_shape)
        return lsq_of_weights(bit_width, calibration, step_shape)


class EwgsWeights(Weight):
    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: Shape) -> nn.Module:
        if bit_width <= MOST_BITS:
            return EwgsWeight(bit_width, calibration, step_shape)
        return lsq_of_weights(bit_width, calibration, step_shape)


class EwgsUnsigned(Activation):
    signed = False

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return EwgsQuant(bit_width, False, calibration)


class EwgsSigned(Activation):
    signed = True

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return EwgsQuant(bit_width, True, calibration)


class Family:
    """The quantizers of one scheme family; the first line of a family's documentation is what listings show.

    Where a paper has no form for a tensor (both signs, 8 bits), the quantizer is that of LSQ, so that every network runs
    in integers.
    """

    weight: ClassVar[type]
    unsigned: ClassVar[type]
    signed: ClassVar[type]


@final
class Lsq(Family):
    """Learned step sizes for weights and activations (Esser et al., ICLR 2020)."""

    weight, unsigned, signed = LsqWeight, LsqUnsigned, LsqSigned


@final
class LsqPlus(Family):
    """LSQ with a learned zero point for tensors of both signs (Bhalgat et al., CVPR workshops 2020)."""

    weight, unsigned, signed = LsqPlusWeight, LsqUnsigned, LsqPlusSigned


@final
class Pact(Family):
    """Learned clipping of activations; weights as in DoReFa (Choi et al., 2018). Tensors of both signs: LSQ."""

    weight, unsigned, signed = DorefaWeight, PactUnsigned, LsqSigned


@final
class Dorefa(Family):
    """Weights through a tanh, activations of a fixed range (Zhou et al., 2016). Tensors of both signs, 8-bit weights: LSQ."""

    weight, unsigned, signed = DorefaWeight, DorefaUnsigned, LsqSigned


@final
class Hwgq(Family):
    """Fixed Gaussian grids for weights and half-wave activations (Cai et al., CVPR 2017).

    The paper leaves tensors of both signs in float (the network's input, what an addition reads); here they take the
    learned step of LSQ, so that the network still runs in integers.
    """

    weight, unsigned, signed = HwgqWeight, HwgqUnsigned, LsqSigned


@final
class Pot(Family):
    """Learned scales that are powers of two (after Jain et al., MLSys 2020)."""

    weight, unsigned, signed = PotWeight, PotUnsigned, PotSigned


@final
class Ternary(Family):
    """Weights -1, 0, 1 times a scale that follows them (Li et al., 2016): w2 only. Activations and ends: LSQ."""

    weight, unsigned, signed = TernaryWeight, LsqUnsigned, LsqSigned


@final
class Binary(Family):
    """Weights -1, 1 times mean|W| (Rastegari et al., ECCV 2016): w1 only. Activations and ends: LSQ."""

    weight, unsigned, signed = BinaryWeight, LsqUnsigned, LsqSigned


@final
class Ewgs(Family):
    """Element-wise gradient scaling (Lee et al., CVPR 2021); weights at odd codes, 8-bit ones as in LSQ."""

    weight, unsigned, signed = EwgsWeights, EwgsUnsigned, EwgsSigned


FAMILIES: dict[str, type[Family]] = {
    "lsq": Lsq,
    "lsq_plus": LsqPlus,
    "pact": Pact,
    "dorefa": Dorefa,
    "hwgq": Hwgq,
    "pot": Pot,
    "ternary": Ternary,
    "binary": Binary,
    "ewgs": Ewgs,
}
