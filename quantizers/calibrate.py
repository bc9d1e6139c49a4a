"""Scales from data: one pass in float that observes, then a choice for every quantizer; and what else needs a pass."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkd.errors import DataError, QkdError
from qkd.quantizers.inspection import activations, disabled, evaluated, quantizers, weights

SAMPLE = 2**14
"""Values kept per quantizer and batch, its extremes among them."""


def calibrate(network: nn.Module, batches: Iterable[Tensor], *, under: str | tuple[str, ...] = "") -> None:
    """Choose the scale of every quantizer by the method of its scheme, and mark it as calibrated.

    The network runs once over the batches (images, N x C x H x W) in float and in evaluation mode; nothing but the
    quantizers changes. A batch norm that has seen no batch yet normalises with the statistics of the batch, as it will
    in training. A quantizer that only ever saw zeros gets a scale of ordinary size and is named in a warning. With
    ``under`` it is about the quantizers whose names begin so; all others stay and round as they do.
    Raises DataError where there is no batch, QkdError naming the first tensor that is not finite.
    """
    chosen = [(name, layer) for name, layer in activations(network) if name.startswith(under)]
    samples: dict[str, list[Tensor]] = {name: [] for name, _ in chosen}
    given = _some(batches, "calibrate")
    with _watching(network, samples), disabled(network, under), evaluating(network), torch.no_grad():
        for images in given:
            network(images)
    for name, layer in chosen:
        values = torch.cat(samples[name])[None] if samples[name] else torch.zeros(1, 1)
        if not values.isfinite().all():
            raise QkdError(f"calibrate: {name} reads numbers that are not finite")
        if not values.any():
            logging.getLogger("qkd").warning("calibrate: %s reads nothing but zeros", name)
        core = layer.act_quant.core
        core.fit(values.to(core.calibrated.device))
    for layer in (layer for name, layer in weights(network) if name.startswith(under)):
        layer.weight_quant.tensor_quant.fit(layer.weight.detach().flatten(1))


def pretend_calibrated(network: nn.Module) -> None:
    """Give every quantizer some scale without any data: for what depends on the network's form alone, never for numbers."""
    for core in (core for _, core in quantizers(network) if not core.is_calibrated()):
        core.calibration = "minmax"
    for _, layer in activations(network):
        core = layer.act_quant.core
        if not core.is_calibrated():
            core.fit(torch.tensor([[-1.0, 1.0]], device=core.calibrated.device))
    for _, layer in weights(network):
        core = layer.weight_quant.tensor_quant
        if not core.is_calibrated():
            core.fit(layer.weight.detach().flatten(1))


def _some(batches: Iterable[Tensor], what: str) -> Iterator[Tensor]:
    """The batches; raises DataError where there are none, before anything has been changed for their sake."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise DataError(f"{what}: there is no batch; give at least one")
    return itertools.chain([first], iterator)


@contextlib.contextmanager
def _watching(network: nn.Module, samples: dict[str, list[Tensor]]) -> Iterator[None]:
    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(lambda _layer, _inputs, output: samples[name].append(_sample(output)))

    handles = [watch(name, layer) for name, layer in activations(network) if name in samples]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sample(values: Tensor) -> Tensor:
    """At most SAMPLE + 2 of the values, drawn at random with a fixed seed, and the two extremes."""
    flat = values.detach().reshape(-1)
    if flat.numel() > SAMPLE:
        chosen = torch.randint(flat.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(flat.numel()))
        flat = torch.cat([flat[chosen.to(flat.device)], torch.stack(flat.aminmax())])
    return flat.cpu().float() if flat.dtype != torch.float64 else flat.cpu()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, with batch statistics in the batch norms that have none of their own; all as before afterwards."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and _unseen(module)]
    statistics = {norm: (norm.running_mean, norm.running_var) for norm in norms}
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        with evaluated(network):
            yield
    finally:
        for norm in norms:
            norm.running_mean, norm.running_var = statistics[norm]


def _unseen(norm: _BatchNorm) -> bool:
    """No batch was counted and the statistics are those it was born with: converted weights may come without the count."""
    if norm.num_batches_tracked is None or norm.running_mean is None or norm.running_var is None:
        return False
    fresh = not norm.running_mean.any() and bool((norm.running_var == 1).all())
    return int(norm.num_batches_tracked) == 0 and fresh


def reestimate_batch_norm(network: nn.Module, batches: Iterable[Tensor], *, leave: Collection[nn.Module] = ()) -> None:
    """Replace the running statistics of every batch norm by their mean over the batches, with rounding on.

    Weights and scales stay, and so do the batch norms in ``leave``; the mode of the network is restored. Raises DataError
    where there is no batch.
    """
    given = _some(batches, "reestimate_batch_norm")
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m not in leave]
    momenta = {norm: norm.momentum for norm in norms}
    try:
        with evaluated(network), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's way to ask for the mean over all batches
                norm.train()
            for images in given:
                network(images)
    finally:
        for norm in norms:
            norm.momentum = momenta[norm]
