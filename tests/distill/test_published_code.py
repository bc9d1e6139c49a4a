"""Our losses and quantizers beside what published code computes on the same numbers.

`published_code.json` holds what the code of the repositories it names gave, at the commits it names, for the tensors of `values`;
the code itself is not here. Where theirs departs from the paper, the test says how and takes that into account.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkd.data import Batch
from qkd.distill.losses import attention_distance, hint_distance, kl_divergence
from qkd.distill.plan import Plan, Setup, Shape
from qkd.distill.regularizers import L2SP
from qkd.distill.relational_losses import similarity_distance
from qkd.distill.schedules import Ramp
from qkd.distill.taps import Outputs, Tap
from qkd.distill.terms import weighted_sum
from qkd.methods import METHODS
from qkd.methods.atsc import _projector
from qkd.quantizers.ewgs import EwgsQuant
from qkd.quantizers.hwgq import ACTIVATION_STEPS, WEIGHT_STEPS, HalfWave, MidRise
from qkd.quantizers.lsq import LsqQuant

PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "published_code.json").read_text())
BATCH, CLASSES = 6, 10


def published(name: str) -> Any:
    return PUBLISHED[name]["value"]


def values(*shape: int, phase: float) -> Tensor:
    """Numbers in -2..2 that anybody can make again: ``2 sin(0.7 i^2 + phase (i + 1))``. -> float64"""
    numbers = [2 * math.sin(0.7 * i * i + phase * (i + 1)) for i in range(math.prod(shape))]
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape)


def logits(phase: float) -> Tensor:
    return values(BATCH, CLASSES, phase=phase)


LABELS = torch.arange(BATCH) % CLASSES
SEEN = Batch(torch.zeros(BATCH, 1), LABELS, torch.arange(BATCH))


def near(value: Any) -> Any:
    return pytest.approx(value, rel=2e-5, abs=1e-6)


def plan_of(method: str, *teachers: str, **options: Any) -> Plan:
    stages = ("layer1", "layer2")
    everyone = ("student", *teachers)
    shapes: dict[Tap, Shape] = {Tap(p, s): (4, 8, 8) for p in everyone for s in stages} | {
        Tap(p): (CLASSES,) for p in everyone
    }
    return METHODS[method](Setup("student", teachers, stages, CLASSES, shapes), **options)


def total(plan: Plan, outputs: Outputs, progress: float = 0.0) -> float:
    """What the last phase of a plan would minimise."""
    terms = plan.phases[-1].steps[0].terms
    return weighted_sum({term.name: term(outputs, SEEN) for term in terms}, terms, progress).item()


def test_every_number_names_its_source() -> None:
    assert len(PUBLISHED) >= 19
    assert all("@" in entry["source"] for entry in PUBLISHED.values())


def test_classic_terms() -> None:
    assert kl_divergence(logits(1.0), logits(2.0), temperature=4).item() == near(published("kd, temperature 4"))
    one, other = values(BATCH, 4, 8, 8, phase=0.3), values(BATCH, 7, 8, 8, phase=0.4)
    assert attention_distance(one, other, reduction="mean").item() == near(published("attention, mean"))
    assert similarity_distance(one, other).item() == near(published("similarity"))


def test_simkd_projects_and_classifies() -> None:
    body = _projector(4, 8, 2).double()
    for i, parameter in enumerate(body.parameters()):
        if parameter.dim() > 1:
            parameter.data = values(*parameter.shape, phase=0.1 * (i + 1))
    own, theirs = values(BATCH, 4, 8, 8, phase=0.3), values(BATCH, 8, 4, 4, phase=0.5)
    projected = body(nn.functional.adaptive_avg_pool2d(own, 4))
    assert hint_distance(projected, theirs).item() == near(published("simkd, features"))
    weight, bias = values(CLASSES, 8, phase=0.9), values(CLASSES, phase=0.8)
    found = projected.mean((2, 3)) @ weight.t() + bias
    torch.testing.assert_close(
        found, torch.tensor(published("simkd, logits"), dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_atsc_is_held_by_the_sum_of_squares() -> None:
    network = nn.Sequential(*(nn.Linear(4, 3) for _ in range(3))).double()
    for i, layer in enumerate(network):
        layer.weight.data = values(3, 4, phase=0.1 * i)
    anchor = L2SP("teacher")
    staged: Any = SimpleNamespace(network=network)
    anchor.snapshot(staged)
    for i, layer in enumerate(network):
        layer.weight.data = values(3, 4, phase=0.15 * i + 0.01)
        layer.bias.data += 1  # vectors are not held
    assert anchor(staged).item() == near(published("atsc, anchor"))


def test_dgkd() -> None:
    # their KL is the mean over classes too, and the labels count once however many guides there are
    options = {"temperature": 5.0, "soft": 0.4, "stochastic": "none", "labels_per_guide": False}
    outputs = {Tap("student"): logits(1.0), Tap("t"): logits(2.0), Tap("a1"): logits(3.0), Tap("a2"): logits(4.0)}
    ours = total(plan_of("dgkd", "t", "a1", "a2", **options), outputs)
    label = 0.6 * nn.functional.cross_entropy(logits(1.0), LABELS).item()
    assert label + (ours - label) / CLASSES == near(published("dgkd, three guides, temperature 5, lambda 0.4"))


def test_dcm() -> None:
    outputs = {Tap("student"): logits(1.2), Tap("t"): logits(2.2)}
    for part, phase in (("student", 1.0), ("t", 2.0)):
        outputs |= {Tap(f"{part}_layer1"): logits(phase), Tap(f"{part}_layer2"): logits(phase + 0.1)}
    assert total(plan_of("dcm", "t"), outputs) == near(published("dcm, three classifiers each"))


def test_ffl() -> None:
    ramp = 80 / 300
    outputs = {Tap("student"): logits(1.0), Tap("t"): logits(2.0), Tap("fused"): logits(3.0)}
    assert total(plan_of("ffl", "t", ramp=ramp), outputs, 40 / 300) == near(published("ffl, epoch 40 of 300"))
    found = [Ramp(1.0, ramp)(epoch / 300) for epoch in (0, 20, 40, 60, 80, 100)]
    assert found == near(published("ffl, ramp at 0 20 40 60 80 100"))


@pytest.mark.parametrize("bits", [2, 3])
def test_half_wave_gaussian_activations(bits: int) -> None:
    quantizer = HalfWave(bits, "paper")
    quantizer.mark_calibrated()
    found, _ = quantizer.quantize(values(200, phase=0.37).float())
    assert found.tolist() == near(published(f"hwgq, activations, {bits} bits"))
    assert ACTIVATION_STEPS[bits] == {2: 0.538, 3: 0.3217}[bits]


@pytest.mark.parametrize("bits", [2, 3])
def test_gaussian_weights(bits: int) -> None:
    weight = values(8, 25, phase=0.21)
    found, _ = MidRise(bits, "paper", ()).quantize(weight)
    bessel = math.sqrt(200 / 199)  # their standard deviation divides by n - 1
    theirs = torch.tensor(published(f"gaussian weights, {bits} bits"), dtype=torch.float64)
    torch.testing.assert_close(found.double() * bessel, theirs, rtol=1e-5, atol=1e-6)
    assert WEIGHT_STEPS[bits] == {2: 0.996, 3: 0.586}[bits]


@pytest.mark.parametrize(("kind", "bits"), [("weights", 4), ("weights", 2), ("activations", 4)])
def test_lsq(kind: str, bits: int) -> None:
    quantizer = LsqQuant(bits, kind == "weights", "paper", of_weights=kind == "weights", weight_levels="narrow")
    quantizer.step.data.fill_(0.23)
    x = values(10, 20, phase=0.37).float().requires_grad_()
    found, _ = quantizer.quantize(x)
    found.backward(values(10, 20, phase=0.77).float())
    theirs = published(f"lsq, {kind}, {bits} bits")
    torch.testing.assert_close(
        found.detach().double(), torch.tensor(theirs["output"], dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    assert x.grad is not None and quantizer.step.grad is not None
    torch.testing.assert_close(
        x.grad.double(), torch.tensor(theirs["to input"], dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    per_sample = (
        math.sqrt(10) if kind == "activations" else 1
    )  # they count all elements, the paper features of one sample
    assert quantizer.step.grad.item() / per_sample == near(theirs["to step"])


def test_ewgs() -> None:
    quantizer = EwgsQuant(4, False, "paper")
    quantizer.step.data.fill_(1 / 15)
    x = ((values(100, phase=0.37) + 2) / 4).float().requires_grad_()
    found, _ = quantizer.quantize(x)
    found.backward(values(100, phase=0.77).float())
    theirs = published("ewgs, 16 levels")
    torch.testing.assert_close(
        found.detach().double(), torch.tensor(theirs["output"], dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    inside = (x > 0) & (x < 1)  # behind their clamp the ends get none of it
    assert x.grad is not None
    wanted = torch.tensor(theirs["to input"], dtype=torch.float64) * inside
    torch.testing.assert_close(x.grad.double(), wanted, rtol=1e-5, atol=1e-6)
