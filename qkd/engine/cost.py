"""Cost: memory and time of each network of a plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qkd.storage.environment import peak_memory

if TYPE_CHECKING:
    from qkd.engine.training_context import Training

REPEATS = 3


def cost(training: Training) -> dict[str, Any]:
    """``peak_memory_mb`` of the process (of the GPU, where there is one), and per network of the plan its parameters and
    the milliseconds of one batch forward, and forward and backward (a view of another network has neither parameters of its
    own nor a backward pass): of a rank's part of it and of one piece, as training
    computed it, for there may be no memory for more. Networks are timed alone, in evaluation mode and not compiled; nothing
    about them changes.
    """
    size = max(1, training.batch // (training.fabric.world_size * training.settings.accumulate))
    seen = training.data.train_batches(size, seed=0, device=training.device)
    owners = {name: staged.network for name, staged in training.ensemble.owners.items()}
    views = {name: staged.network for name, staged in training.ensemble.tied.items()}
    images = next((batch.images for batch in seen), torch.zeros(0))
    found = {name: _of(network, images) for name, network in owners.items()} if len(images) else {}
    found |= {name: _of_view(network, images) for name, network in views.items()} if len(images) else {}
    return {
        "peak_memory_mb": peak_memory(training.device),
        "batch": len(images),
        "participants": {name: found[name] for name in training.ensemble.networks if name in found},
    }


def _of_view(network: nn.Module, images: torch.Tensor) -> dict[str, float]:
    return {"parameters": 0, "forward_ms": _milliseconds(lambda: _forward(network, images), images.device)}


@torch.no_grad()
def _forward(network: nn.Module, images: torch.Tensor) -> None:
    network(images)


def _of(network: nn.Module, images: torch.Tensor) -> dict[str, float]:
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    network.eval().requires_grad_(True)

    def learn() -> None:
        torch.autograd.grad(network(images).float().square().mean(), list(network.parameters()), allow_unused=True)

    try:
        return {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "forward_ms": _milliseconds(lambda: _forward(network, images), images.device),
            "learn_ms": _milliseconds(learn, images.device),
        }
    finally:
        for parameter, before in zip(network.parameters(), wanted, strict=True):
            parameter.requires_grad_(before)


def _milliseconds(work: Callable[[], None], device: torch.device) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 2)
