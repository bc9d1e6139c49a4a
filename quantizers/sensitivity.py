"""Sensitivity of a network to the bits of each layer's weights, and how often each bit of a layer is used."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkd.quantizers.calibration import calibrate
from qkd.quantizers.families import FAMILIES
from qkd.quantizers.insertion import insert
from qkd.quantizers.inspection import outputs_observed, weights
from qkd.quantizers.scheme import FamilyName, Scheme, bits_of

CHOICES = (2, 3, 4, 5, 6, 8)
By = Literal["size", "macs"]
Measure = Literal["loss", "logits"]
Sensitivity = Mapping[str, Mapping[int, float]]
"""The error by layer and number of bits."""


@torch.no_grad()
def sensitivity(
    network: nn.Module,
    scheme: Scheme,
    images: Tensor,
    labels: Tensor,
    choices: Sequence[int] = CHOICES,
    measure: Measure = "loss",
) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
    """For each inner layer and number of bits, the error of the network when only that layer's weights have these bits.

    By ``loss``: the rise of the cross-entropy against the labels, in nats, never less with fewer bits; by ``logits``: the
    squared change of the logits as a share of their square. All other weights have 8 bits, and activations those of the
    scheme. Also the bits of each layer's input. The network (float) stays as it is. Raises as `insert` and `calibrate`.
    """
    own = replace(scheme, weights=8, weight_family=_family_of_any_bits(scheme), overrides={}, progressive=())
    reference = insert(network.eval(), own)
    calibrate(reference, [images])
    before = reference.eval()(images)
    found: dict[str, dict[int, float]] = {name: {} for name in _inner_layers(network, own)}
    for bits in sorted(choices, reverse=True):
        lowered = insert(network, replace(own, weights=bits))
        calibrate(lowered, [images[:1]])
        for name, errors in found.items():
            logits = _with_weights_of(reference, lowered, name, images)
            error = _error(logits, before, labels, measure)
            errors[bits] = max([error, *errors.values()]) if measure == "loss" else error
    return found, _input_bits(scheme, found)


def _family_of_any_bits(scheme: Scheme) -> FamilyName:
    """The family of the weights, or LSQ where it has one number of bits only."""
    name = scheme.family_of_weights
    return name if FAMILIES[name].only_bits is None else "lsq"


def _inner_layers(network: nn.Module, scheme: Scheme) -> list[str]:
    """Layers whose weights have the bits of the scheme and not those of its first and last layers."""
    marked = insert(network, replace(scheme, first=2, last=2))
    return [name for name, layer in weights(marked) if layer.weight_quant.tensor_quant.bits != 2]


def _with_weights_of(reference: nn.Module, lowered: nn.Module, name: str, images: Tensor) -> Tensor:
    """The logits of the reference with the weight quantizer of one layer taken from the lowered network."""
    proxy, other = (module.get_submodule(name).weight_quant for module in (reference, lowered))
    proxy.tensor_quant, kept = other.tensor_quant, proxy.tensor_quant  # type: ignore[union-attr]
    logits: Tensor = reference(images)
    proxy.tensor_quant = kept  # type: ignore[union-attr]
    return logits


def _error(logits: Tensor, before: Tensor, labels: Tensor, measure: Measure) -> float:
    if measure == "loss":
        return max(0.0, float(F.cross_entropy(logits, labels) - F.cross_entropy(before, labels)))
    return float((logits - before).square().mean() / before.square().mean())


def _input_bits(scheme: Scheme, layers: Iterable[str]) -> dict[str, int]:
    bits = dict.fromkeys(layers, scheme.activations)
    for pattern, shorthand in scheme.overrides.items():
        bits |= {name: bits_of(shorthand)[1] for name in bits if fnmatch(name, pattern)}
    return bits


def costs(network: nn.Module, layers: Iterable[str], images: Tensor, by: By) -> dict[str, int]:
    """How often each bit of a layer is used: its weights, or its weights times the pixels they are applied to."""
    wanted, copied = set(layers), copy.deepcopy(network).eval()
    chosen: dict[str, Any] = {name: layer for name, layer in copied.named_modules() if name in wanted}
    found = {name: layer.weight.numel() for name, layer in chosen.items()}
    if by == "size":
        return found

    def count(name: str, output: Tensor) -> None:
        weight = chosen[name].weight
        found[name] = weight.numel() * output[0].numel() // len(weight)

    with outputs_observed(chosen, count), torch.no_grad():
        copied(images)
    return found
