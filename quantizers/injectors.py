"""The cores as Brevitas quantizers: pass these classes as ``weight_quant`` or ``act_quant`` to any Brevitas layer.

qnn.QuantConv2d(3, 8, 3, weight_quant=LsqWeight, weight_bit_width=4)
qnn.QuantReLU(act_quant=LsqUnsigned, bit_width=4)
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from qkd.quantizers.brevitas_imports import (
    ActQuantProxyFromInjector,
    ExtendedInjector,
    FloatToIntImplType,
    IntQuantTensor,
    WeightQuantProxyFromInjector,
    value,
)
from qkd.quantizers.hwgq import WEIGHT_STEPS, HalfWave, MidRise
from qkd.quantizers.lsq import LsqQuant


class ActivationCore(Protocol):
    """What an activation quantizer's core offers besides being called: its grid as it is now."""

    bits: int
    low: int
    high: int
    bit_width: Tensor
    calibrated: Tensor

    def __call__(self, x: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    def value(self, x: Tensor) -> Tensor: ...

    def scale(self) -> Tensor: ...

    def zero(self) -> Tensor: ...

    def fit(self, values: Tensor) -> None: ...


class WeightProxy(WeightQuantProxyFromInjector):
    """Brevitas' weight proxy that keeps its core.

    Brevitas builds the core anew whenever a state dict is loaded, which leaves optimizers with parameters that no
    longer belong to the network.
    """

    def init_tensor_quant(self, preserve_state_dict: bool = False) -> None:
        if self.tensor_quant is None:
            super().init_tensor_quant(preserve_state_dict)

    @property
    def input_view_impl(self) -> nn.Module:
        return nn.Identity()


class ActivationProxy(ActQuantProxyFromInjector):
    """Brevitas' activation proxy that keeps its core and, where the grid starts at zero, leaves the ReLU to it."""

    def __init__(self, quant_layer: nn.Module, quant_injector: Any) -> None:
        self._built = False
        super().__init__(quant_layer, quant_injector)

    def init_tensor_quant(self) -> None:
        if not self._built:
            super().init_tensor_quant()
            self._built = True

    @property
    def core(self) -> ActivationCore:
        core: ActivationCore = self.fused_activation_quant_proxy.tensor_quant
        return core

    @property
    def input_view_impl(self) -> nn.Module:
        return nn.Identity()

    def forward(self, x: Any) -> Any:
        if self.export_mode or not self.is_quant_enabled or self.is_signed:
            return super().forward(x)
        out = self.core(x.value if isinstance(x, IntQuantTensor) else x)
        return out[0] if self.skip_create_quant_tensor else IntQuantTensor(*out, self.is_signed, self.training)

    def scale(self, force_eval: bool = True) -> Tensor | None:
        return self.core.scale() if self.is_quant_enabled else None

    def zero_point(self, force_eval: bool = True) -> Tensor | None:
        return self.core.zero() if self.is_quant_enabled else None

    def bit_width(self, force_eval: bool = True) -> Tensor | None:
        return self.core.bit_width if self.is_quant_enabled else None


class Quantizer(ExtendedInjector):
    """What all have in common; `families` lists what is made of it."""

    calibration = "mse"
    float_to_int_impl_type = FloatToIntImplType.ROUND


class Weight(Quantizer):
    proxy_class = WeightProxy
    signed = True
    narrow_range = True
    per_channel = True

    @value
    def step_shape(module: Any, per_channel: bool) -> tuple[int, ...]:
        if not per_channel:
            return ()
        axis = module.output_channel_dim
        return tuple(size if i == axis else 1 for i, size in enumerate(module.weight.shape))


class Activation(Quantizer):
    proxy_class = ActivationProxy
    narrow_range = False


def lsq_of_weights(bits: int, calibration: str, shape: tuple[int, ...]) -> nn.Module:
    """What the weights of every family come back to where its paper has no form for them."""
    return LsqQuant(bits, True, calibration, shape, of_weights=True)


class LsqWeight(Weight):
    """Symmetric weights with a learned step, one per output channel unless ``per_channel=False``."""

    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: tuple[int, ...]) -> nn.Module:
        return lsq_of_weights(bit_width, calibration, step_shape)


class LsqUnsigned(Activation):
    """Activations from zero up, one learned step per tensor."""

    signed = False

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return LsqQuant(bit_width, False, calibration)


class LsqSigned(Activation):
    """Activations of both signs, one learned step per tensor."""

    signed = True

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return LsqQuant(bit_width, True, calibration)


class HwgqWeight(Weight):
    """Mid-rise Gaussian weights of 1 to 7 bits; 8-bit weights, whose odd codes exceed int8, take the LSQ grid."""

    @value
    def tensor_quant(bit_width: int, calibration: str, step_shape: tuple[int, ...]) -> nn.Module:
        if bit_width in WEIGHT_STEPS:
            return MidRise(bit_width, calibration, step_shape)
        return lsq_of_weights(bit_width, calibration, step_shape)


class HwgqUnsigned(Activation):
    """Half-wave Gaussian activations: the step is fixed by calibration."""

    signed = False

    @value
    def tensor_quant(bit_width: int, calibration: str) -> nn.Module:
        return HalfWave(bit_width, calibration)
