"""Batch norm and the quantizer behind it as one kernel in training, where `c_kernels` has it: the tensor between the two is
neither written nor read.

Layers stay where they are. A batch norm whose result only one quantizer reads returns, in training, what the quantizer would
make of it, and the quantizer passes that tensor on. In evaluation, under hooks between the two, and for inputs that the kernel
cannot take, each computes its own part.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from qkd.networks.batch_norm import BatchNorm
from qkd.quantizers import c_kernels
from qkd.quantizers.layers import Identity, Relu
from qkd.quantizers.lsq import LsqQuant
from qkd.quantizers.round_to_grid import SMALLEST

READERS = (Relu, Identity)


def pair_batch_norms(module: fx.GraphModule) -> None:
    """Set ``norm`` of every quantizer that is alone in reading a batch norm."""
    called = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in module.graph.nodes:
        source = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        norm, reader = (module.get_submodule(str(n.target)) for n in (source, node))
        alone = called.count(str(source.target)) == called.count(str(node.target)) == 1
        if alone and isinstance(norm, BatchNorm) and isinstance(norm, nn.BatchNorm2d) and isinstance(reader, READERS):
            reader.norm = (norm,)


def fuse_batch_norms(network: nn.Module, on: bool) -> None:
    """Compute batch norms together with the quantizers behind them, or no longer."""
    pairs = ((norm, reader) for reader in network.modules() if isinstance(reader, READERS) for norm in reader.norm)
    for norm, reader in pairs:
        norm.fused = NormThenRound(reader) if on else None


class NormThenRound:
    """What a batch norm calls in its place (`BatchNorm.fused`); ``reader``: the quantizer behind it."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __call__(self, norm: Any, x: Tensor) -> Tensor | None:
        """The quantized result, or None where the kernel cannot compute it."""
        if not _supported(norm, x) or norm._forward_hooks or self.reader._forward_pre_hooks:
            return None
        proxy = self.reader.act_quant
        if proxy.disable_quant or proxy.export_mode:
            return None
        core = proxy.core
        if type(core) is not LsqQuant or not core.step.is_cpu or not core.is_calibrated():
            return None
        norm.num_batches_tracked.add_(1)
        y: Tensor = _NormThenRound.apply(x, norm.weight, norm.bias, core.step, norm, core, core.gradient_scale(x))
        self.reader.made = weakref.ref(y)
        return y


def _supported(norm: Any, x: Tensor) -> bool:
    """Whether the kernel takes it: batch statistics that are tracked, of images, channels last, on the CPU."""
    return (
        norm.training
        and norm.affine
        and norm.running_mean is not None
        and norm.momentum is not None
        and norm.num_batches_tracked is not None
        and x.ndim == 4
        and x.is_cpu
        and norm.weight.is_cpu
        and norm.running_mean.is_cpu
        and x.dtype in c_kernels.SUFFIXES
        and norm.weight.dtype is torch.float32
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
        and c_kernels.library() is not None
    )


class _NormThenRound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, step: Tensor, norm: Any, core: LsqQuant, factor: float
    ) -> Tensor:
        y, saved = c_kernels.norm_round(
            x,
            weight,
            bias,
            (norm.running_mean, norm.running_var),
            step,
            momentum=norm.momentum,
            eps=norm.eps,
            low=core.low,
            high=core.high,
            smallest=SMALLEST,
        )
        ctx.save_for_backward(x, saved, weight, bias, step)
        ctx.settings = core.low, core.high, factor, SMALLEST
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        given = gradient.contiguous(memory_format=torch.channels_last)
        found = c_kernels.differentiate_norm_round(given, x, *others, *ctx.settings)
        return *found, None, None, None
