"""Ranks: several processes train one model. Each takes its share of every batch; what they compute together is what one
process computes on the whole batch.

* Gradients are averaged behind the backward pass, not by DistributedDataParallel: steps with learners of their own,
  networks that only some terms read and several backward passes per batch leave its reducer waiting for gradients that
  never come.
* Batch norm normalises with the statistics of the whole batch (torch's SyncBatchNorm knows no CPU), so its running
  statistics are equal everywhere.
* Quantizer scales are parameters and move with averaged gradients; calibration sees the same images everywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qkd.engine.device import is_first as is_first
from qkd.engine.device import world_size as world_size
from qkd.errors import QkdError, TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def shard(fabric: Fabric) -> tuple[int, int]:
    """(rank, ranks), as `Data.batches` takes it."""
    return fabric.global_rank, fabric.world_size


def average_gradients(fabric: Fabric, parameters: Iterable[nn.Parameter], flag: bool = False) -> bool:
    """Replace every gradient by its mean over the ranks. -> whether the flag is raised on any of them"""
    if fabric.world_size == 1:
        return flag
    gradients = [p.grad for p in parameters if p.grad is not None]
    flags = torch.full((1,), float(flag), device=fabric.device)  # in the same message
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [flags])
    dist.all_reduce(flat)
    flat /= fabric.world_size
    *means, flags = flat.split([*(g.numel() for g in gradients), 1])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return fabric.device.type == "cpu" and bool(flags > 0)  # elsewhere to look is to wait, and none is raised


def all_reduce(fabric: Fabric, values: Tensor, how: str = "mean") -> Tensor:
    """The mean (or sum) of every value over the ranks; on one rank the values themselves."""
    if fabric.world_size == 1:
        return values
    total = values.to(fabric.device)
    dist.all_reduce(total)
    return total / fabric.world_size if how == "mean" else total


def on_any_rank(fabric: Fabric, *flags: bool) -> list[bool]:
    """Each flag: whether it is raised on any rank."""
    if fabric.world_size == 1:
        return list(flags)
    return [bool(total) for total in all_reduce(fabric, torch.tensor([float(f) for f in flags]), "sum").tolist()]


def first_message(fabric: Fabric, words: str) -> str:
    """What the first of those ranks that have something to say says; to be asked on all of them."""
    if not on_any_rank(fabric, bool(words))[0] or fabric.world_size == 1:
        return words
    said: list[str] = [""] * fabric.world_size
    dist.all_gather_object(said, words)
    return next(filter(None, said))


def on_first_rank(fabric: Fabric, work: Callable[[], object]) -> None:
    """Let the first rank do it; where that fails with an error of ours, all ranks raise it."""
    failed: QkdError | None = None
    if fabric.is_global_zero:
        try:
            work()
        except QkdError as error:
            failed = error
    failed = fabric.broadcast(failed)
    if failed is not None:
        raise failed


@contextlib.contextmanager
def connected(fabric: Fabric) -> Iterator[None]:
    """Raises TrainingError in place of what a message to a rank that has ended raises."""
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError(f"rank {fabric.global_rank}: another rank ended; what it said is why") from error


def all_gather(fabric: Fabric, state: Tensor) -> list[Tensor]:
    """A tensor of every rank, in their order."""
    if fabric.world_size == 1:
        return [state]
    here = state.to(fabric.device)
    found = [torch.empty_like(here) for _ in range(fabric.world_size)]
    dist.all_gather(found, here)
    return [each.cpu() for each in found]


def synchronise(fabric: Fabric, module: nn.Module) -> None:
    """Give all ranks the parameters and buffers of the first, and batch norms that see the whole batch."""
    if fabric.world_size == 1:
        return
    for tensor in module.state_dict().values():
        wire = tensor.contiguous() if tensor.dtype != torch.bool else tensor.to(torch.uint8)
        dist.broadcast(wire, 0)
        tensor.copy_(wire)
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SyncedBatchNorm2d


def desynchronise(module: nn.Module) -> None:
    """The batch norms as they were: each for itself."""
    for part in module.modules():
        if type(part) is SyncedBatchNorm2d:
            part.__class__ = nn.BatchNorm2d  # type: ignore[assignment]


class _Sum(torch.autograd.Function):
    """The sum over ranks; what comes back to any of them belongs to all, so gradients are summed too."""

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


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all ranks together. In evaluation mode it is batch norm as ever."""

    is_leaf = True  # for tracing: one layer, like the one it stands for

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = dist.get_world_size() * wide.numel() / wide.shape[1]
        mean = _Sum.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / max(count - 1, 1))
        normal = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return normal.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)
