"""Activation checkpointing (`train.recompute`): a stage keeps no activations and computes them again for the backward pass."""

from __future__ import annotations

import contextlib
from types import TracebackType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from qkd.distill.stages import Flow, Staged


def advance(network: Staged, stage: str, flow: Flow) -> Flow:
    """``network.advance`` with the same result, gradients and batch-norm statistics, bit for bit, in less memory.

    Only the tensors between stages are kept for the backward pass. Source: Chen et al. 2016, Training Deep Nets with
    Sublinear Memory Cost.
    """
    if not torch.is_grad_enabled():
        return network.advance(stage, flow)
    made: Flow = checkpoint(
        network.advance,
        stage,
        flow,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _FrozenStatistics(network)),
    )
    return made


class _FrozenStatistics(contextlib.AbstractContextManager[None]):
    """Inside the block, batch norms in training mode do not update their running statistics: they have seen this batch.

    Entered anew by every backward pass through the stage.
    """

    def __init__(self, network: nn.Module) -> None:
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
        self.before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]

    def __enter__(self) -> None:
        for norm, _, tracked in self.before:
            norm.momentum, norm.num_batches_tracked = 0.0, None if tracked is None else tracked.clone()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for norm, momentum, tracked in self.before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
