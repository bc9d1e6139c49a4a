"""A method on tiny networks without a recipe, and losses written out a second time in float64: for tests of formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qkd.assembly.ensemble import Ensemble
from qkd.distill.plan import Method, Plan, Step, networks_needed
from qkd.distill.stages import Staged
from qkd.distill.taps import Outputs
from qkd.distill.terms import weighted_sum
from tests.support.ensembles import FACTS, assembled, batch, staged

__all__ = ["FACTS", "STAGES", "batch", "company", "network", "run"]

STAGES = ("layer1", "layer2", "layer3")


def network(seed: int, width: int = 4, name: str = "resnet8") -> Staged:
    return staged(seed, width, name=name, stages=STAGES)


def company(method: Method, teachers: dict[str, Staged] | list[str], **options: Any) -> tuple[Ensemble, Plan]:
    """The method's plan for a student and teachers, checked. Names alone stand for networks of the student's shape."""
    if isinstance(teachers, list):
        teachers = {name: network(seed) for seed, name in enumerate(teachers, 1)}
    return assembled(method, {"student": network(0), **teachers}, STAGES, **options)


def run(parts: Ensemble, plan: Plan, step: Step, progress: float = 0.0) -> tuple[Tensor, Outputs]:
    """The loss of a step on a batch, and what it was made of."""
    parts.set_learners(step.learners)
    outputs = parts(batch().images, sorted(networks_needed(plan, step)), progress)
    return weighted_sum({t.name: t(outputs, batch()) for t in step.terms}, step.terms, progress), outputs


def double(outputs: Outputs) -> dict[str, Tensor]:
    """The same in float64 without gradients, by printed address."""
    return {str(tap): tensor.detach().double() for tap, tensor in outputs.items()}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -torch.stack([row.softmax(0)[label].log() for row, label in zip(logits, labels, strict=True)]).mean()


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``T^2 mean_b sum_c p log(p / q)``, written out."""
    p, q = ((z / temperature).exp() for z in (teacher, student))
    p, q = (x / x.sum(1, keepdim=True) for x in (p, q))
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


def attention(features: Tensor) -> Tensor:
    total = (features**2).sum(1).flatten(1)
    return total / total.square().sum(1, keepdim=True).sqrt()
