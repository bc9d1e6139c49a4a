"""Brevitas layers in place of float ones, and the quantizers between them.

They are Brevitas' layers with a shorter ``forward`` for plain tensors outside export: per call Brevitas' general one
costs as much as rounding a small tensor.
"""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkd.errors import SchemeError
from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.exact import round_bias
from qkd.quantizers.fake_quant import cores_of
from qkd.quantizers.families import FAMILIES
from qkd.quantizers.injectors import ActivationQuantizer, WeightQuantizer
from qkd.quantizers.scheme import Scheme


class _Weighted:
    """A layer with quantized weights and nothing else."""

    is_leaf = True
    input_core: tuple[Any, ...] = ()
    """For a bit-exact network, the core that rounds the input; in a tuple, so that it is no submodule of this layer."""

    def forward(self: Any, x: Any) -> Any:
        proxy = self.weight_quant
        if not isinstance(x, Tensor) or self.export_mode or proxy.export_mode:
            return super().forward(x)  # type: ignore[misc]
        if proxy.disable_quant:
            return self.compute(x, self.weight, self.bias)
        if not self.input_core:
            return self.compute(x, proxy.tensor_quant.value(self.weight), self.bias)
        weight, scale, *_ = proxy.tensor_quant(self.weight)
        return self.compute(x, weight, self._rounded_bias(scale))

    def compute(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = self._conv_forward(x, weight, bias)
        return result

    def final_bias(self: Any) -> Tensor | None:
        """The bias that ``forward`` adds: rounded in a bit-exact network."""
        _, scale, *_ = self.weight_quant.tensor_quant(self.weight)
        bias: Tensor | None = self._rounded_bias(scale)
        return bias

    def _rounded_bias(self: Any, scale: Tensor) -> Tensor | None:
        if self.bias is None or not self.input_core:
            bias: Tensor | None = self.bias
            return bias
        core = self.weight_quant.tensor_quant
        return round_bias(self.bias, self.input_core[0].scale(), scale, max(-core.low, core.high))


@final
class Convolution1d(_Weighted, qnn.QuantConv1d):
    pass


@final
class Convolution2d(_Weighted, qnn.QuantConv2d):
    pass


@final
class Linear(_Weighted, qnn.QuantLinear):
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class _Activation:
    is_leaf = True
    norm: tuple[Any, ...] = ()
    """The batch norm whose result only this quantizer reads, if any; in a tuple, so that it is no submodule of this layer."""
    made: Any = None
    """A weak reference to the tensor that this batch norm has already rounded."""

    def forward(self: Any, x: Any) -> Any:
        if not torch.compiler.is_compiling() and self.made is not None and self.made() is x:
            return x
        proxy = self.act_quant
        if not isinstance(x, Tensor) or self.export_mode or proxy.export_mode or proxy.disable_quant:
            return super().forward(x)  # type: ignore[misc]
        return proxy.core.value(x)


@final
class Relu(_Activation, qnn.QuantReLU):
    pass


@final
class Identity(_Activation, qnn.QuantIdentity):
    pass


_QUANTIZED: dict[type, Any] = {nn.Conv1d: Convolution1d, nn.Conv2d: Convolution2d, nn.Linear: Linear}
_CONV_SETTINGS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


def quantized_layer(layer: nn.Module, bits: int, scheme: Scheme) -> nn.Module:
    """The Brevitas layer that computes what ``layer`` does, with quantized weights; it shares its parameters."""
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else _CONV_SETTINGS
    made: nn.Module = _QUANTIZED[type(layer)](
        **{name: getattr(layer, name) for name in names},
        bias=layer.bias is not None,
        device="meta",  # the parameters created here are replaced below: no memory, no random numbers
        weight_quant=WeightQuantizer,
        weight_family=FAMILIES[scheme.family_of_weights],
        weight_bit_width=bits,
        weight_calibration=scheme.calibration,
        weight_per_channel=scheme.per_channel,
        weight_levels=scheme.weight_levels,
    )
    made.register_parameter("weight", layer.weight)  # type: ignore[arg-type]
    made.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
    return made.train(layer.training)


def relu_quantizer(name: str, bits: int, scheme: Scheme, six: bool = False) -> nn.Module:
    """A ReLU whose output is quantized; ``six`` keeps ReLU6's bound while rounding is off, for calibration to see.

    With rounding on the top level bounds the output: calibration puts it at 6 or below, training may move it.
    """
    made: nn.Module = Relu(**_activation_settings(bits, scheme, signed=False))
    if six:
        made.act_quant.fused_activation_quant_proxy.activation_impl = nn.ReLU6()  # type: ignore[union-attr]
    return _named(made, name)


def identity_quantizer(name: str, bits: int, scheme: Scheme, signed: bool) -> nn.Module:
    """A quantizer of a tensor that no ReLU precedes. Raises SchemeError for one bit where the tensor has both signs."""
    if signed and bits == 1:
        raise SchemeError(
            f"{name}: the tensor has both signs, and 1 bit has no grid for that; take 2 bits or more for the layers it "
            f"feeds (overrides, first, last or sums)",
            key="scheme.one-signed-bit",
        )
    made: nn.Module = Identity(**_activation_settings(bits, scheme, signed=signed))
    return _named(made, name)


def _activation_settings(bits: int, scheme: Scheme, *, signed: bool) -> dict[str, Any]:
    return {
        "act_quant": ActivationQuantizer,
        "family": FAMILIES[scheme.family_of_activations],
        "signed": signed,
        "bit_width": bits,
        "calibration": scheme.calibration,
    }


def _named(layer: nn.Module, name: str) -> nn.Module:
    for core in cores_of(layer):
        core.name = name
    return layer
