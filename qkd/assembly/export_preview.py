"""Export preview: which layers of a product will stay float in the exported file, known before it is trained."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from qkd.errors import SchemeError
from qkd.export import Emitted, emit
from qkd.quantizers import pretend_calibrated, quantizers

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.recipe import Recipe


def export_preview(recipe: Recipe, assembly: Assembly) -> list[str]:
    """One line for each reason why layers will stay float in the exported file.

    Raises ExportError for layers without an ONNX form, SchemeError for layers that the bit-exact edition cannot hold.
    """
    product, shape, scheme = assembly.product(), assembly.facts.shape, recipe.student.quantize
    if not any(True for _ in quantizers(product)):
        return []
    if scheme is not None and scheme.exact:
        require_exact_layers(product, shape)
        return []
    return grouped_by_reason(stays_float(product, shape))


def stays_float(product: nn.Module, shape: tuple[int, int, int]) -> list[tuple[str, str]]:
    """(layer, reason) of every layer that cannot run in integers, in the order of the network.

    Exports a copy with made-up calibration, so that this is what export will do. ``shape``: (channels, height, width).
    Raises ExportError with the name of a layer that has no ONNX form.
    """
    return list(_emitted(product, shape).float_layers)


@torch.no_grad()
def _emitted(product: nn.Module, shape: tuple[int, int, int]) -> Emitted:
    copied = copy.deepcopy(product).cpu().eval()
    pretend_calibrated(copied)
    return emit(copied, shape)


def require_exact_layers(product: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raises SchemeError with the names of the layers that PyTorch and onnxruntime would round differently."""
    emitted = _emitted(product, shape)
    broken = [f"{layer} stays float ({reason})" for layer, reason in emitted.float_layers]
    broken += [f"{name} averages {count} pixels, not 2^n" for name, count in emitted.averaged if count & (count - 1)]
    if broken:
        raise SchemeError(
            f"exact: {'; '.join(broken[:5])}: PyTorch and onnxruntime would round differently; choose images of a size for "
            f"which pools take 2^n pixels, or leave exact out",
            key="scheme.not-exact",
        )


def grouped_by_reason(found: list[tuple[str, str]]) -> list[str]:
    """One line for each reason, with the layers it concerns."""
    reasons: dict[str, list[str]] = {}
    for layer, reason in found:
        kind = reason if " is read by " not in reason else "its result is read by more than one quantizer, or by none"
        reasons.setdefault(kind, []).append(layer)
    return [f"stays float: {_some(layers)}: {reason}" for reason, layers in reasons.items()]


def _some(layers: list[str], count: int = 5) -> str:
    more = f" and {len(layers) - count} more" if len(layers) > count else ""
    return ", ".join(layers[:count]) + more
