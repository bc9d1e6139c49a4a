"""Foresee: what export will say of a product, before it is trained."""

from __future__ import annotations

import copy

import torch
from torch import nn

from qkd.export import emit
from qkd.quantizers import pretend_calibrated


def stays_float(product: nn.Module, shape: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Layers that cannot run in integers, with the reason, in the order of the network.

    Found by exporting a copy that pretends to be calibrated, so it is what export will really do. ``shape`` is (channels,
    height, width). Raises ExportError, naming the layer, where the product has no exported form at all.
    """
    with torch.no_grad():
        copied = copy.deepcopy(product).cpu().eval()
        pretend_calibrated(copied)
        return list(emit(copied, shape).float_layers)


def shortened(found: list[tuple[str, str]]) -> list[str]:
    """One line for each reason, with the layers it concerns."""
    reasons: dict[str, list[str]] = {}
    for layer, reason in found:
        kind = reason if " is read by " not in reason else "its result is read by more than one quantizer, or by none"
        reasons.setdefault(kind, []).append(layer)
    return [f"stays float: {_some(layers)}: {reason}" for reason, layers in reasons.items()]


def _some(layers: list[str], count: int = 5) -> str:
    more = f" and {len(layers) - count} more" if len(layers) > count else ""
    return ", ".join(layers[:count]) + more
