"""Chooses the bits of each layer's weights under a budget, by how much worse the network is when only that layer gets fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from qkd.assembly.build import STUDENT
from qkd.assembly.product import scheme_of_network
from qkd.engine.device import Machine
from qkd.errors import SchemeError
from qkd.export import Uint8Input, emit
from qkd.networks.build import build
from qkd.pipeline.onnx_metadata import metadata_of_recipe
from qkd.pipeline.pretrain import FloatStarts
from qkd.quantizers import Scheme, calibrate, insert
from qkd.quantizers.sensitivity import CHOICES, Measure, Sensitivity, costs, sensitivity
from qkd.storage.results import Allocation

if TYPE_CHECKING:
    from qkd.data import Data
    from qkd.recipe import Recipe

IMAGES = 512
NOTHING: Mapping[str, str] = MappingProxyType({})
PACKED = (2, 4, 8)
"""Bits in which a packed file stores weights; 3 take as much room as 4 there."""
FEW = 16
"""Images that calibrate a file of which only the size is needed."""
NAME, COMMIT = 64, 40
"""Characters reserved in a file for the name of the run and the commit, which are not known yet."""
Unit = Literal["bits", "kb", "mac-bits"]


@dataclass(frozen=True)
class ChosenBits:
    """``bits`` of each layer's weights and their mean; ``error``: what lowering each layer alone costs, summed."""

    bits: Mapping[str, int]
    mean_bits: float
    error: float
    sensitivity: Sensitivity

    def block(self, scheme: Scheme, activations: Mapping[str, int]) -> dict[str, Any]:
        """The block ``quantize:`` for a recipe; activations keep their bits."""
        changed = {name: f"w{bits}a{activations[name]}" for name, bits in self.bits.items() if bits != scheme.weights}
        plain = Scheme(scheme.weights, scheme.activations)
        names = [
            field.name for field in fields(Scheme) if field.name not in ("weights", "activations", "overrides", "_")
        ]
        found = {name: getattr(scheme, name) for name in names if getattr(scheme, name) != getattr(plain, name)}
        start = {"weights": scheme.weights, "activations": scheme.activations}
        return {**start, **found, "overrides": {**scheme.overrides, **changed}}


def allocate_bits(
    recipe: Recipe, budget: float, *, unit: Unit = "bits", measure: Measure = "loss", machine: Machine | None = None
) -> Allocation:
    """Bits for the weights of the student's inner layers.

    ``budget`` is the mean number of bits of a weight (``bits``) or of a weight's use (``mac-bits``) in these layers, or the
    size of the packed file (``kb``, of 1000 bytes) with all that export writes into it; first and last layer keep the bits
    of the scheme. Sensitivity is measured on images of the validation split. The float start is trained, or taken from
    the cache. Raises SchemeError for a student that is not quantized and for a budget that cannot be met.
    """
    from qkd.assembly.inputs import load_data

    scheme, data = recipe.student.quantize, load_data(recipe)
    if scheme is None:
        raise SchemeError(
            "student: is not quantized; give it a scheme to start from, such as quantize: w4a4",
            key="allocation.float-student",
        )
    network = _float_start(recipe, data, machine or Machine())
    images, labels = _some(data, recipe.data.batch)
    choices = PACKED if unit == "kb" else CHOICES

    def size(scheme: Scheme) -> int:
        return packed_size(network, scheme, images[:FEW], reserved(recipe, data, scheme))

    found, activations = sensitivity(network, scheme, images, labels, choices, measure)
    if unit == "kb":
        chosen = under_size(network, scheme, found, activations, budget, size)
    else:
        chosen = choose_bits(found, costs(network, found, images[:1], "macs" if unit == "mac-bits" else "size"), budget)
    block = chosen.block(scheme, activations)
    kilobytes = size(Scheme(**block)) / 1000
    return Allocation(dict(chosen.bits), chosen.mean_bits, chosen.error, kilobytes, block)


def _float_start(recipe: Recipe, data: Data, machine: Machine) -> nn.Module:
    torch.manual_seed(recipe.seed_of(STUDENT))
    network = build(recipe.student.build, classes=data.classes, channels=data.shape[0], options=recipe.student.options)
    with TemporaryDirectory() as scratch:
        FloatStarts(recipe, data, machine.fabric(), Path(scratch), machine)(STUDENT, recipe.student, network)
    return network


def _some(data: Data, batch: int) -> tuple[Tensor, Tensor]:
    """Images and labels of the validation split, or of the training split where there is no validation split."""
    for split in ("val", "train"):
        batches = data.train_batches(batch, seed=0, split=split)
        seen = [each for _, each in zip(range(-(-IMAGES // batch)), batches, strict=False)]
        if seen:
            break
    return torch.cat([each.images for each in seen])[:IMAGES], torch.cat([each.labels for each in seen])[:IMAGES]


def choose_bits(found: Sensitivity, cost: Mapping[str, int], budget: float) -> ChosenBits:
    """Greedy, from the most bits down: each time the layer whose next lower bits cost least for each bit saved.

    Raises SchemeError for a budget below the fewest bits.
    """
    choices = sorted({bits for each in found.values() for bits in each})
    if not choices or budget < choices[0]:
        least = choices[0] if choices else 0
        raise SchemeError(
            f"budget: {budget:g} bits cannot be met; {least} is the least", key="allocation.budget-too-small"
        )
    bits = dict.fromkeys(found, choices[-1])
    total = sum(cost[name] for name in bits)
    while sum(cost[name] * b for name, b in bits.items()) > budget * total + 1e-9:
        steps = [(name, choices[choices.index(b) - 1]) for name, b in bits.items() if b > choices[0]]
        name, lower = min(steps, key=lambda step: _price(found, cost, bits, *step))
        bits[name] = lower
    mean = sum(cost[name] * b for name, b in bits.items()) / total
    return ChosenBits(bits, round(mean, 3), sum(found[name][b] for name, b in bits.items()), found)


def _price(
    found: Sensitivity, cost: Mapping[str, int], bits: Mapping[str, int], name: str, lower: int
) -> tuple[float, int]:
    saved = cost[name] * (bits[name] - lower)
    return (found[name][lower] - found[name][bits[name]]) / saved, -saved


def under_size(
    network: nn.Module,
    scheme: Scheme,
    found: Sensitivity,
    activations: Mapping[str, int],
    kilobytes: float,
    bytes_of: Callable[[Scheme], int],
) -> ChosenBits:
    """The most bits whose packed file, measured by ``bytes_of``, fits into so many kilobytes. Raises SchemeError."""
    cost = {name: network.get_submodule(name).weight.numel() for name in found}  # type: ignore[operator]
    total = sum(cost.values())

    def size(allocation: ChosenBits) -> int:
        return bytes_of(Scheme(**allocation.block(scheme, activations)))

    most, least = (choose_bits(found, cost, bits) for bits in (max(PACKED), min(PACKED)))
    if size(least) > 1000 * kilobytes:
        raise SchemeError(
            f"budget: {kilobytes:g} kB cannot be met; {size(least) / 1000:.1f} kB is the least",
            key="allocation.budget-too-small",
        )
    allocation, mean = most, float(max(PACKED))
    while (excess := size(allocation) - 1000 * kilobytes) > 0:
        mean = max(min(PACKED), min(mean, allocation.mean_bits) - max(8 * excess / total, 1e-3))
        allocation = choose_bits(found, cost, mean)
    return allocation


def packed_size(network: nn.Module, scheme: Scheme, images: Tensor, metadata: Mapping[str, str] = NOTHING) -> int:
    """Bytes of the packed file of a network with that scheme and that metadata.

    It is calibrated on the images, so that scales differ as in a real file: equal tensors would be stored once.
    """
    module = insert(network, scheme_of_network(scheme, network)).eval()
    calibrate(module, [images])
    channels, height, width = images.shape[1:]
    with torch.no_grad():
        return int(emit(module, (channels, height, width), storage="packed", metadata=metadata).model.ByteSize())


def reserved(recipe: Recipe, data: Data, scheme: Scheme) -> Mapping[str, str]:
    """The metadata of the file of a recipe with that scheme; characters are reserved for what is not known yet."""
    from qkd import recipe as recipes

    student = recipe.student.model_copy(update={"quantize": scheme})
    whole = recipe.model_copy(update={"student": student})
    scale, shift = (part.reshape(-1).numpy() for part in data.affine())
    unknown = {"name": "-" * NAME, "commit": "-" * COMMIT}
    return metadata_of_recipe(
        whole, data.metadata, Uint8Input(scale, shift), "float32", text=recipes.dump(whole), **unknown
    )


__all__ = [
    "ChosenBits",
    "Unit",
    "allocate_bits",
    "choose_bits",
    "costs",
    "packed_size",
    "reserved",
    "sensitivity",
    "under_size",
]
