"""Batch norm: one kind of layer for every batch norm of a network, which several ranks and fused kernels can use.

`replace_batch_norms` is called once, when a network is built. It puts a layer of the same name, with the same parameters, in
place of each ``BatchNorm1d``, ``2d``, ``3d``, ``SyncBatchNorm`` and each subclass that has not changed what torch computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)
Fused = Callable[[Any, Tensor], Tensor | None]  # (layer, input) -> output, or None where it cannot do that input


class BatchNorm(_BatchNorm):
    """torch's batch norm, which can also normalise over the batches of all ranks, or be computed with what follows it.

    ``synchronised``: in training, use the mean and variance of all ranks together (torch's SyncBatchNorm has no CPU form).
    ``fused``: computes this layer and the quantizer behind it in one kernel, where it can. ``computes``: torch's class
    with the same result.
    """

    is_leaf = True  # one node when traced
    computes: type[nn.Module] = _BatchNorm
    synchronised: bool = False
    fused: Fused | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.synchronised and self.training:
            return self._over_ranks(input)
        if self.fused is not None and not torch.compiler.is_compiling():
            found = self.fused(self, input)
            if found is not None:
                return found
        result: Tensor = super().forward(input)
        return result

    def _over_ranks(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.float()
        count = dist.get_world_size() * wide.numel() / wide.shape[1]
        mean = _Sum.apply(wide.sum(axes)) / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        self._update_statistics(mean.detach(), variance.detach() * count / max(count - 1, 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank's gradient belongs to all, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class _AnySize(nn.BatchNorm2d):
    """What SyncBatchNorm becomes: it takes inputs of any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions (got {input.dim()})")


def replace_batch_norms(network: nn.Module) -> nn.Module:
    """Replace the batch norms of a network by `BatchNorm` layers, which share their parameters and buffers. -> the network

    Outputs, gradients and the state dict stay bit-identical. A subclass with a forward of its own stays as it is:
    `other_batch_norms` finds it.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        for name, layer in list(parent._modules.items()):
            if layer is not None and _replaceable(layer):
                if layer not in replacements:
                    replacements[layer] = _replacement(layer)
                setattr(parent, name, replacements[layer])
    return _replacement(network) if _replaceable(network) else network


def copied_module(module: M) -> M:
    """A deep copy, whose batch norms are `BatchNorm` layers."""
    return cast(M, replace_batch_norms(copy.deepcopy(module)))


def other_batch_norms(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Batch norms, by name, that are no `BatchNorm`: they compute something of their own, on each rank for itself."""
    yield from (
        (name, each)
        for name, each in network.named_modules()
        if isinstance(each, _BatchNorm) and not isinstance(each, BatchNorm)
    )


def _replaceable(layer: nn.Module) -> bool:
    if not isinstance(layer, _BatchNorm) or isinstance(layer, BatchNorm):
        return False
    return type(layer).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _replacement(layer: nn.Module) -> nn.Module:
    kind = _AnySize if isinstance(layer, nn.SyncBatchNorm) else type(layer)
    found: nn.Module = object.__new__(_class_for(kind))
    found.__dict__.update(layer.__dict__)  # hooks and a subclass's own attributes come along
    return found


_classes: dict[type, type] = {}


def _class_for(kind: type) -> type:
    """`BatchNorm` and a class of torch's or the user's in one, under the latter's name; always the same one for a class."""
    if kind not in _classes:
        name = "BatchNorm2d" if kind is _AnySize else kind.__name__
        computes = next(each for each in kind.__mro__ if each.__module__ == _BatchNorm.__module__)
        _classes[kind] = type(name, (BatchNorm, kind), {"__module__": kind.__module__, "computes": computes})
    return _classes[kind]
