"""Batch-norm re-estimation: running statistics from data, by a pass with rounding on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkd.quantizers.calibration import nonempty
from qkd.quantizers.inspection import evaluated


def reestimate_batch_norm(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    leave: Collection[nn.Module] = (),
    run: Callable[[Tensor], object] | None = None,
) -> None:
    """Replace the running statistics of every batch norm by their mean over the batches, with rounding on.

    ``run`` puts a batch of images (N, C, H, W) through the network, by default its own forward. Weights, scales and the batch
    norms in ``leave`` stay as they are; the mode of the network is restored. Raises DataError where there is no batch.
    """
    given = nonempty(batches, "reestimate_batch_norm")
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m not in leave]
    momenta = {norm: norm.momentum for norm in norms}
    try:
        with evaluated(network), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch then takes the mean over all batches
                norm.train()
            for images in given:
                (run or network)(images)
    finally:
        for norm in norms:
            norm.momentum = momenta[norm]
