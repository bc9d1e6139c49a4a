"""Recompute: a stage forgets its activations and computes them again when its gradient is asked for."""

from __future__ import annotations

import contextlib
from types import TracebackType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from qkd.distill.stages import Flow, Staged


def advance(network: Staged, stage: str, flow: Flow) -> Flow:
    """What ``network.advance`` gives, bit for bit, with the same gradients and batch-norm statistics.

    Only what crosses the stage's borders is kept until the gradient is asked for. Source: Chen et al. 2016, Training Deep
    Nets with Sublinear Memory Cost.
    """
    if not torch.is_grad_enabled():
        return network.advance(stage, flow)
    made: Flow = checkpoint(
        network.advance,
        stage,
        flow,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), Still(network)),
    )
    return made


class Still(contextlib.AbstractContextManager[None]):
    """While it is entered, batch norms see their batch and remember nothing of it: they have seen it before.

    It is entered anew by every backward pass through its stage.
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
