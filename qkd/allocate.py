"""Allocate: bits of each layer's weights under a budget, by how much the logits move when only that layer is lowered."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from qkd.engine.machine import Machine
from qkd.errors import SchemeError
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, describe, insert
from qkd.quantizers.scheme import bits_of
from qkd.starts import Starts

if TYPE_CHECKING:
    from qkd.recipe import Recipe

CHOICES = (2, 3, 4, 5, 6, 8)
IMAGES = 256
By = Literal["size", "macs"]
Sensitivity = Mapping[str, Mapping[int, float]]  # layer -> bits -> error


@dataclass(frozen=True)
class Allocation:
    """``bits`` of each layer's weights; ``error`` is the sum of what each alone does to the logits (1: as large as they are)."""

    bits: Mapping[str, int]
    mean_bits: float
    error: float
    sensitivity: Sensitivity

    def block(self, scheme: Scheme, activations: Mapping[str, int]) -> dict[str, Any]:
        """What a recipe takes as ``quantize:``; activations keep their bits."""
        changed = {name: f"w{bits}a{activations[name]}" for name, bits in self.bits.items() if bits != scheme.weights}
        found: dict[str, Any] = {"weights": scheme.weights, "activations": scheme.activations}
        for name in (
            "family",
            "weight_family",
            "activation_family",
            "first",
            "last",
            "sums",
            "per_channel",
            "calibration",
        ):
            if getattr(scheme, name) != getattr(Scheme(4, 4), name):
                found[name] = getattr(scheme, name)
        return {**found, "overrides": {**scheme.overrides, **changed}}


def allocate(recipe: Recipe, budget: float, *, by: By = "size", machine: Machine | None = None) -> dict[str, Any]:
    """Bits for the weights of the student's inner layers. -> what `qkd allocate --json` prints

    ``budget`` is the mean number of bits of a weight (by size) or of a weight's use (by macs) in these layers; first and
    last layer keep those of the scheme. The float start is trained, or taken from the cache. Raises SchemeError for a
    student that is not quantized and for a budget that cannot be met.
    """
    from qkd.produce import load_data

    scheme, data = recipe.student.quantize, load_data(recipe)
    if scheme is None:
        raise SchemeError("student: is not quantized; give it a scheme to start from, such as quantize: w4a4")
    torch.manual_seed(recipe.seed)
    network = build(recipe.student.build, classes=data.classes, channels=data.shape[0], options=recipe.student.options)
    machine = machine or Machine()
    with TemporaryDirectory() as scratch:
        fabric = machine.fabric()
        Starts(recipe, data, fabric, Path(scratch), machine)("student", recipe.student, network)
    batches = data.batches("train", recipe.data.batch, shuffle_seed=recipe.seed, device="cpu")
    images = torch.cat([b.images for _, b in zip(range(-(-IMAGES // recipe.data.batch)), batches, strict=False)])
    found, activations = sensitivity(network, scheme, [images[:IMAGES]])
    chosen = choose(found, costs(network, found, images[:1], by), budget)
    block = chosen.block(scheme, activations)
    return {"bits": dict(chosen.bits), "mean_bits": chosen.mean_bits, "error": chosen.error, "quantize": block}


@torch.no_grad()
def sensitivity(
    network: nn.Module, scheme: Scheme, batches: Sequence[Tensor], choices: Sequence[int] = CHOICES
) -> tuple[Sensitivity, dict[str, int]]:
    """For each inner layer and number of bits, the squared change of the logits as a share of their square.

    Everything else has 8-bit weights and the scheme's activations. Also the bits of each layer's input.
    """
    own = replace(scheme, weights=8, weight_family=_uniform(scheme), overrides={})
    reference = insert(network.eval(), own)
    calibrate(reference, batches)
    before = _logits(reference, batches)
    ends = {name for name, bits in _weight_bits(insert(network, replace(own, first=2, last=2))).items() if bits == 2}
    inner = [name for name in _weight_bits(reference) if name not in ends]
    found: dict[str, dict[int, float]] = {name: {} for name in inner}
    for bits in choices:
        lower = insert(network, replace(own, weights=bits))
        calibrate(lower, [batches[0][:1]])
        for name in inner:
            proxy, other = (module.get_submodule(name).weight_quant for module in (reference, lower))
            proxy.tensor_quant, kept = other.tensor_quant, proxy.tensor_quant  # type: ignore[union-attr]
            change = _logits(reference, batches) - before
            found[name][bits] = float(change.square().mean() / before.square().mean())
            proxy.tensor_quant = kept  # type: ignore[union-attr]
    return found, _input_bits(scheme, inner)


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


def choose(found: Sensitivity, cost: Mapping[str, int], budget: float) -> Allocation:
    """From the most bits down: always the step that costs the logits least for each bit it saves.

    Raises SchemeError for a budget below the fewest bits.
    """
    choices = sorted({bits for each in found.values() for bits in each})
    if not choices or budget < choices[0]:
        raise SchemeError(f"budget: {budget:g} bits cannot be met; {choices[0] if choices else 0} is the least")
    bits = dict.fromkeys(found, choices[-1])
    total = sum(cost[name] for name in bits)
    while sum(cost[name] * b for name, b in bits.items()) > budget * total + 1e-9:
        steps = [(name, choices[choices.index(b) - 1]) for name, b in bits.items() if b > choices[0]]
        name, lower = min(steps, key=lambda step: _price(found, cost, bits, *step))
        bits[name] = lower
    mean = sum(cost[name] * b for name, b in bits.items()) / total
    return Allocation(bits, round(mean, 3), sum(found[name][b] for name, b in bits.items()), found)


def _price(found: Sensitivity, cost: Mapping[str, int], bits: Mapping[str, int], name: str, lower: int) -> float:
    saved = cost[name] * (bits[name] - lower)
    return (found[name][lower] - found[name][bits[name]]) / saved


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


def _logits(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    return torch.cat([network.eval()(images) for images in batches])
