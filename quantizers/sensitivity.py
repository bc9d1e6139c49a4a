"""Sensitivity: what it costs to give one layer fewer bits, layer by layer, and how often each layer's bits count."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkd.quantizers import Scheme, calibrate, describe, insert
from qkd.quantizers.scheme import bits_of

CHOICES = (2, 3, 4, 5, 6, 8)
By = Literal["size", "macs"]
Measure = Literal["loss", "logits"]
Sensitivity = Mapping[str, Mapping[int, float]]  # layer -> bits -> error


@torch.no_grad()
def sensitivity(
    network: nn.Module,
    scheme: Scheme,
    images: Tensor,
    labels: Tensor,
    choices: Sequence[int] = CHOICES,
    measure: Measure = "loss",
) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
    """For each inner layer and number of bits, how much worse the network becomes when that layer alone has so few.

    By ``loss``: the rise of the cross-entropy against the labels, in nats, never less with fewer bits; by ``logits``: the
    squared change of the logits as a share of their square. Everything else has 8-bit weights and the scheme's
    activations. Also the bits of each layer's input. The network is a float one and stays as it is.
    """
    own = replace(scheme, weights=8, weight_family=_uniform(scheme), overrides={}, progressive=())
    reference = insert(network.eval(), own)
    calibrate(reference, [images])
    before = reference.eval()(images)
    ends = {name for name, bits in _weight_bits(insert(network, replace(own, first=2, last=2))).items() if bits == 2}
    inner = [name for name in _weight_bits(reference) if name not in ends]
    found: dict[str, dict[int, float]] = {name: {} for name in inner}
    for bits in sorted(choices, reverse=True):
        lower = insert(network, replace(own, weights=bits))
        calibrate(lower, [images[:1]])
        for name in inner:
            proxy, other = (module.get_submodule(name).weight_quant for module in (reference, lower))
            proxy.tensor_quant, kept = other.tensor_quant, proxy.tensor_quant  # type: ignore[union-attr]
            error = _error(reference(images), before, labels, measure)
            found[name][bits] = max([error, *found[name].values()]) if measure == "loss" else error
            proxy.tensor_quant = kept  # type: ignore[union-attr]
    return found, _input_bits(scheme, inner)


def _error(logits: Tensor, before: Tensor, labels: Tensor, measure: Measure) -> float:
    if measure == "loss":
        return max(0.0, float(F.cross_entropy(logits, labels) - F.cross_entropy(before, labels)))
    return float((logits - before).square().mean() / before.square().mean())


def costs(network: nn.Module, layers: Iterable[str], images: Tensor, by: By) -> dict[str, int]:
    """How often each bit of a layer counts: its weights, or its weights times the pixels they are used at."""
    wanted, found = set(layers), {}
    copied = copy.deepcopy(network).eval()
    for name, layer in copied.named_modules():
        if name in wanted:
            count = layer.weight.numel()
            found[name] = count
            if by == "macs":
                layer.register_forward_hook(
                    lambda layer, inputs, output, name=name, count=count: found.update(
                        {name: count * output[0].numel() // len(layer.weight)}
                    )
                )
    with torch.no_grad():
        copied(images)
    return found


def _uniform(scheme: Scheme) -> Any:
    """The weights' family, or LSQ's where it has one number of bits only."""
    return "lsq" if scheme.of_weights in ("ternary", "binary") else scheme.of_weights


def _weight_bits(module: nn.Module) -> dict[str, int]:
    return {layer.name: layer.bits for layer in describe(module) if layer.kind in ("conv", "linear")}


def _input_bits(scheme: Scheme, layers: Iterable[str]) -> dict[str, int]:
    bits = dict.fromkeys(layers, scheme.activations)
    for pattern, shorthand in scheme.overrides.items():
        bits |= {name: bits_of(shorthand)[1] for name in bits if fnmatch(name, pattern)}
    return bits
