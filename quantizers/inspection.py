"""Access to the parts of a quantized network: its quantizers, their learned scales, and its layers for a report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.fake_quant import FakeQuant
from qkd.quantizers.fused_batch_norm import fuse_batch_norms
from qkd.quantizers.injectors import ActivationProxy, WeightProxy


def activations(network: nn.Module, under: str | tuple[str, ...] = "") -> Iterator[tuple[str, Any]]:
    """Names and modules of the quantizers between layers, of those whose names begin with ``under``."""
    for name, module in network.named_modules():
        if name.startswith(under) and isinstance(getattr(module, "act_quant", None), ActivationProxy):
            yield name, module


def weights(network: nn.Module, under: str | tuple[str, ...] = "") -> Iterator[tuple[str, Any]]:
    """Names and modules of the layers with quantized weights, of those whose names begin with ``under``."""
    for name, module in network.named_modules():
        if name.startswith(under) and isinstance(getattr(module, "weight_quant", None), WeightProxy):
            yield name, module


def rounded_layers(network: nn.Module, most_bits: int = 8) -> list[Any]:
    """The layers with quantized weights, of so many bits or fewer; to be found once and not in every step."""
    return [layer for _, layer in weights(network) if layer.weight_quant.tensor_quant.bits <= most_bits]


def quantizers(network: nn.Module) -> Iterator[tuple[str, FakeQuant]]:
    """Every quantizer's core under the name of its layer: first those between layers, then ``<layer>.weight``."""
    yield from ((name, layer.act_quant.core) for name, layer in activations(network))
    yield from ((f"{name}.weight", layer.weight_quant.tensor_quant) for name, layer in weights(network))


def uncalibrated(network: nn.Module) -> list[str]:
    """Names of the quantizers whose scale was never chosen from data."""
    return [name for name, core in quantizers(network) if not core.is_calibrated()]


def scales(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the quantizers (scales, offsets, clipping levels); weight decay would pull them to zero."""
    return [parameter for _, core in quantizers(network) for parameter in core.parameters()]


def compile_cores(network: nn.Module, on: bool = True) -> None:
    """Round with one kernel forward and one backward in every quantizer, for layers that stay eager; or no longer.

    The kernels take tensors of every size. On the CPU they are C (half a second once for a process; nothing changes where
    there is no compiler), and batch norm in training is one kernel with the rounding behind it (`fused_batch_norm`), equal
    to the two within float32's last digits. Elsewhere ``torch.compile`` makes them (seconds, in the first step). Inside a
    stage that is compiled as a whole this changes nothing.
    """
    for _, core in quantizers(network):
        core.compiled = on
    fuse_batch_norms(network, on)


@contextlib.contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode for the length of the block; every module's mode as before afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def disabled(network: nn.Module, under: str | tuple[str, ...] = "") -> Iterator[None]:
    """The network in float for the length of the block: nothing is rounded, activation functions still apply.

    With ``under`` only those whose names begin with it.
    """
    proxies = [
        *(layer.act_quant for _, layer in activations(network, under)),
        *(layer.weight_quant for _, layer in weights(network, under)),
    ]
    before = [proxy.disable_quant for proxy in proxies]
    for proxy in proxies:
        proxy.disable_quant = True
    try:
        yield
    finally:
        for proxy, was in zip(proxies, before, strict=True):
            proxy.disable_quant = was


@contextlib.contextmanager
def outputs_observed(layers: dict[str, Any], observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """For the length of the block, call ``observe`` with a layer's name and its output in every forward pass."""

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def observed(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            observe(name, output)  # and return None: what a hook returns would replace the output

        return observed

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Layer(NamedTuple):
    """A line of a report: bits is 32 for what stays float; shape is that of the weights, () where there are none."""

    name: str
    kind: str
    bits: int
    shape: tuple[int, ...]
    parameters: int


def describe(network: nn.Module) -> list[Layer]:
    """Every layer and quantizer in the order of the network: conv, linear, relu, signed, unsigned, or its class name."""
    between, layers = dict(activations(network)), dict(weights(network))
    found = []
    for name, module in network.named_modules():
        if name in layers:
            kind = "linear" if isinstance(module, nn.Linear) else "conv"
            found.append(_layer(name, kind, layers[name].weight_quant.tensor_quant.bits, module))
        elif name in between:
            proxy = between[name].act_quant
            kind = "relu" if isinstance(module, qnn.QuantReLU) else "signed" if proxy.is_signed else "unsigned"
            found.append(_layer(name, kind, proxy.core.bits, module))
        elif not isinstance(module, FakeQuant) and any(True for _ in module.parameters(recurse=False)):
            found.append(_layer(name, type(module).__name__, 32, module))
    return found


def _layer(name: str, kind: str, bits: int, module: nn.Module) -> Layer:
    weight = getattr(module, "weight", None)
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return Layer(name, kind, bits, tuple(weight.shape) if weight is not None else (), own)
