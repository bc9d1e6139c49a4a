"""The exponential moving average of a module's weights over optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def averaged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What is averaged: the floating-point tensors of the state dict, quantizer scales and batch-norm statistics included."""
    return {name: t.detach() for name, t in module.state_dict().items() if t.is_floating_point()}


@torch.no_grad()
def move_average(kept: Mapping[str, Tensor], module: nn.Module, decay: float, update: int) -> None:
    """``kept <- d kept + (1 - d) now``, in place, with ``d = min(decay, (1 + update) / (10 + update))``, updates from 1.

    The decay is smaller in the first steps, so that the first weights are soon forgotten.
    """
    share = 1 - min(decay, (1 + update) / (10 + update))
    for name, tensor in averaged_tensors(module).items():
        kept[name].lerp_(tensor, share)
