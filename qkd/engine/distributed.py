"""Distributed training: several processes (ranks) train one model. Each takes its part of every batch; together they compute
what one process computes on the whole batch.

* Gradients are averaged behind the backward pass, not by DistributedDataParallel: steps with learners of their own,
  networks that only some terms read and several backward passes per batch leave its reducer waiting for gradients that
  never come.
* Batch norm normalises with the statistics of the whole batch (`qkd.networks.batch_norm`), so its running statistics are equal
  on all ranks.
* Quantizer scales are parameters and get averaged gradients; calibration sees the same images on all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qkd.errors import NetworkError, QkdError, TrainingError
from qkd.networks.batch_norm import BatchNorm, other_batch_norms

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def shard(fabric: Fabric) -> tuple[int, int]:
    """(rank, ranks), as `Data.batches` takes it."""
    return fabric.global_rank, fabric.world_size


def average_gradients(fabric: Fabric, parameters: Iterable[nn.Parameter], flag: bool = False) -> bool:
    """Replace every gradient by its mean over the ranks. -> whether ``flag`` is set on any of them"""
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
    return fabric.device.type == "cpu" and bool(flags > 0)  # on a GPU the look would wait, and no flag is raised there


def all_reduce(fabric: Fabric, values: Tensor, how: str = "mean") -> Tensor:
    """The mean (or sum) of every value over the ranks."""
    if fabric.world_size == 1:
        return values
    total = values.to(fabric.device)
    dist.all_reduce(total)
    return total / fabric.world_size if how == "mean" else total


def on_any_rank(fabric: Fabric, *flags: bool) -> list[bool]:
    """Each flag: whether it is set on any rank."""
    if fabric.world_size == 1:
        return list(flags)
    return [bool(total) for total in all_reduce(fabric, torch.tensor([float(f) for f in flags]), "sum").tolist()]


def first_message(fabric: Fabric, message: str) -> str:
    """The message of the first rank that has one; to be called on every rank."""
    if not on_any_rank(fabric, bool(message))[0] or fabric.world_size == 1:
        return message
    messages: list[str] = [""] * fabric.world_size
    dist.all_gather_object(messages, message)
    return next(filter(None, messages))


def on_first_rank(fabric: Fabric, work: Callable[[], object]) -> None:
    """Run ``work`` on the first rank. Where it raises a QkdError, all ranks raise it."""
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
    """Raises TrainingError where another rank has ended, in place of what torch raises for a message to it."""
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError(
            f"rank {fabric.global_rank}: another rank ended; its error says why", key="training.rank-ended"
        ) from error


def all_gather(fabric: Fabric, state: Tensor) -> list[Tensor]:
    """A tensor of every rank, in their order."""
    if fabric.world_size == 1:
        return [state]
    here = state.to(fabric.device)
    found = [torch.empty_like(here) for _ in range(fabric.world_size)]
    dist.all_gather(found, here)
    return [each.cpu() for each in found]


def synchronise(fabric: Fabric, module: nn.Module) -> None:
    """Give all ranks the parameters and buffers of the first, and batch norms the statistics of the whole batch.

    Raises NetworkError, naming it, for a batch norm with a forward of its own.
    """
    if fabric.world_size == 1:
        return
    for name, layer in other_batch_norms(module):
        raise NetworkError(
            f"{name} ({type(layer).__name__}) has a forward of its own, which would see only this rank's part of a batch; "
            f"train on one rank, or use torch's batch norm",
            key="network.batch-norm-of-its-own",
        )
    for tensor in module.state_dict().values():
        wire = tensor.contiguous() if tensor.dtype != torch.bool else tensor.to(torch.uint8)
        dist.broadcast(wire, 0)
        tensor.copy_(wire)
    _set_synchronised(module, True)


def desynchronise(module: nn.Module) -> None:
    """Batch norms use the statistics of this process alone again."""
    _set_synchronised(module, False)


@contextlib.contextmanager
def synchronised(fabric: Fabric, module: nn.Module) -> Iterator[None]:
    """All ranks begin with the tensors of the first, and batch norms use the whole batch for the length of the block."""
    synchronise(fabric, module)
    try:
        yield
    finally:
        desynchronise(module)


def _set_synchronised(module: nn.Module, on: bool) -> None:
    for layer in module.modules():
        if isinstance(layer, BatchNorm):
            layer.synchronised = on
