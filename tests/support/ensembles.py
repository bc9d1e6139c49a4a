"""Shared by the tests of methods: a small company of networks, and losses written out a second time in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from qkd.assembly.build import measure_shapes
from qkd.assembly.ensemble import Ensemble
from qkd.assembly.rehearsal import rehearse
from qkd.data import Batch
from qkd.distill.plan import Method, Plan, Setup, Step, networks_needed
from qkd.distill.stages import Staged, cut
from qkd.distill.taps import Outputs
from qkd.distill.terms import weighted_sum
from qkd.methods import METHODS
from qkd.networks import NETWORKS
from qkd.quantizers import Scheme, calibrate, insert
from qkd.tasks.spec import DataSpec

FAKE = "data={name: fake, batch: 16, size: 16, train: 64, test: 16, classes: 4}"
FACTS = DataSpec((3, 16, 16), 4)
STAGES = ("layer1", "layer2")
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])  # of a batch of six


def staged(seed: int, width: int = 4, *, name: str = "resnet8", stages: Sequence[str] = STAGES) -> Staged:
    torch.manual_seed(seed)
    return cut(NETWORKS[name](classes=FACTS.classes, width=width), list(stages))


def quantized(seed: int, bits: int) -> Staged:
    torch.manual_seed(seed)
    module = insert(NETWORKS["resnet8"](classes=FACTS.classes, width=4), Scheme(weights=bits, activations=bits))
    calibrate(module, [batch().images])
    return cut(module, list(STAGES))


def assembled(
    method: Method, networks: dict[str, Staged], stages: Sequence[str] = STAGES, **options: Any
) -> tuple[Ensemble, Plan]:
    """The method's plan for networks of which the first is the student, checked as a recipe's is."""
    student, *teachers = networks
    setup = Setup(student, tuple(teachers), tuple(stages), FACTS.classes, measure_shapes(networks, FACTS))
    plan = method(setup, **options)
    parts = Ensemble(networks, plan)
    rehearse(parts, plan, setup.shapes, FACTS)
    return parts, plan


def company(
    method: str, *teachers: str, stages: tuple[str, ...] = STAGES, widths: dict[str, int] | None = None, **options: Any
) -> tuple[Ensemble, Plan]:
    names = ("student", *teachers)
    networks = {name: staged(seed, (widths or {}).get(name, 4)) for seed, name in enumerate(names)}
    return assembled(METHODS[method], networks, stages, **options)


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, *FACTS.shape, generator=generator)
    return Batch(images, torch.arange(count) % FACTS.classes, torch.arange(count))


def outcome(parts: Ensemble, plan: Plan, step: Step, progress: float = 0.0) -> tuple[float, dict[str, Tensor], Outputs]:
    """The loss of a step, the logits that took part in it in float64, and all tensors."""
    parts.set_learners(step.learners)
    torch.manual_seed(7)
    outputs = parts(batch().images, sorted(networks_needed(plan, step)), progress)
    losses = {term.name: term(outputs, batch()) for term in step.terms}
    logits = {tap.part: z.detach().double() for tap, z in outputs.items() if tap.stage == "logits"}
    return weighted_sum(losses, step.terms, progress).item(), logits, outputs


def ce(z: Tensor) -> Tensor:
    return -(z - z.exp().sum(1, keepdim=True).log())[torch.arange(6), LABELS].mean()


def kl(target: Tensor, z: Tensor, temperature: float) -> Tensor:
    q, p = (torch.exp(x / temperature) / torch.exp(x / temperature).sum(1, keepdim=True) for x in (target, z))
    return temperature**2 * (q * (q.log() - p.log())).sum() / 6


def first(plan: Plan) -> Step:
    return plan.phases[0].steps[0]


def learners_of(plan: Plan | Step) -> set[str]:
    """What learns, as text: ``student``, ``exchange.importance``."""
    return {str(learner) for learner in plan.learners}


def names_of(step: Step) -> set[str]:
    return {term.name for term in step.terms}


def near(value: float | Tensor) -> Any:
    return pytest.approx(float(value), rel=2e-5)
