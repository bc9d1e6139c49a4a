"""Calibration: scales from data, by one pass in float that observes and a choice for every quantizer."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkd.errors import DataError, QkdError
from qkd.quantizers.inspection import (
    activations,
    disabled,
    evaluated,
    outputs_observed,
    quantizers,
    weights,
)
from qkd.quantizers.round_to_grid import at_least_float32

Batch = TypeVar("Batch")
SAMPLE = 2**14
"""Values kept per quantizer and batch, beside the two extremes."""


def calibrate(network: nn.Module, batches: Iterable[Tensor], *, under: str | tuple[str, ...] = "") -> None:
    """Choose the scale of every quantizer by the method of its scheme, and mark it as calibrated.

    The network runs once over the batches (images, N x C x H x W) in float and in evaluation mode; nothing but the
    quantizers changes. A batch norm that has seen no batch yet normalises with the statistics of the batch, as it will
    in training. A quantizer that only ever saw zeros gets a scale of ordinary size and is named in a warning. With
    ``under`` only quantizers whose names begin with it are calibrated; all others stay and round as they do.
    Raises DataError where there is no batch, QkdError naming the first tensor that is not finite.
    """
    observed = dict(activations(network, under))
    samples: dict[str, list[Tensor]] = {name: [] for name in observed}
    given = nonempty(batches, "calibrate")
    with (
        outputs_observed(observed, lambda name, output: samples[name].append(_sample(output))),
        disabled(network, under),
        evaluating(network),
        torch.no_grad(),
    ):
        for images in given:
            network(images)
    for name, layer in observed.items():
        _fit_activation(name, layer.act_quant.core, samples[name])
    for _, layer in weights(network, under):
        _fit_weights(layer)


def pretend_calibrated(network: nn.Module) -> None:
    """Give every uncalibrated quantizer some scale without data: for what depends on the network's form, never for numbers."""
    for _, core in quantizers(network):
        if not core.is_calibrated():
            core.calibration = "minmax"
    for _, layer in activations(network):
        core = layer.act_quant.core
        if not core.is_calibrated():
            core.fit(torch.tensor([[-1.0, 1.0]], device=core.calibrated.device))
    for _, layer in weights(network):
        if not layer.weight_quant.tensor_quant.is_calibrated():
            _fit_weights(layer)


def _fit_activation(name: str, core: Any, samples: list[Tensor]) -> None:
    values = torch.cat(samples)[None] if samples else torch.zeros(1, 1)
    if not values.isfinite().all():
        raise QkdError(f"calibrate: {name} reads numbers that are not finite", key="calibration.not-finite")
    if not values.any():
        logging.getLogger("qkd").warning("calibrate: %s reads nothing but zeros", name)
    core.fit(values.to(core.calibrated.device))


def _fit_weights(layer: Any) -> None:
    layer.weight_quant.tensor_quant.fit(layer.weight.detach().flatten(1))


def nonempty(batches: Iterable[Batch], operation: str) -> Iterator[Batch]:
    """The batches. Raises DataError where there are none, before the operation has changed anything."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise DataError(f"{operation}: there is no batch; give at least one", key="data.no-batch")
    return itertools.chain([first], iterator)


def _sample(values: Tensor) -> Tensor:
    """At most SAMPLE + 2 of the values: a random sample with a fixed seed, and the two extremes."""
    flat = values.detach().reshape(-1)
    if flat.numel() > SAMPLE:
        chosen = torch.randint(flat.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(flat.numel()))
        flat = torch.cat([flat[chosen.to(flat.device)], torch.stack(flat.aminmax())])
    return at_least_float32(flat.cpu())


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode for the length of the block, with batch statistics in batch norms that have none yet."""
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
    """Whether no batch was counted and the statistics are the initial ones: converted weights may come without a count."""
    if norm.num_batches_tracked is None or norm.running_mean is None or norm.running_var is None:
        return False
    fresh = not norm.running_mean.any() and bool((norm.running_var == 1).all())
    return int(norm.num_batches_tracked) == 0 and fresh
