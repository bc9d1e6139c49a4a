"""Batch norm and the quantizer behind it as one operation in training, where `native` has kernels: what lies between the two
is neither written nor read.

Layers stay what and where they are. A batch norm whose result only a quantizer reads gives, in training, what the quantizer
makes of it, and the quantizer passes on what it is told was made for it. In evaluation, under hooks that look between them
and in whatever the kernels cannot do, each does its own work.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from qkd.quantizers import c_kernels
from qkd.quantizers.layers import Identity, Relu
from qkd.quantizers.lsq import LsqQuant
from qkd.quantizers.round_to_grid import SMALLEST

READERS = (Relu, Identity)


def pair_batch_norms(module: fx.GraphModule) -> None:
    """Tell every quantizer which batch norm it alone reads."""
    called = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in module.graph.nodes:
        source = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        norm, reader = (module.get_submodule(str(n.target)) for n in (source, node))
        alone = called.count(str(source.target)) == called.count(str(node.target)) == 1
        if alone and type(norm) is nn.BatchNorm2d and isinstance(reader, READERS):
            reader.norm = (norm,)


def fuse_batch_norms(network: nn.Module, on: bool) -> None:
    """Let batch norms do the rounding of the quantizers behind them, or no longer."""
    pairs = ((norm, reader) for reader in network.modules() if isinstance(reader, READERS) for norm in reader.norm)
    for norm, reader in pairs:
        kind: type = type(norm)
        if on and kind is nn.BatchNorm2d:
            norm.__class__ = FusedBatchNorm2d
            norm.reader = (reader,)
        elif not on and kind is FusedBatchNorm2d:
            norm.__class__ = nn.BatchNorm2d
            del norm.reader


class FusedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that does its quantizer's work too while it trains."""

    is_leaf = True  # for tracing: one layer, like the one it stands for
    reader: tuple[Any, ...]
    """The quantizer; in a tuple, so that it is no part of this layer."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not self._can(x):
            return super().forward(x)
        (reader,) = self.reader
        proxy = reader.act_quant
        if self._watched(reader) or proxy.disable_quant or proxy.export_mode:
            return super().forward(x)
        core = proxy.core
        if type(core) is not LsqQuant or not core.step.is_cpu or not core.is_calibrated():
            return super().forward(x)
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        y: Tensor = _NormThenRound.apply(x, self.weight, self.bias, core.step, self, core, core.gradient_scale(x))
        reader.made = weakref.ref(y)
        return y

    def _can(self, x: Tensor) -> bool:
        """Whether the kernels can do it: batch statistics that are remembered, of float32 images channels last."""
        return (
            self.training
            and self.affine
            and self.running_mean is not None
            and self.momentum is not None
            and self.num_batches_tracked is not None
            and x.ndim == 4
            and x.is_cpu
            and self.weight.is_cpu
            and self.running_mean.is_cpu
            and x.dtype is self.weight.dtype is torch.float32
            and x.numel() > x.shape[1]
            and x.is_contiguous(memory_format=torch.channels_last)
            and c_kernels.library() is not None
        )

    def _watched(self, reader: Any) -> bool:
        return bool(self._forward_hooks or reader._forward_pre_hooks)


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
