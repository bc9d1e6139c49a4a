"""The cores as Brevitas quantizers: two injectors, to pass as ``weight_quant`` or ``act_quant`` to any Brevitas layer.

    qnn.QuantConv2d(3, 8, 3, weight_quant=WeightQuantizer, weight_family=FAMILIES["lsq"], weight_bit_width=4)
    qnn.QuantReLU(act_quant=ActivationQuantizer, family=FAMILIES["lsq"], signed=False, bit_width=4)

Brevitas hands the keywords of a layer to its injector: of ``weight_quant`` those that begin with ``weight_``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qkd.quantizers.brevitas_imports import (
    ActQuantProxyFromInjector,
    ExtendedInjector,
    FloatToIntImplType,
    IntQuantTensor,
    WeightQuantProxyFromInjector,
    value,
)
from qkd.quantizers.fake_quant import FakeQuant, StoredScaleQuant
from qkd.quantizers.families import FAMILIES, Family, Shape
from qkd.quantizers.weight_grid import WeightLevels


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
    def core(self) -> StoredScaleQuant:
        core: StoredScaleQuant = self.fused_activation_quant_proxy.tensor_quant
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


class WeightQuantizer(ExtendedInjector):
    """Weights on the grid of a family, with one scale per output channel unless ``per_channel=False``.

    ``levels``: those of 2-bit weights with a learned scale, see `weight_grid`.
    """

    proxy_class = WeightProxy
    float_to_int_impl_type = FloatToIntImplType.ROUND
    signed = True
    narrow_range = True
    family = FAMILIES["lsq"]
    calibration = "mse"
    per_channel = True
    levels = "auto"

    @value
    def scale_shape(module: Any, per_channel: bool) -> Shape:
        if not per_channel:
            return ()
        axis = module.output_channel_dim
        return tuple(size if i == axis else 1 for i, size in enumerate(module.weight.shape))

    @value
    def tensor_quant(
        family: Family, bit_width: int, calibration: str, scale_shape: Shape, levels: WeightLevels
    ) -> FakeQuant:
        return family.weights(bit_width, calibration, scale_shape, levels)


class ActivationQuantizer(ExtendedInjector):
    """A tensor on the grid of a family, with one scale: from zero up, or of both signs with ``signed=True``."""

    proxy_class = ActivationProxy
    float_to_int_impl_type = FloatToIntImplType.ROUND
    signed = False
    narrow_range = False
    family = FAMILIES["lsq"]
    calibration = "mse"

    @value
    def tensor_quant(family: Family, signed: bool, bit_width: int, calibration: str) -> StoredScaleQuant:
        make = family.signed if signed else family.unsigned
        return make(bit_width, calibration)
